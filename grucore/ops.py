"""One GRU layer with all its directions as a `torch.library` operator: fake kernels, first and second order gradients.

torch.compile and torch.export see `grucore::gru_layer` as one opaque node, whatever T is. Its backward pass is a
separate operator, `grucore::gru_layer_backward`, which has a gradient of its own: second order gradients come from
`equations.py`, the first order is hand-written. The arguments are the flattened fields of the contract's values;
`kept` holds intermediate results that the native kernels save for backward, and is empty for the others. The options
of `regularised.py` are those that the backend has; with a seed, dropout and zoneout are random.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grucore import compat, equations, flops
from grucore.errors import InputError
from grucore.kernels import Form, Gradients, State, Steps, Weights
from grucore.kernels.native import layer as native
from grucore.kernels.native.library import UNAVAILABLE
from grucore.kernels.regularised import Gains, Variant, acting, drawn_seed


def layer(
    x: Tensor,
    state: State,
    weights: Weights,
    gains: Gains | None,
    steps: Steps,
    form: Form,
    backend: str,
    keep: bool = False,
    variant: Variant | None = None,
) -> tuple[Tensor, Tensor]:
    """Runs one layer: y (T, B, D*H) and h_n (D, B, H). `keep` saves what the backend can save for backward."""
    if not torch.compiler.is_compiling():
        flops.register()
    seed = drawn_seed(variant, x.device)
    fields = (*state, *weights, *(gains or (None, None)), *steps, seed, *form, *options_of(variant))
    y, h_n, _ = gru_layer(x, *fields, backend, keep)
    return y, h_n


def options_of(variant: Variant | None) -> tuple[float, float, str, str]:
    """The fields of a variant that an operator takes; gains and a seed imply the others."""
    dropout, zoneout, _, activation, recurrent_activation, _ = variant or Variant()
    return dropout, zoneout, activation, recurrent_activation


class _Values(NamedTuple):
    """The contract's values, and what `regularised.py` adds."""

    state: State
    weights: Weights
    gains: Gains | None
    steps: Steps
    form: Form
    variant: Variant | None
    seed: Tensor | None

    def by_direction(self) -> tuple[list[Weights], list[Gains] | None]:
        """The weights and the gains of each direction, without D."""
        directions = range(len(self.state.h0))
        gains = None if self.gains is None else [Gains(*(gain[d] for gain in self.gains)) for d in directions]
        return [self.weights.of(d) for d in directions], gains


def _values(fields: Sequence) -> _Values:
    """The values from an operator's arguments between x and backend."""
    seed, (dropout, zoneout, activation, recurrent_activation) = fields[10], fields[14:18]
    gains = None if fields[6] is None else Gains(*fields[6:8])
    variant = Variant(dropout, zoneout, gains is not None, activation, recurrent_activation, seed is not None)
    state, weights, steps, form = State(*fields[:2]), Weights(*fields[2:6]), Steps(*fields[8:10]), Form(*fields[11:14])
    return _Values(state, weights, gains, steps, form, variant if acting(variant) else None, seed)


# The operators' arguments between x and the last: the fields of the contract's values, and what `regularised.py` adds.
_FIELDS = (
    "Tensor h0, Tensor? h_reset, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? gain_x, Tensor? gain_h, "
    "Tensor? real, Tensor? start, Tensor? seed, bool reset_after, str precision, SymInt heads, "
    "float recurrent_dropout, float zoneout, str activation, str recurrent_activation, str backend"
)


def _operator(arguments: str, results: int) -> Callable[[Callable], Any]:
    """Registers a function as the operator `grucore::NAME`; all its results are tensors.

    Like `torch.library.custom_op`, but without importing torch._dynamo, which takes a second or two, in the first call.
    """

    def registered(function: Callable) -> Any:
        name = f"grucore::{function.__name__}"
        schema = f"({arguments}) -> ({', '.join(['Tensor'] * results)})"
        torch.library.define(name, schema, tags=torch.Tag.pt2_compliant_tag)
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

    return registered


@functools.cache
def kernels(backend: str, module: str = "layer") -> Any:
    """A module of an implementation, which is imported on its first use."""
    return import_module(f"grucore.kernels.{backend}.{module}")


@_operator(f"Tensor x, {_FIELDS}, bool keep", 3)
def gru_layer(x: Tensor, *fields: Any) -> tuple[Tensor, Tensor, Tensor]:
    """y, h_n and kept.

    Raises:
        InputError: sizes or dtypes do not fit, as in a trace, which runs without the checks of a call.
        RuntimeError: a program was saved with native kernels, and there are none here.
    """
    *given, backend, keep = fields
    values = _values(given)
    if backend == "native" and (obstacle := UNAVAILABLE or (not x.is_cpu and f"x is on {x.device}")):
        raise RuntimeError(f"a program that was saved where the native kernels run cannot run here: {obstacle}")
    _check(x, *given[:10])
    kept = _new_kept(x, values.state.h0, values.gains, backend, keep)
    *_, steps, form, variant, seed = values
    if backend == "native":
        groups, gains = values.by_direction()
        held = kept if len(kept) else None
        y, h_n = native.forward_by_direction(x, values.state, groups, steps, form, held, variant, seed, gains)
    else:
        noise = () if variant is None else (variant, seed)
        y, h_n = kernels(backend).gru_forward(x, values.state, values.weights, steps, form, *noise)
    return owner(y), owner(h_n), kept


