"""The contract in PyTorch operators, one recurrence after the other, on the steps that are not padding.

Flags are read on the host (`packing.py`): on another device that would make the host wait, so that callers with flags
there take `reference.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import Form, Gradients, State, Steps, Weights
from ..packing import Packing, first_states, gradients_of_first_states, gradients_of_last_states, pack
from . import bptt
from .schedule import Schedule


def gru_forward(x: Tensor, state: State, weights: Weights, steps: Steps, form: Form) -> tuple[Tensor, Tensor]:
    """y (T, B, D*H) and h_n (D, B, H) of one layer."""
    length, batch, _ = x.shape
    D, _, hidden_size = state.h0.shape
    x_rows, parts = x.flatten(0, 1), []
    h_n = state.h0.clone(memory_format=torch.contiguous_format)
    packings = _packings(steps, form, D)
    for d, packing in enumerate(packings):
        if packing is None:
            schedule = Schedule([batch] * length, reverse=d >= form.heads)
            y = bptt.gru_forward(x_rows, state.h0[d], weights.of(d), schedule, form.reset_after)
            if length:
                h_n[d] = y[:batch] if d >= form.heads else y[len(y) - batch :]
        else:
            packed_x, h0, schedule = (
                x_rows[packing.position],
                first_states(state, packing.ends, d),
                Schedule(packing.sizes),
            )
            packed_y = bptt.gru_forward(packed_x, h0, weights.of(d), schedule, form.reset_after)
            y = x.new_zeros(length * batch, hidden_size).index_copy_(0, packing.position, packed_y)
            h_n[d].index_copy_(0, packing.ends.ended, packed_y[packing.last_step])
        parts.append(y)
    y = parts[0] if D == 1 else torch.cat(parts, 1)
    return y.view(length, batch, D * hidden_size), h_n


def gru_backward(
    dy: Tensor | None,  # (T, B, D*H)
    dh_n: Tensor | None,  # (D, B, H)
    y: Tensor,  # (T, B, D*H)
    x: Tensor,
    state: State,
    weights: Weights,
    steps: Steps,
    form: Form,
    need_dx: bool,
) -> Gradients:
    """The gradients of one layer."""
    hidden_size = state.h0.shape[2]
    x_rows, dx = x.flatten(0, 1), None
    recurrences = []
    for d, packing in enumerate(_packings(steps, form, len(state.h0))):
        columns = slice(d * hidden_size, (d + 1) * hidden_size)
        y_d = y[..., columns].flatten(0, 1)
        dy_d = None if dy is None else dy[..., columns].flatten(0, 1)
        dh_d = None if dh_n is None else dh_n[d]
        if packing is None:
            schedule = Schedule([x.shape[1]] * len(x), reverse=d >= form.heads)
            grads = bptt.gru_backward(
                dy_d, dh_d, x_rows, state.h0[d], y_d, weights.of(d), schedule, form.reset_after, need_dx
            )
            if state.h_reset is not None:
                grads = grads._replace(h_reset=torch.zeros_like(grads.h0))
        else:
            grads = _backward_packed(packing, dy_d, dh_d, x_rows, state, y_d, weights.of(d), d, form, need_dx)
        recurrences.append(grads._replace(x=None))
        if grads.x is not None:
            dx = grads.x if dx is None else dx.add_(grads.x)
    stacked = (None if parts[0] is None else torch.stack(parts) for parts in zip(*recurrences, strict=True))
    return Gradients(*stacked)._replace(x=None if dx is None else dx.view(x.shape))  # type: ignore[arg-type]


def _packings(steps: Steps, form: Form, D: int) -> list[Packing | None]:
    """What each recurrence reads; those of a direction read the same."""
    of_directions = [pack(steps, reverse) for reverse in (False, True)[: D // form.heads]]
    return [packing for packing in of_directions for _ in range(form.heads)]


def _backward_packed(
    packing: Packing,
    dy: Tensor | None,  # (T*B, H)
    dh_n: Tensor | None,  # (B, H)
    x: Tensor,  # (T*B, I)
    state: State,
    y: Tensor,  # (T*B, H)
    weights: Weights,
    d: int,
    form: Form,
    need_dx: bool,
) -> Gradients:
    """The gradients of recurrence d, without D, from the steps that are not padding."""
    d_last = None if dh_n is None else gradients_of_last_states(dh_n, packing.ends)
    packed_dy = None if dy is None else dy[packing.position]
    packed_x, packed_y, h0 = x[packing.position], y[packing.position], first_states(state, packing.ends, d)
    grads = bptt.gru_backward(
        packed_dy, d_last, packed_x, h0, packed_y, weights, Schedule(packing.sizes), form.reset_after, need_dx
    )
    dh0, dh_reset = gradients_of_first_states(grads.h0, dh_n, state, packing.ends)
    dx = None if grads.x is None else x.new_zeros(x.shape).index_copy_(0, packing.position, grads.x)
    return grads._replace(x=dx, h0=dh0, h_reset=dh_reset)
