"""One GRU layer in one direction as a `torch.library` operator: fake kernels, first and second order gradients.

torch.compile and torch.export see `grucore::gru_layer` as one opaque node, whatever T is. Its backward is an operator
of its own, `grucore::gru_layer_backward`, so that gradients of gradients exist: those come from `kernels.reference`,
while the first order stays hand-written. The arguments are those of the contract in `kernels/__init__.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from grucore.kernels import reference
from grucore.kernels.bptt import gru_backward, gru_forward
from grucore.kernels.packing import Packing, pack
from grucore.kernels.schedule import Schedule


def _pack(real: Tensor | None, start: Tensor | None, reverse: bool) -> Packing | None:
    return None if real is None and start is None else pack(real, start, reverse)


def _without_autocast(operator: Callable) -> Callable:
    """Products inside have the dtype that was chosen for them, whatever torch.autocast holds outside."""

    @functools.wraps(operator)
    def run(*args: Any) -> tuple[Tensor, ...]:
        device = next(arg for arg in args if isinstance(arg, Tensor)).device
        with torch.autocast(device.type, enabled=False):
            return operator(*args)

    return run


def _schedule(x: Tensor, packing: Packing | None, reverse: bool) -> Schedule:
    steps, batch, _ = x.shape
    return Schedule([batch] * steps, reverse) if packing is None else Schedule(packing.sizes)


@torch.library.custom_op("grucore::gru_layer", mutates_args=())
@_without_autocast
def gru_layer(
    x: Tensor,  # (T, B, I)
    h0: Tensor,  # (B, H)
    w_ih: Tensor,  # (3H, I)
    w_hh: Tensor,  # (3H, H)
    b_ih: Tensor | None,  # (3H,)
    b_hh: Tensor | None,  # (3H,)
    real: Tensor | None,  # (T, B) bool
    start: Tensor | None,  # (T, B) bool
    reverse: bool,
    reset_after: bool,
) -> tuple[Tensor, Tensor]:
    """y (T, B, H) and h_n (B, H)."""
    steps, batch, _ = x.shape
    flat, packing = x.flatten(0, 1), _pack(real, start, reverse)
    schedule = _schedule(x, packing, reverse)
    if packing is None:
        y = gru_forward(flat, h0, w_ih, w_hh, b_ih, b_hh, schedule, reset_after).unflatten(0, (steps, batch))
        return y, (y[0 if reverse else -1] if steps else h0).clone(memory_format=torch.contiguous_format)
    packed_y = gru_forward(flat[packing.position], h0[packing.row], w_ih, w_hh, b_ih, b_hh, schedule, reset_after)
    y = x.new_zeros(steps * batch, w_hh.shape[1]).index_copy_(0, packing.position, packed_y)
    h_n = h0.clone(memory_format=torch.contiguous_format).index_copy_(0, packing.ended, packed_y[packing.last_step])
    return y.unflatten(0, (steps, batch)), h_n


@gru_layer.register_fake
def _(x, h0, w_ih, w_hh, *_):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[0], x.shape[1], w_hh.shape[1]), h0.new_empty(h0.shape)


@torch.library.custom_op("grucore::gru_layer_backward", mutates_args=())
@_without_autocast
def gru_layer_backward(
    dy: Tensor | None,  # (T, B, H)
    dh_n: Tensor | None,  # (B, H)
    x: Tensor,
    h0: Tensor,
    y: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    real: Tensor | None,
    start: Tensor | None,
    reverse: bool,
    reset_after: bool,
    need_dx: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dx (empty unless needed), dh0, dw_ih, dw_hh, db_ih, db_hh (the last two also without biases)."""
    steps, batch, _ = x.shape
    packing = _pack(real, start, reverse)
    schedule = _schedule(x, packing, reverse)
    x_rows, y = x.flatten(0, 1), y.flatten(0, 1)
    dy = None if dy is None else dy.flatten(0, 1)
    weights = (w_ih, w_hh, b_ih, b_hh)
    if packing is None:
        dx, dh0, *d_weights = gru_backward(dy, dh_n, x_rows, h0, y, *weights, schedule, reset_after, need_dx)
    else:
        x_rows, y = x_rows[packing.position], y[packing.position]
        dy = None if dy is None else dy[packing.position]
        d_last = None
        if dh_n is not None:
            d_last = dh_n.new_zeros(len(packing.row), dh_n.shape[1])
            d_last[packing.last_segment] = dh_n[packing.ended]
        dx, d_first, *d_weights = gru_backward(
            dy, d_last, x_rows, h0[packing.row], y, *weights, schedule, reset_after, need_dx
        )
        # A row without a real step ends where it began.
        dh0 = torch.zeros_like(h0) if dh_n is None else dh_n.to(h0.dtype).index_fill(0, packing.ended, 0)
        dh0 = dh0.index_add(0, packing.row, d_first)
        if dx is not None:
            dx = x.new_zeros(steps * batch, x.shape[2]).index_copy_(0, packing.position, dx)
    dx = x.new_empty(0) if dx is None else dx.view(x.shape)
    return dx, dh0, *d_weights


