"""One GRU layer with all its directions as a `torch.library` operator: fake kernels, first and second order gradients.

torch.compile and torch.export see `grucore::gru_layer` as one opaque node, whatever T is. Its backward pass is a
separate operator, `grucore::gru_layer_backward`, which has a gradient of its own: second order gradients come from
`equations.py`, the first order is hand-written. The arguments are the flattened fields of the contract's values;
`kept` holds intermediate results that the native kernels save for backward, and is empty for the others. Recurrent
dropout and zoneout are those of the Triton kernels, 0 for the others; with a seed they are random.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grucore import compat, equations, flops
from grucore.errors import InputError
from grucore.kernels import Form, Gradients, State, Steps, Weights
from grucore.kernels.native import layer as native
from grucore.kernels.noise import new_seed
from grucore.kernels.regularised import Variant, is_noisy


def layer(
    x: Tensor,
    state: State,
    weights: Weights,
    steps: Steps,
    form: Form,
    backend: str,
    keep: bool = False,
    variant: Variant | None = None,
) -> tuple[Tensor, Tensor]:
    """Runs one layer: y (T, B, D*H) and h_n (D, B, H). `keep` saves what the backend can save for backward."""
    if not torch.compiler.is_compiling():
        flops.register()
    variant = variant or Variant()
    seed, noise = new_seed(x.device) if is_noisy(variant) else None, (variant.recurrent_dropout, variant.zoneout)
    y, h_n, _ = gru_layer(x, *state, *weights, *steps, seed, *form, *noise, backend, keep)
    return y, h_n


class _Values(NamedTuple):
    """The contract's values."""

    state: State
    weights: Weights
    steps: Steps
    form: Form


def _values(fields: tuple) -> tuple[_Values, tuple[Variant, Tensor | None] | tuple[()]]:
    """The contract's values from an operator's arguments between x and backend, and the noise, () without any."""
    seed, dropout, zoneout = fields[8], *fields[12:14]
    values = _Values(State(*fields[:2]), Weights(*fields[2:6]), Steps(*fields[6:8]), Form(*fields[9:12]))
    if seed is None and not zoneout:
        return values, ()
    return values, (Variant(dropout, zoneout, training=seed is not None), seed)


def _operator(function: Callable) -> Any:
    """Registers a function as the operator `grucore::NAME`, with the schema of its annotations.

    Like `torch.library.custom_op`, but without importing torch._dynamo, which takes a second or two, in the first call.
    """
    name = f"grucore::{function.__name__}"
    torch.library.define(name, torch.library.infer_schema(function, mutates_args=()), tags=torch.Tag.pt2_compliant_tag)
    untraced = compat.untraced(function)

    @functools.wraps(function)
    def run(*args: Any) -> tuple[Tensor, ...]:
        device = next(arg for arg in args if isinstance(arg, Tensor)).device
        # Autocast must not change the dtype of the products inside. Where torch.compile runs a frame uncompiled, it
        # must not trace the operators that this one calls.
        with torch.autocast(device.type, enabled=False):
            return (untraced if "torch._dynamo" in sys.modules else function)(*args)

    torch.library.impl(name, "default", run)
    return getattr(torch.ops.grucore, function.__name__).default


@functools.cache
def kernels(backend: str, module: str = "layer") -> Any:
    """A module of an implementation, which is imported on its first use."""
    return import_module(f"grucore.kernels.{backend}.{module}")


