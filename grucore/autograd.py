"""A layer on the native kernels for plain tensors, past PyTorch's dispatcher: what `ops.gru_layer` does, sooner.

An operator of `torch.library` costs some 100 us a call, more than a small layer takes. Where nothing looks at the
operators (no torch.compile, trace, mode or tensor subclass), a `torch.autograd.Function` says as much, and without a
gradient nothing needs to be said.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from grucore import ops
from grucore.checks import Group
from grucore.kernels import Form, Gradients, State, Steps, Weights
from grucore.kernels.native import layer as native


def native_layer(
    x: Tensor, state: State, groups: Sequence[Group], steps: Steps, form: Form, wants_gradient: bool
) -> tuple[Tensor, Tensor]:
    """y (T, B, D*H) and h_n (D, B, H) of one layer, from a group of weights for each direction."""
    if wants_gradient:
        return _Layer.apply(x, *state, steps, form, *(w for group in groups for w in group))
    return native.forward_by_direction(x, state, [Weights(*group) for group in groups], steps, form)


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, h0: Tensor, h_reset: Tensor | None, steps: Steps, form: Form, *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        size = len(weights) // len(h0)
        kept = native.new_kept(x, h0)
        y, h_n = native.forward_by_direction(x, State(h0, h_reset), _groups(weights, size), steps, form, kept)
        ctx.set_materialize_grads(False)
        ctx.form, ctx.size = form, size
        ctx.save_for_backward(y, kept, x, h0, h_reset, *steps, *weights)
        return y, h_n

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dh_n: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        y, kept, x, h0, h_reset, real, start, *weights = ctx.saved_tensors
        if dy is None and dh_n is None:
            return (None,) * (5 + len(weights))
        need_dx, state, steps = ctx.needs_input_grad[0], State(h0, h_reset), Steps(real, start)
        if torch.is_grad_enabled():  # gradients of gradients
            stacked = Weights(*(torch.stack(weights[i :: ctx.size]) for i in range(ctx.size)))
            values = (*state, *stacked, *steps, *ctx.form, "native", need_dx)
            gradients = Gradients(*ops.gru_layer_backward(dy, dh_n, y, kept, x, *values))
        else:
            groups = _groups(weights, ctx.size)
            gradients = native.backward_by_direction(
                dy, dh_n, y, x, state, groups, steps, ctx.form, need_dx, kept
            )
        dx, dh0, dh_reset, *d_weights = gradients
        by_direction = [gradient[d] for d in range(len(h0)) for gradient in d_weights[: ctx.size]]
        return dx if need_dx else None, dh0, None if h_reset is None else dh_reset, None, None, *by_direction


def _groups(weights: Sequence[Tensor], size: int) -> list[Weights]:
    return [Weights(*weights[first : first + size]) for first in range(0, len(weights), size)]