def _check(x: Tensor, h0: Tensor, *others: Tensor | None) -> None:
    T, B, I = x.shape  # noqa: E741
    D, _, H = h0.shape
    gates = (D, 3 * H)
    shapes = (D, B, H), (D, B, H), (*gates, I), (*gates, H), gates, gates, gates, gates, (T, B), (T, B)
    for name, tensor, shape in zip(_INPUTS[1:], (h0, *others), shapes, strict=False):
        if tensor is None:
            continue
        dtype = torch.bool if name in ("real", "start") else tensor.dtype if name.startswith("gain") else x.dtype
        if tensor.shape != shape or tensor.dtype is not dtype:
            raise InputError(
                f"a layer that reads {x.dtype} of shape {tuple(x.shape)} needs {name} of {dtype} and shape {shape}, "
                f"got {tensor.dtype} of {tuple(tensor.shape)}"
            )


def _new_kept(x: Tensor, h0: Tensor, gains: Any, backend: str, keep: bool) -> Tensor:
    return native.new_kept(x, h0, gains is not None) if backend == "native" and keep else x.new_empty(0)


def owner(t: Tensor) -> Tensor:
    """The same storage as a non-view: FSDP2 warns about views, and autograd forbids changing them in place."""
    return t.new_empty(0).set_(t.untyped_storage(), t.storage_offset(), t.shape, t.stride())


@torch.library.impl("grucore::gru_layer", "Meta")
def _(x, h0, h_reset, w_ih, w_hh, b_ih, b_hh, gain_x, *others):  # type: ignore[no-untyped-def]
    y = x.new_empty(x.shape[0], x.shape[1], h0.shape[0] * h0.shape[2])
    return y, h0.new_empty(h0.shape), _new_kept(x, h0, gain_x, *others[-2:])


@_operator(f"Tensor? dy, Tensor? dh_n, Tensor y, Tensor kept, Tensor x, {_FIELDS}, bool need_dx", 9)
def gru_layer_backward(
    dy: Tensor | None, dh_n: Tensor | None, y: Tensor, kept: Tensor, x: Tensor, *fields: Any
) -> tuple[Tensor, ...]:
    """The fields of `Gradients` and of `Gains`; those that are None are empty."""
    *given, backend, need_dx = fields
    values = _values(given)
    *_, steps, form, variant, seed = values
    d_gains = None
    if backend == "native":
        groups, gains = values.by_direction()
        others = (steps, form, need_dx, kept if len(kept) else None, variant, seed, gains)
        gradients, d_gains = native.backward_by_direction(dy, dh_n, y, x, values.state, groups, *others)
    else:
        noise = () if variant is None else (variant, seed)
        of_layer = values.state, values.weights, steps, form, need_dx
        gradients = kernels(backend).gru_backward(dy, dh_n, y, x, *of_layer, *noise)
    if values.gains is not None and d_gains is not None:
        d_gains = Gains(*(d.to(gain.dtype) for d, gain in zip(d_gains, values.gains, strict=True)))
    found = (*gradients, *(d_gains or (None, None)))
    return tuple(x.new_empty(0) if gradient is None else gradient for gradient in found)


@torch.library.impl("grucore::gru_layer_backward", "Meta")
def _(dy, dh_n, y, kept, x, h0, h_reset, w_ih, w_hh, b_ih, b_hh, gain_x, gain_h, *others):  # type: ignore[no-untyped-def]
    *_, need_dx = others
    bias = w_ih.shape[:2]
    dx, dh_reset = x.shape if need_dx else (0,), (0,) if h_reset is None else h0.shape
    shapes = Gradients(dx, h0.shape, dh_reset, w_ih.shape, w_hh.shape, bias, bias)
    d_gains = (x.new_empty(0) if gain is None else gain.new_empty(gain.shape) for gain in (gain_x, gain_h))
    return *(x.new_empty(shape) for shape in shapes), *d_gains


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
        gradients, d_gains = equations.gradients(dy, dh_n, x, *_values((*fields, *ctx.options)))
    else:
        found = gru_layer_backward(dy, dh_n, *saved, *ctx.options, need_dx)
        gradients, d_gains = Gradients(*found[:-2]), Gains(*found[-2:])
    gain_x, gain_h = d_gains or (None, None)
    by_name = gradients._asdict() | {"gain_x": gain_x, "gain_h": gain_h}
    y_and_tensors = dict(zip(("y", "kept", *_INPUTS), saved, strict=False))
    wanted = {name: g for name, g in by_name.items() if y_and_tensors[name] is not None and (need_dx or name != "x")}
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
        y, h_n, _ = equations.layer(x, *_values((*tensors, real, start, seed, *ctx.options)))
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