@_operator
def gru_layer(
    x: Tensor,
    h0: Tensor,
    h_reset: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    real: Tensor | None,
    start: Tensor | None,
    seed: Tensor | None,
    reset_after: bool,
    precision: str,
    heads: int,
    recurrent_dropout: float,
    zoneout: float,
    backend: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, h_n and kept.

    Raises:
        InputError: sizes or dtypes do not fit, as in a trace, which runs without the checks of a call.
    """
    _check(x, h0, h_reset, w_ih, w_hh, b_ih, b_hh, real, start)
    fields = (h0, h_reset, w_ih, w_hh, b_ih, b_hh, real, start, seed)
    values, noise = _values((*fields, reset_after, precision, heads, recurrent_dropout, zoneout))
    kept = _new_kept(x, h0, backend, keep)
    y, h_n = kernels(backend).gru_forward(x, *values, *([kept] if len(kept) else noise))
    return owner(y), owner(h_n), kept


def _check(x: Tensor, h0: Tensor, *others: Tensor | None) -> None:
    T, B, I = x.shape  # noqa: E741
    D, _, H = h0.shape
    shapes = (D, B, H), (D, B, H), (D, 3 * H, I), (D, 3 * H, H), (D, 3 * H), (D, 3 * H), (T, B), (T, B)
    for name, tensor, shape in zip(_INPUTS[1:], (h0, *others), shapes, strict=False):
        dtype = torch.bool if name in ("real", "start") else x.dtype
        if tensor is not None and (tensor.shape != shape or tensor.dtype is not dtype):
            raise InputError(
                f"a layer that reads {x.dtype} of shape {tuple(x.shape)} needs {name} of {dtype} and shape {shape}, "
                f"got {tensor.dtype} of {tuple(tensor.shape)}"
            )


def _new_kept(x: Tensor, h0: Tensor, backend: str, keep: bool) -> Tensor:
    return native.new_kept(x, h0) if backend == "native" and keep else x.new_empty(0)


def owner(t: Tensor) -> Tensor:
    """The same storage as a non-view: FSDP2 warns about views, and autograd forbids changing them in place."""
    return t.new_empty(0).set_(t.untyped_storage(), t.storage_offset(), t.shape, t.stride())


@torch.library.impl("grucore::gru_layer", "Meta")
def _(x, h0, *others):  # type: ignore[no-untyped-def]
    y = x.new_empty(x.shape[0], x.shape[1], h0.shape[0] * h0.shape[2])
    return y, h0.new_empty(h0.shape), _new_kept(x, h0, *others[-2:])


@_operator
def gru_layer_backward(
    dy: Tensor | None,
    dh_n: Tensor | None,
    y: Tensor,
    kept: Tensor,
    x: Tensor,
    h0: Tensor,
    h_reset: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    real: Tensor | None,
    start: Tensor | None,
    seed: Tensor | None,
    reset_after: bool,
    precision: str,
    heads: int,
    recurrent_dropout: float,
    zoneout: float,
    backend: str,
    need_dx: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The fields of `Gradients`; those that are None are empty."""
    fields = (h0, h_reset, w_ih, w_hh, b_ih, b_hh, real, start, seed)
    values, noise = _values((*fields, reset_after, precision, heads, recurrent_dropout, zoneout))
    gradients = kernels(backend).gru_backward(dy, dh_n, y, x, *values, need_dx, *([kept] if len(kept) else noise))
    return tuple(x.new_empty(0) if gradient is None else gradient for gradient in gradients)  # type: ignore[return-value]


@torch.library.impl("grucore::gru_layer_backward", "Meta")
def _(dy, dh_n, y, kept, x, h0, h_reset, w_ih, w_hh, *others):  # type: ignore[no-untyped-def]
    *_, need_dx = others
    bias = w_ih.shape[:2]
    dx, dh_reset = x.shape if need_dx else (0,), (0,) if h_reset is None else h0.shape
    shapes = Gradients(dx, h0.shape, dh_reset, w_ih.shape, w_hh.shape, bias, bias)
    return tuple(x.new_empty(shape) for shape in shapes)


_INPUTS, _BACKWARD_INPUTS = (
    tuple(argument.name for argument in operator._schema.arguments) for operator in (gru_layer, gru_layer_backward)
)
_TENSORS = 1 + _INPUTS.index("seed")


def _by_name(names: tuple[str, ...], **gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    """Puts gradients in the order of an operator's arguments."""
    return tuple(gradients.get(name) for name in names)


def _save(ctx: Any, inputs: tuple, output: tuple) -> None:
    tensors, ctx.options = inputs[:_TENSORS], inputs[_TENSORS:-1]
    ctx.set_materialize_grads(False)
    y, _, kept = output
    ctx.save_for_backward(y, kept, *tensors)


def _backward(ctx: Any, dy: Tensor | None, dh_n: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if dy is None and dh_n is None:
        return _by_name(_INPUTS)
    saved = ctx.saved_tensors  # read once: reading unpacks, which checkpointing allows once and offloading pays for
    need_dx = ctx.needs_input_grad[0]
    if compat.backward_is_transformed(dy, dh_n):
        x, *fields = saved[2:]
        (state, weights, steps, form), noise = _values((*fields, *ctx.options))
        found = equations.gradients(dy, dh_n, x, state, weights, None, steps, form, *noise)[0]
    else:
        found = Gradients(*gru_layer_backward(dy, dh_n, *saved, *ctx.options, need_dx))
    gradients = found._asdict()
    y_and_tensors = dict(zip(("y", "kept", *_INPUTS), saved, strict=False))
    wanted = {name: g for name, g in gradients.items() if y_and_tensors[name] is not None and (need_dx or name != "x")}
    return _by_name(_INPUTS, **wanted)


torch.library.register_autograd("grucore::gru_layer", _backward, setup_context=_save)


def _save_backward(ctx: Any, inputs: tuple, output: tuple) -> None:
    dy, dh_n, _, _, *inputs = inputs  # type: ignore[assignment]
    ctx.options = inputs[_TENSORS:-2]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(dy, dh_n, *inputs[:_TENSORS])


def _double_backward(ctx: Any, *d_gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradient of `gru_layer_backward`: differentiates the gradient of the equations."""
    *primals, real, start, seed = ctx.saved_tensors
    create_graph = torch.is_grad_enabled()
    with compat.without_autocast(primals[2]), torch.enable_grad():
        dy, dh_n, x, *tensors = map(equations.alias, primals)
        assert x is not None
        (state, weights, steps, form), noise = _values((*tensors, real, start, seed, *ctx.options))
        y, h_n, _ = equations.layer(x, state, weights, None, steps, form, *noise)
        ends = [(out, d_out) for out, d_out in ((y, dy), (h_n, dh_n)) if d_out is not None]
        outs, d_outs = zip(*ends, strict=True)
        arguments = (x, *tensors)
        wanted = [
            (a, d) for a, d in zip(arguments, d_gradients, strict=True) if a is not None and d is not None and len(d)
        ]
        if not wanted:  # nothing depends on them, or they have no numbers, as for T = 0
            return _by_name(_BACKWARD_INPUTS)
        wrt, d_wanted = zip(*wanted, strict=True)
        grads = torch.autograd.grad(outs, wrt, d_outs, create_graph=True, materialize_grads=True)
        inputs = dict(zip(("dy", "dh_n", *_INPUTS), (dy, dh_n, *arguments), strict=False))
        inputs = {name: t for name, t in inputs.items() if t is not None}
        results = torch.autograd.grad(
            grads, list(inputs.values()), d_wanted, create_graph=create_graph, allow_unused=True
        )
    return _by_name(_BACKWARD_INPUTS, **dict(zip(inputs, results, strict=True)))


torch.library.register_autograd("grucore::gru_layer_backward", _double_backward, setup_context=_save_backward)
