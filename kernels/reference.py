"""The GRU in plain PyTorch: the equations every other implementation is held to.

    r  = sigmoid(W_ir x + b_ir + W_hr h + b_hr)          reset gate
    z  = sigmoid(W_iz x + b_iz + W_hz h + b_hz)          update gate
    n  = tanh(W_in x + b_in + r * (W_hn h + b_hn))       candidate   (reset_after=True, as torch.nn.GRU and cuDNN)
    h' = (1 - z) * n + z * h                             new state

With `reset_after=False` the reset gate acts before the product, as in the paper:

    n  = tanh(W_in x + b_in + W_hn (r * h) + b_hn)

Source: Cho et al. 2014 (arXiv:1406.1078); the reset-after form and z's sense are those that torch.nn.GRU documents.
Shapes: T time, B batch, I input, H hidden. Any device and floating dtype; differentiable any number of times.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear


class Gates(NamedTuple):
    """Reset gate r, update gate z and candidate n, in that order, all of one shape."""

    r: Tensor
    z: Tensor
    n: Tensor


def gru_gates(
    gx: Tensor,  # (..., 3H), the input side W_ih x + b_ih
    h: Tensor,  # (..., H)
    w_hh: Tensor,  # (3H, H)
    b_hh: Tensor | None = None,  # (3H,)
    reset_after: bool = True,
) -> Gates:
    """The three gates of one step, each of shape (..., H)."""
    hidden_size = w_hh.shape[1]
    gx_r, gx_z, gx_n = gx.chunk(3, -1)
    if reset_after:
        gh_r, gh_z, gh_n = linear(h, w_hh, b_hh).chunk(3, -1)
        r = torch.sigmoid(gx_r + gh_r)
        z = torch.sigmoid(gx_z + gh_z)
        n = torch.tanh(gx_n + r * gh_n)
    else:
        w_rz, w_n = w_hh.split([2 * hidden_size, hidden_size])
        b_rz, b_n = (None, None) if b_hh is None else b_hh.split([2 * hidden_size, hidden_size])
        gh_r, gh_z = linear(h, w_rz, b_rz).chunk(2, -1)
        r = torch.sigmoid(gx_r + gh_r)
        z = torch.sigmoid(gx_z + gh_z)
        n = torch.tanh(gx_n + linear(r * h, w_n, b_n))
    return Gates(r, z, n)


def gru_update(gates: Gates, h: Tensor) -> Tensor:
    """The state after the step: h' = (1 - z) * n + z * h."""
    return (1 - gates.z) * gates.n + gates.z * h


def gru_layer(
    x: Tensor,  # (T, B, I)
    h0: Tensor,  # (B, H)
    w_ih: Tensor,  # (3H, I)
    w_hh: Tensor,  # (3H, H)
    b_ih: Tensor | None = None,  # (3H,)
    b_hh: Tensor | None = None,  # (3H,)
    real: Tensor | None = None,  # (T, B) bool
    start: Tensor | None = None,  # (T, B) bool
    reverse: bool = False,
    reset_after: bool = True,
) -> tuple[Tensor, Tensor, Gates]:
    """One layer in one direction, a step at a time: y (T, B, H), h_n (B, H) and the gates, each (T, B, H).

    The arguments are those of the contract in `kernels/__init__.py`. Gates of steps that are not real are 0.
    """
    if real is not None:
        x = x.masked_fill(~real.unsqueeze(-1), 0)  # what stands in the padding, NaN included, takes no part
    gx = linear(x, w_ih, b_ih)

    def step(t: int, h: Tensor) -> tuple[Tensor, Gates]:
        gates = gru_gates(gx[t], h, w_hh, b_hh, reset_after)
        return gru_update(gates, h), gates

    return unroll(step, len(x), h0, real, start, reverse)


def unroll(
    step: Callable[[int, Tensor], tuple[Tensor, Gates]],
    steps: int,
    h0: Tensor,  # (B, H)
    real: Tensor | None = None,  # (T, B) bool
    start: Tensor | None = None,  # (T, B) bool
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Gates]:
    """What `gru_layer` returns, from a step's function of t and the state before it."""
    if start is not None:
        start = cuts(start, real, reverse)
    h, outputs, gates = h0, [], []
    for t in reversed(range(steps)) if reverse else range(steps):
        if start is not None:
            h = torch.where(start[t].unsqueeze(-1), h0, h)
        h_new, gates_t = step(t, h)
        y_t = h_new
        if real is not None:
            real_t = real[t].unsqueeze(-1)
            h_new = torch.where(real_t, h_new, h)
            y_t = y_t.masked_fill(~real_t, 0)
            gates_t = Gates(*(gate.masked_fill(~real_t, 0) for gate in gates_t))
        h = h_new
        outputs.append(y_t)
        gates.append(gates_t)
    if not outputs:
        empty = h0.new_empty((0, *h0.shape))
        return empty, h0.clone(), Gates(empty, empty, empty)
    if reverse:
        outputs.reverse()
        gates.reverse()
    return torch.stack(outputs), h, Gates(*(torch.stack(gate) for gate in zip(*gates, strict=True)))


def gru_layers(
    x: Tensor,  # (T, B, I)
    h0: Tensor,  # (D, B, H)
    w_ih: Tensor,  # (D, 3H, I)
    w_hh: Tensor,  # (D, 3H, H)
    b_ih: Tensor | None = None,  # (D, 3H)
    b_hh: Tensor | None = None,  # (D, 3H)
    real: Tensor | None = None,  # (T, B) bool
    start: Tensor | None = None,  # (T, B) bool
    reset_after: bool = True,
) -> tuple[Tensor, Tensor, Gates]:
    """All D directions of a layer: y (T, B, D*H), h_n (D, B, H) and the gates, each (D, T, B, H)."""
    results = []
    for d in range(len(h0)):
        b_ih_d, b_hh_d = None if b_ih is None else b_ih[d], None if b_hh is None else b_hh[d]
        results.append(gru_layer(x, h0[d], w_ih[d], w_hh[d], b_ih_d, b_hh_d, real, start, d == 1, reset_after))
    ys, h_ns, gates = zip(*results, strict=True)
    return torch.cat(ys, -1), torch.stack(h_ns), Gates(*(torch.stack(gate) for gate in zip(*gates, strict=True)))


def cuts(start: Tensor, real: Tensor | None, reverse: bool) -> Tensor:
    """Where the state goes back to h0 in the direction of travel: (T, B) bool, True only at real steps.

    `start[t]` cuts the row between t - 1 and t. Forward, the first real step from t on begins anew; in reverse it is
    the first real step before t. A cut with no real step beyond it changes nothing: h_n stays the last real state.
    """
    cut_count = start.long().cumsum(0)
    if real is None:
        real = torch.ones_like(start)
    if reverse:
        cut_count, real = cut_count.flip(0), real.flip(0)
    # A real step begins anew where the number of cuts differs from that at the real step before it.
    steps = torch.arange(len(real), device=real.device).unsqueeze(1)
    last_real = torch.where(real, steps, -1).cummax(0).values.roll(1, 0)
    last_real[:1] = -1
    seen = cut_count.gather(0, last_real.clamp(min=0))
    anew = real & (last_real >= 0) & (seen != cut_count)
    return anew.flip(0) if reverse else anew
