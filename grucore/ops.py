"""One GRU layer, all its directions, as a `torch.library` operator: fake kernels, first and second order gradients.

torch.compile and torch.export see `grucore::gru_layer` as one opaque node, whatever T is. Its backward is an operator
of its own, `grucore::gru_layer_backward`, so that gradients of gradients exist: those come from `kernels.reference`,
while the first order stays hand-written. The arguments are those of the contract in `kernels/__init__.py`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from grucore.kernels import reference

MODULES = {"reference": "grucore.kernels.unfused", "triton": "grucore.kernels.fused"}


def _operator(function: Callable) -> Callable:
    """The function as the operator `grucore::NAME`, its schema read from its annotations.

    As `torch.library.custom_op` does, but a first call does not import torch._dynamo, which takes a second or two.
    """
    name = f"grucore::{function.__name__}"
    torch.library.define(name, torch.library.infer_schema(function, mutates_args=()), tags=torch.Tag.pt2_compliant_tag)
    untraced = torch._disable_dynamo(function)

    @functools.wraps(function)
    def run(*args: Any) -> tuple[Tensor, ...]:
        device = next(arg for arg in args if isinstance(arg, Tensor)).device
        # Products inside have the dtype that was chosen for them, whatever torch.autocast holds outside. Where
        # torch.compile runs a frame as it is, it must not go on to trace the operators that this one calls.
        with torch.autocast(device.type, enabled=False):
            return (untraced if "torch._dynamo" in sys.modules else function)(*args)

    torch.library.impl(name, "default", run)
    return getattr(torch.ops.grucore, function.__name__).default


@_operator
def gru_layer(
    x: Tensor,  # (T, B, I)
    h0: Tensor,  # (D, B, H)
    w_ih: Tensor,  # (D, 3H, I)
    w_hh: Tensor,  # (D, 3H, H)
    b_ih: Tensor | None,  # (D, 3H)
    b_hh: Tensor | None,  # (D, 3H)
    real: Tensor | None,  # (T, B) bool
    start: Tensor | None,  # (T, B) bool
    reset_after: bool,
    precision: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """y (T, B, D*H) and h_n (D, B, H)."""
    module = import_module(MODULES[backend])
    y, h_n = module.gru_forward(x, h0, w_ih, w_hh, b_ih, b_hh, real, start, reset_after, precision)
    return _owner(y), _owner(h_n)


def _owner(t: Tensor) -> Tensor:
    """The same memory as a tensor that is no view: FSDP2 warns of views, and autograd lets nothing be done in them."""
    return t.new_empty(0).set_(t.untyped_storage(), t.storage_offset(), t.shape, t.stride())


@torch.library.register_fake("grucore::gru_layer")
def _(x, h0, *_):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[0], x.shape[1], h0.shape[0] * h0.shape[2]), h0.new_empty(h0.shape)


@_operator
def gru_layer_backward(
    dy: Tensor | None,  # (T, B, D*H)
    dh_n: Tensor | None,  # (D, B, H)
    x: Tensor,
    h0: Tensor,
    y: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    real: Tensor | None,
    start: Tensor | None,
    reset_after: bool,
    precision: str,
    backend: str,
    need_dx: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dx (empty unless needed), dh0, dw_ih, dw_hh, db_ih and db_hh (the last two also without biases)."""
    module = import_module(MODULES[backend])
    dx, *others = module.gru_backward(
        dy, dh_n, x, h0, y, w_ih, w_hh, b_ih, b_hh, real, start, reset_after, precision, need_dx
    )
    return x.new_empty(0) if dx is None else dx, *others


@torch.library.register_fake("grucore::gru_layer_backward")
def _(dy, dh_n, x, h0, y, w_ih, w_hh, *others):  # type: ignore[no-untyped-def]
    *_, need_dx = others
    shapes = (x.shape if need_dx else (0,), h0.shape, w_ih.shape, w_hh.shape, w_ih.shape[:2], w_ih.shape[:2])
    return tuple(x.new_empty(shape) for shape in shapes)


def _save(ctx: Any, inputs: tuple, output: tuple) -> None:
    *tensors, reset_after, precision, backend = inputs
    x, h0, *others = tensors
    ctx.options = (reset_after, precision, backend)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, h0, output[0], *others)


def _backward(ctx: Any, dy: Tensor | None, dh_n: Tensor | None) -> tuple:
    if dy is None and dh_n is None:
        return (None,) * 11
    saved = ctx.saved_tensors  # read once: each reading unpacks, which checkpointing refuses and offloading pays for
    need_dx = ctx.needs_input_grad[0]
    dx, dh0, dw_ih, dw_hh, db_ih, db_hh = gru_layer_backward(dy, dh_n, *saved, *ctx.options, need_dx)
    biases = (None, None) if saved[5] is None else (db_ih, db_hh)
    return dx if need_dx else None, dh0, dw_ih, dw_hh, *biases, None, None, None, None, None


torch.library.register_autograd("grucore::gru_layer", _backward, setup_context=_save)


def _save_backward(ctx: Any, inputs: tuple, output: tuple) -> None:
    dy, dh_n, x, h0, _, *weights, real, start, ctx.reset_after, _, _, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(dy, dh_n, x, h0, *weights, real, start)


def _double_backward(ctx: Any, *d_grads: Tensor | None) -> tuple:
    """The gradient of `gru_layer_backward`: the reference's own gradient, differentiated once more."""
    if all(d is None for d in d_grads):
        return (None,) * 15
    *primals, real, start = ctx.saved_tensors
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        dy, dh_n, *arguments = [_alias(t) for t in primals]
        y, h_n, _ = reference.gru_layers(*arguments, real, start, ctx.reset_after)
        ends = [(out, d_out) for out, d_out in ((y, dy), (h_n, dh_n)) if d_out is not None]
        outs, d_outs = zip(*ends, strict=True)
        wanted = [(a, d) for a, d in zip(arguments, d_grads, strict=True) if a is not None and d is not None and len(d)]
        wrt, d_wanted = zip(*wanted, strict=True)
        grads = torch.autograd.grad(outs, wrt, d_outs, create_graph=True, materialize_grads=True)
        inputs = [t for t in (dy, dh_n, *arguments) if t is not None]
        results = iter(torch.autograd.grad(grads, inputs, d_wanted, create_graph=create_graph, allow_unused=True))
    d_dy, d_dh_n, dx, dh0, *d_weights = [None if t is None else next(results) for t in (dy, dh_n, *arguments)]
    return d_dy, d_dh_n, dx, dh0, None, *d_weights, *[None] * 6


def _alias(t: Tensor | None) -> Tensor | None:
    """The same values as a place of its own in the graph: gradients stop here, even where one input made another."""
    if t is None:
        return None
    return t.view_as(t) if t.requires_grad else t.detach().requires_grad_()


torch.library.register_autograd("grucore::gru_layer_backward", _double_backward, setup_context=_save_backward)
