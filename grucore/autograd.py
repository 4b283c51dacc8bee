"""The native kernels as torch.autograd functions, for plain tensors.

An operator of `torch.library` (`ops.py`) costs about 100 us per call, more than a small layer takes. These functions
avoid that cost where nothing observes operators: no torch.compile, trace, mode or tensor subclass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from grucore import ops
from grucore.checks import Group
from grucore.kernels import Form, Gradients, State, Steps, Weights, regularised
from grucore.kernels.native import layer as native
from grucore.kernels.noise import new_seed
from grucore.kernels.regularised import Variant, is_noisy


def native_layer(
    x: Tensor,
    state: State,
    groups: Sequence[Group],
    steps: Steps,
    form: Form,
    wants_gradient: bool,
    variant: Variant | None = None,
) -> tuple[Tensor, Tensor]:
    """Runs one layer, with a group of weights per direction: y (T, B, D*H) and h_n (D, B, H)."""
    seed = None if variant is None or not is_noisy(variant) else new_seed(x.device)
    if wants_gradient:
        return _Layer.apply(x, *state, steps, form, variant, seed, *(w for group in groups for w in group))
    weights = [Weights(*group) for group in groups]
    return native.forward_by_direction(x, state, weights, steps, form, None, variant, seed)


def native_step(x: Tensor, h: Tensor, weights: Group, wants_gradient: bool) -> Tensor:
    """The state (B, H) after one step, reset-after form, from x (B, I) and h (B, H)."""
    return _Step.apply(x, h, *weights) if wants_gradient else native.gru_step(x, h, Weights(*weights))


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
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        groups, kept = _groups(weights, len(h0)), native.new_kept(x, h0)
        y, h_n = native.forward_by_direction(x, State(h0, h_reset), groups, steps, form, kept, variant, seed)
        ctx.set_materialize_grads(False)
        ctx.form, ctx.variant, ctx.seed = form, variant, seed
        ctx.save_for_backward(y, kept, x, h0, h_reset, *steps, *weights)
        return y, h_n

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dh_n: Tensor | None) -> tuple[Tensor | None, ...]:
        y, kept, x, h0, h_reset, real, start, *weights = ctx.saved_tensors
        if dy is None and dh_n is None:
            return (None,) * (7 + len(weights))
        groups, steps = _groups(weights, len(h0)), Steps(real, start)
        state, need_dx, noise = State(h0, h_reset), ctx.needs_input_grad[0], (ctx.variant, ctx.seed)
        gradients = _gradients(dy, dh_n, y, kept, x, state, groups, steps, ctx.form, need_dx, *noise)
        *_, w_ih, w_hh, b_ih, b_hh = gradients
        d_weights = [each[d] for d in range(len(h0)) for each in (w_ih, w_hh, b_ih, b_hh)[: len(weights) // len(h0)]]
        return *gradients[:3], None, None, None, None, *d_weights


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, h: Tensor, *weights: Tensor) -> Tensor:
        y = native.gru_step(x, h, Weights(*weights))
        ctx.save_for_backward(y, x, h, *weights)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        y, x, h, *weights = ctx.saved_tensors
        y, x, h, dy = (t.unsqueeze(0) for t in (y, x, h, dy))
        groups, need_dx = _groups(weights, 1), ctx.needs_input_grad[0]
        gradients = _gradients(dy, None, y, None, x, State(h), groups, Steps(), Form(), need_dx)
        dx, dh, _, *d_weights = (None if gradient is None else gradient[0] for gradient in gradients)
        return dx, dh, *d_weights[: len(weights)]


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
) -> Gradients:
    if not torch.is_grad_enabled():
        return native.backward_by_direction(dy, dh_n, y, x, state, groups, steps, form, need_dx, kept, variant, seed)
    stacked = [None if each[0] is None else torch.stack(each) for each in zip(*groups, strict=True)]
    if variant is not None:
        return _differentiable(dy, dh_n, x, state, Weights(*stacked), steps, form, variant, seed)  # type: ignore[arg-type]
    values = (*state, *stacked, *steps, *form, "native", need_dx)
    kept = x.new_empty(0) if kept is None else kept
    dx, dh0, dh_reset, *d_weights = ops.gru_layer_backward(dy, dh_n, y, kept, x, *values)
    return Gradients(dx if need_dx else None, dh0, None if state.h_reset is None else dh_reset, *d_weights)


def _differentiable(
    dy: Tensor | None,
    dh_n: Tensor | None,
    x: Tensor,
    state: State,
    weights: Weights,
    steps: Steps,
    form: Form,
    variant: Variant,
    seed: Tensor | None,
) -> Gradients:
    """Computes the gradients with PyTorch's autograd, so that they can be differentiated again."""
    names = Gradients._fields
    leaves = {name: t for name, t in zip(names, (x, *state, *weights), strict=False) if t is not None}
    leaves = {name: t if t.requires_grad else t.detach().requires_grad_() for name, t in leaves.items()}
    x, h0, h_reset, *rest = (leaves.get(name) for name in names)  # type: ignore[assignment]
    y, h_n, _ = regularised.gru_layer(x, State(h0, h_reset), Weights(*rest), None, steps, form, variant, seed)  # type: ignore[arg-type]
    outs, d_outs = zip(*((out, d) for out, d in ((y, dy), (h_n, dh_n)) if d is not None), strict=True)
    made = torch.autograd.grad(outs, list(leaves.values()), d_outs, create_graph=True, materialize_grads=True)
    found = dict(zip(leaves, made, strict=True))
    return Gradients(*(found.get(name) for name in names))  # type: ignore[arg-type]


def _groups(weights: Sequence[Tensor], directions: int) -> list[Weights]:
    size = len(weights) // directions
    return [Weights(*weights[first : first + size]) for first in range(0, len(weights), size)]