@gru_layer_backward.register_fake
def _(dy, dh_n, x, h0, y, w_ih, w_hh, *others):  # type: ignore[no-untyped-def]
    *_, need_dx = others
    dx = x.new_empty(x.shape if need_dx else (0,))
    biases = (w_ih.new_empty(w_ih.shape[0]), w_ih.new_empty(w_ih.shape[0]))
    return dx, h0.new_empty(h0.shape), w_ih.new_empty(w_ih.shape), w_hh.new_empty(w_hh.shape), *biases


def _save(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, h0, w_ih, w_hh, b_ih, b_hh, real, start, ctx.reverse, ctx.reset_after = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, h0, output[0], w_ih, w_hh, b_ih, b_hh, real, start)


def _backward(ctx: Any, dy: Tensor | None, dh_n: Tensor | None) -> tuple:
    if dy is None and dh_n is None:
        return (None,) * 10
    *tensors, real, start = ctx.saved_tensors
    b_ih = tensors[5]
    need_dx = ctx.needs_input_grad[0]
    dx, dh0, dw_ih, dw_hh, db_ih, db_hh = gru_layer_backward(
        dy, dh_n, *tensors, real, start, ctx.reverse, ctx.reset_after, need_dx
    )
    biases = (None, None) if b_ih is None else (db_ih, db_hh)
    return dx if need_dx else None, dh0, dw_ih, dw_hh, *biases, None, None, None, None


gru_layer.register_autograd(_backward, setup_context=_save)


def _save_backward(ctx: Any, inputs: tuple, output: tuple) -> None:
    dy, dh_n, x, h0, _, *weights, real, start, ctx.reverse, ctx.reset_after, ctx.need_dx = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(dy, dh_n, x, h0, *weights, real, start)


def _double_backward(ctx: Any, *d_grads: Tensor | None) -> tuple:
    """The gradient of `gru_layer_backward`: the reference's own gradient, differentiated once more."""
    if all(d is None for d in d_grads):
        return (None,) * 14
    *primals, real, start = ctx.saved_tensors
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        dy, dh_n, *arguments = [_alias(t) for t in primals]
        y, h_n, _ = reference.gru_layer(*arguments, real, start, ctx.reverse, ctx.reset_after)
        ends = [(out, d_out) for out, d_out in ((y, dy), (h_n, dh_n)) if d_out is not None]
        outs, d_outs = zip(*ends, strict=True)
        wanted = [(a, d) for a, d in zip(arguments, d_grads, strict=True) if a is not None and d is not None and len(d)]
        wrt, d_wanted = zip(*wanted, strict=True)
        grads = torch.autograd.grad(outs, wrt, d_outs, create_graph=True, materialize_grads=True)
        inputs = [t for t in (dy, dh_n, *arguments) if t is not None]
        results = iter(torch.autograd.grad(grads, inputs, d_wanted, create_graph=create_graph, allow_unused=True))
    d_dy, d_dh_n, dx, dh0, *d_weights = [None if t is None else next(results) for t in (dy, dh_n, *arguments)]
    return d_dy, d_dh_n, dx, dh0, None, *d_weights, None, None, None, None, None


def _alias(t: Tensor | None) -> Tensor | None:
    """The same values as a place of its own in the graph: gradients stop here, even where one input made another."""
    if t is None:
        return None
    return t.view_as(t) if t.requires_grad else t.detach().requires_grad_()


gru_layer_backward.register_autograd(_double_backward, setup_context=_save_backward)
