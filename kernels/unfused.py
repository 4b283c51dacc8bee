"""The GRU layer from PyTorch operators: any device and floating dtype, direction by direction.

    gru_forward   `bptt.gru_forward`, on the real steps alone where there are flags
    gru_backward  `bptt.gru_backward`, likewise

The same functions as in `fused.py`. Flags are read on the host (`packing.py`), so where they come with a device that
would have to be waited for, the caller takes `reference.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import bptt
from .packing import Packing, pack
from .schedule import Schedule


def gru_forward(
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
) -> tuple[Tensor, Tensor]:
    """y (T, B, D*H) and h_n (D, B, H) of one layer."""
    steps, batch, _ = x.shape
    directions, _, hidden_size = h0.shape
    x_rows, parts = x.flatten(0, 1), []
    h_n = h0.clone(memory_format=torch.contiguous_format)
    for d in range(directions):
        weights = (w_ih[d], w_hh[d], None if b_ih is None else b_ih[d], None if b_hh is None else b_hh[d])
        packing = _pack(real, start, d)
        if packing is None:
            schedule = Schedule([batch] * steps, reverse=d == 1)
            y = bptt.gru_forward(x_rows, h0[d], *weights, schedule, reset_after)
            if steps:
                h_n[d] = y[:batch] if d == 1 else y[len(y) - batch :]
        else:
            schedule = Schedule(packing.sizes)
            packed = bptt.gru_forward(x_rows[packing.position], h0[d, packing.row], *weights, schedule, reset_after)
            y = x.new_zeros(steps * batch, hidden_size).index_copy_(0, packing.position, packed)
            h_n[d].index_copy_(0, packing.ended, packed[packing.last_step])
        parts.append(y)
    y = parts[0] if directions == 1 else torch.cat(parts, 1)
    return y.view(steps, batch, directions * hidden_size), h_n


def gru_backward(
    dy: Tensor | None,  # (T, B, D*H)
    dh_n: Tensor | None,  # (D, B, H)
    x: Tensor,
    h0: Tensor,
    y: Tensor,  # (T, B, D*H)
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    real: Tensor | None,
    start: Tensor | None,
    reset_after: bool,
    precision: str,
    need_dx: bool,
) -> tuple[Tensor | None, ...]:
    """dx (None unless needed), dh0, dw_ih, dw_hh, db_ih and db_hh (the last two also without biases)."""
    steps, batch, input_size = x.shape
    directions, _, hidden_size = h0.shape
    x_rows, total_dx = x.flatten(0, 1), None
    others: list[tuple[Tensor, ...]] = []
    for d in range(directions):
        weights = (w_ih[d], w_hh[d], None if b_ih is None else b_ih[d], None if b_hh is None else b_hh[d])
        columns = slice(d * hidden_size, (d + 1) * hidden_size)
        y_d = y[..., columns].flatten(0, 1)
        dy_d = None if dy is None else dy[..., columns].flatten(0, 1)
        dh_d = None if dh_n is None else dh_n[d]
        packing = _pack(real, start, d)
        if packing is None:
            schedule = Schedule([batch] * steps, reverse=d == 1)
            grads = bptt.gru_backward(dy_d, dh_d, x_rows, h0[d], y_d, *weights, schedule, reset_after, need_dx)
        else:
            grads = _backward_packed(packing, dy_d, dh_d, x_rows, h0[d], y_d, weights, reset_after, need_dx)
        dx = grads[0]
        others.append(grads[1:])
        if dx is not None:
            total_dx = dx if total_dx is None else total_dx.add_(dx)
    dx = None if total_dx is None else total_dx.view(steps, batch, input_size)
    return dx, *(torch.stack(grads) for grads in zip(*others, strict=True))


def _pack(real: Tensor | None, start: Tensor | None, direction: int) -> Packing | None:
    return None if real is None and start is None else pack(real, start, reverse=direction == 1)


def _backward_packed(
    packing: Packing,
    dy: Tensor | None,
    dh_n: Tensor | None,
    x: Tensor,
    h0: Tensor,
    y: Tensor,
    weights: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    reset_after: bool,
    need_dx: bool,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One direction's gradients from its real steps alone; (T*B, ...) and (B, ...) in and out."""
    d_last = None
    if dh_n is not None:
        d_last = dh_n.new_zeros(len(packing.row), dh_n.shape[1])
        d_last[packing.last_segment] = dh_n[packing.ended]
    packed_dy = None if dy is None else dy[packing.position]
    packed_x, packed_y = x[packing.position], y[packing.position]
    packed_dx, d_first, dw_ih, dw_hh, db_ih, db_hh = bptt.gru_backward(
        packed_dy, d_last, packed_x, h0[packing.row], packed_y, *weights, Schedule(packing.sizes), reset_after, need_dx
    )
    # A row without a real step ends where it began.
    dh0 = torch.zeros_like(h0) if dh_n is None else dh_n.index_fill(0, packing.ended, 0)
    dh0.index_add_(0, packing.row, d_first)
    dx = None if packed_dx is None else x.new_zeros(x.shape).index_copy_(0, packing.position, packed_dx)
    return dx, dh0, dw_ih, dw_hh, db_ih, db_hh
