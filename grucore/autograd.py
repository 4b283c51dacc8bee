"""The kernels as torch.autograd functions, for plain tensors.

An operator of `torch.library` (`ops.py`) costs about 100 us per call, more than a small layer takes. These functions
avoid that cost where nothing observes operators: no torch.compile, trace, mode or tensor subclass. Those of the native
kernels take each direction's parameters by themselves, that of the others takes them stacked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from grucore import compat, equations, ops
from grucore.checks import Group
from grucore.kernels import Form, Gradients, State, Steps, Weights
from grucore.kernels.native import layer as native
from grucore.kernels.regularised import Gains, Variant, drawn_seed


def native_layer(
    x: Tensor,
    state: State,
    groups: Sequence[Group],
    steps: Steps,
    form: Form,
    wants_gradient: bool,
    variant: Variant | None = None,
    gains: Sequence[Group] | None = None,
) -> tuple[Tensor, Tensor]:
    """Runs one layer, with a group of weights, and of gains, per direction: y (T, B, D*H) and h_n (D, B, H)."""
    seed = drawn_seed(variant, x.device)
    if wants_gradient:
        parameters = [w for group in (*groups, *(gains or ())) for w in group]
        return _Layer.apply(x, *state, steps, form, variant, seed, *parameters)
    weights, norms = [Weights(*group) for group in groups], None if gains is None else [Gains(*pair) for pair in gains]
    return native.forward_by_direction(x, state, weights, steps, form, None, variant, seed, norms)


def native_step(
    x: Tensor,
    h: Tensor,
    weights: Group,
    wants_gradient: bool,
    variant: Variant | None = None,
    gains: Group | None = None,
) -> Tensor:
    """The state (B, H) after one step, reset-after form, from x (B, I) and h (B, H); a variant without noise."""
    if wants_gradient:
        return _Step.apply(x, h, variant, *weights, *(gains or ()))
    return native.gru_step(x, h, Weights(*weights), variant, None if gains is None else Gains(*gains))


def layer(
    x: Tensor,
    state: State,
    weights: Weights,
    steps: Steps,
    form: Form,
    backend: str,
    wants_gradient: bool,
    variant: Variant | None = None,
) -> tuple[Tensor, Tensor]:
    """Runs one layer as `ops.layer` does, with "eager" or "triton"."""
    noise: tuple[Any, ...] = () if variant is None else (variant, drawn_seed(variant, x.device))
    if wants_gradient:
        return _StackedLayer.apply(x, *state, *weights, *steps, form, backend, noise)
    return ops.kernels(backend).gru_forward(x, state, weights, steps, form, *noise)


class _StackedLayer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        *tensors, form, backend, noise = others
        values = State(*tensors[:2]), Weights(*tensors[2:6]), Steps(*tensors[6:]), form
        y, h_n = map(ops.owner, ops.kernels(backend).gru_forward(x, *values, *noise))
        ctx.set_materialize_grads(False)
        ctx.form, ctx.backend, ctx.noise = form, backend, noise
        ctx.save_for_backward(y, x, *tensors)
        return y, h_n

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dh_n: Tensor | None) -> tuple[Tensor | None, ...]:
        y, x, *tensors = ctx.saved_tensors
        if dy is None and dh_n is None:
            return (None,) * 12
        need_dx = ctx.needs_input_grad[0]
        variant, seed = ctx.noise or (None, None)
        if compat.backward_is_transformed(dy, dh_n):
            state, weights = State(*tensors[:2]), Weights(*tensors[2:6])
            found = equations.gradients(dy, dh_n, x, state, weights, None, Steps(*tensors[6:]), ctx.form, variant, seed)
            gradients = found[0]
        elif torch.is_grad_enabled() or torch.compiler.is_compiling():  # an operator can be differentiated, and traced
            fields = (*tensors[:6], None, None, *tensors[6:], seed, *ctx.form, *ops.options_of(variant))
            *gradients, _, _ = ops.gru_layer_backward(dy, dh_n, y, x.new_empty(0), x, *fields, ctx.backend, need_dx)
        else:
            values = State(*tensors[:2]), Weights(*tensors[2:6]), Steps(*tensors[6:]), ctx.form
            with compat.without_autocast(x):
                gradients = ops.kernels(ctx.backend).gru_backward(dy, dh_n, y, x, *values, need_dx, *ctx.noise)
        wanted = (need_dx, *(t is not None for t in tensors[:6]))
        return *(g if is_wanted else None for g, is_wanted in zip(gradients, wanted, strict=True)), *(None,) * 5


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        h0: Tensor,
        h_reset: Tensor | None,
        steps: Steps,
        form: Form,
        variant: Variant | None,
        seed: Tensor | None,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        groups, gains = _groups(parameters, len(h0), variant)
        kept = native.new_kept(x, h0, gains is not None)
        y, h_n = native.forward_by_direction(x, State(h0, h_reset), groups, steps, form, kept, variant, seed, gains)
        ctx.set_materialize_grads(False)
        ctx.form, ctx.variant, ctx.seed = form, variant, seed
        ctx.save_for_backward(y, kept, x, h0, h_reset, *steps, *parameters)
        return y, h_n

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dh_n: Tensor | None) -> tuple[Tensor | None, ...]:
        y, kept, x, h0, h_reset, real, start, *parameters = ctx.saved_tensors
        if dy is None and dh_n is None:
            return (None,) * (7 + len(parameters))
        D, need_dx, noise = len(h0), ctx.needs_input_grad[0], (ctx.variant, ctx.seed)
        groups, gains = _groups(parameters, D, ctx.variant)
        state, steps = State(h0, h_reset), Steps(real, start)
        gradients, d_gains = _gradients(dy, dh_n, y, kept, x, state, groups, steps, ctx.form, need_dx, *noise, gains)
        dx, dh0, dh_reset, w_ih, w_hh, b_ih, b_hh = gradients  # Dynamo of 2.8 cannot slice a NamedTuple
        count = 2 if groups[0].b_ih is None else 4
        d_weights = [each[d] for d in range(D) for each in (w_ih, w_hh, b_ih, b_hh)[:count]]
        d_weights += [each[d] for d in range(D) for each in d_gains or ()]
        return dx, dh0, dh_reset, None, None, None, None, *d_weights


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, h: Tensor, variant: Variant | None, *parameters: Tensor) -> Tensor:
        (weights,), gains = _groups(parameters, 1, variant)
        y = native.gru_step(x, h, weights, variant, None if gains is None else gains[0])
        ctx.variant = variant
        ctx.save_for_backward(y, x, h, *parameters)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        y, x, h, *parameters = ctx.saved_tensors
        y, x, h, dy = (t.unsqueeze(0) for t in (y, x, h, dy))
        need_dx, (groups, gains) = ctx.needs_input_grad[0], _groups(parameters, 1, ctx.variant)
        steps, form, variant = Steps(), Form(), ctx.variant
        gradients, d_gains = _gradients(
            dy, None, y, None, x, State(h), groups, steps, form, need_dx, variant, gains=gains
        )
        dx, dh, _, *d_weights = (None if gradient is None else gradient[0] for gradient in gradients)
        count = 2 if groups[0].b_ih is None else 4
        return dx, dh, None, *d_weights[:count], *(gain[0] for gain in d_gains or ())


def _gradients(
    dy: Tensor | None,
    dh_n: Tensor | None,
    y: Tensor,
    kept: Tensor | None,
    x: Tensor,
    state: State,
    groups: Sequence[Weights],
    steps: Steps,
    form: Form,
    need_dx: bool,
    variant: Variant | None = None,
    seed: Tensor | None = None,
    gains: Sequence[Gains] | None = None,
) -> tuple[Gradients, Gains | None]:
    is_transformed = compat.backward_is_transformed(dy, dh_n)
    is_traced = torch.compiler.is_compiling()  # by compiled autograd
    if not (torch.is_grad_enabled() or is_transformed or is_traced):
        others = (steps, form, need_dx, kept, variant, seed, gains)
        return native.backward_by_direction(dy, dh_n, y, x, state, groups, *others)
    weights, norms = Weights(*stacked(groups)), None if gains is None else Gains(*stacked(gains))
    if is_transformed:
        return equations.gradients(dy, dh_n, x, state, weights, norms, steps, form, variant, seed)
    fields = (*state, *weights, *(norms or (None, None)), *steps, seed, *form, *ops.options_of(variant))
    kept = x.new_empty(0) if kept is None else kept
    dx, dh0, dh_reset, *found = ops.gru_layer_backward(dy, dh_n, y, kept, x, *fields, "native", need_dx)
    d_weights, d_gains = found[:4], None if norms is None else Gains(*found[4:])
    return Gradients(dx if need_dx else None, dh0, None if state.h_reset is None else dh_reset, *d_weights), d_gains


def stacked(groups: Sequence[Sequence[Tensor | None]]) -> list[Any]:
    """The tensors of D directions' groups, each with D in front: a view for one direction, a small copy for two."""
    tensors: Any = zip(*groups, strict=True)
    return [
        None if each[0] is None else each[0].unsqueeze(0) if len(each) == 1 else torch.stack(each) for each in tensors
    ]


def _groups(
    parameters: Sequence[Tensor], directions: int, variant: Variant | None
) -> tuple[list[Weights], list[Gains] | None]:
    """The weights of each direction, and the gains, which come after all of them."""
    count = len(parameters)
    gains = None
    if variant is not None and variant.layer_norm:
        count -= 2 * directions
        gains = [Gains(*parameters[first : first + 2]) for first in range(count, len(parameters), 2)]
    size = count // directions
    return [Weights(*parameters[first : first + size]) for first in range(0, count, size)], gains
