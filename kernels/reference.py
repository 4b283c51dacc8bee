"""The GRU in plain PyTorch: the equations that every other implementation is tested against.

    r  = sigmoid(W_ir x + b_ir + W_hr h + b_hr)          reset gate
    z  = sigmoid(W_iz x + b_iz + W_hz h + b_hz)          update gate
    n  = tanh(W_in x + b_in + r * (W_hn h + b_hn))       candidate   (reset_after=True, as torch.nn.GRU and cuDNN)
    h' = (1 - z) * n + z * h                             new state

With `reset_after=False` the reset gate acts before the product, as in the paper:

    n  = tanh(W_in x + b_in + W_hn (r * h) + b_hn)

Source: Cho et al. 2014 (arXiv:1406.1078); the reset-after form and the meaning of z follow torch.nn.GRU's own page.
Shapes: T time, B batch, I input, H hidden. Any device and floating dtype; differentiable any number of times.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear

from . import Form, Gates, State, Steps, Weights


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
    state: State,
    weights: Weights,
    steps: Steps,
    form: Form,
) -> tuple[Tensor, Tensor, Gates]:
    """One layer, step by step: y (T, B, D*H), h_n (D, B, H) and the gates, each (D, T, B, H), 0 at padding.

    The arguments are those of the contract in `kernels/__init__.py`.
    """
    x = without_padding(x, steps)

    def step_of(d: int) -> Step:
        w_ih, w_hh, b_ih, b_hh = weights.of(d)
        gx = linear(x, w_ih, b_ih).unbind()  # has one gradient; each gx[t] would have one as large as gx

        def step(t: int, h: Tensor) -> tuple[Tensor, Gates]:
            gates = gru_gates(gx[t], h, w_hh, b_hh, form.reset_after)
            return gru_update(gates, h), gates

        return step

    return unroll(step_of, len(x), state, steps, form.heads)


Step = Callable[[int, Tensor], tuple[Tensor, Gates]]  # (t, state before) -> (state after, gates)


def unroll(
    step_of: Callable[[int], Step], length: int, state: State, steps: Steps, heads: int = 1
) -> tuple[Tensor, Tensor, Gates]:
    """Runs a step function over all steps; `step_of(d)` is that of recurrence d. Returns as `gru_layer`."""
    recurrences = [_unroll(step_of(d), length, state, steps, d, d >= heads) for d in range(len(state.h0))]
    ys, h_ns, gates = zip(*recurrences, strict=True)
    return torch.cat(ys, -1), torch.stack(h_ns), Gates(*(torch.stack(gate) for gate in zip(*gates, strict=True)))


def _unroll(step: Step, length: int, state: State, steps: Steps, d: int, reverse: bool) -> tuple[Tensor, Tensor, Gates]:
    """One recurrence: y (T, B, H), h_n (B, H) and the gates, each (T, B, H)."""
    real, h = steps.real, state.h0[d]
    h_reset = h if state.h_reset is None else state.h_reset[d]
    start = None if steps.start is None else cuts(steps.start, real, reverse)
    outputs, gates = [], []
    for t in reversed(range(length)) if reverse else range(length):
        if start is not None:
            h = torch.where(start[t].unsqueeze(-1), h_reset, h)
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
        empty = h.unsqueeze(0)[:0]  # of h0, so that its gradient is 0
        return empty, h.clone(), Gates(empty, empty, empty)
    if reverse:
        outputs.reverse()
        gates.reverse()
    return torch.stack(outputs), h, Gates(*(torch.stack(gate) for gate in zip(*gates, strict=True)))


def without_padding(x: Tensor, steps: Steps) -> Tensor:
    """x (T, B, I) with zeros at padding, so that values there, even NaN, have no effect."""
    return x if steps.real is None else x.masked_fill(~steps.real.unsqueeze(-1), 0)


def cuts(start: Tensor, real: Tensor | None, reverse: bool) -> Tensor:
    """The steps that begin from h_reset in the direction of travel: (T, B) bool, True only at non-padding steps.

    `start[t]` splits the row between t - 1 and t. Forward, the first non-padding step from t on begins from h_reset; in
    reverse it is the first one before t. A reset followed only by padding has no effect on h_n.
    """
    count = start.long().cumsum(0)
    if len(count) == 0:
        return start
    entry = count[-1] if reverse else torch.zeros_like(count[0])  # the count before the row is entered
    if real is None:
        real = torch.ones_like(start)
    if reverse:
        count, real = count.flip(0), real.flip(0)
    # A step begins from h_reset if the number of resets differs from that at the non-padding step before it.
    t = torch.arange(len(real), device=real.device).unsqueeze(1)
    last_real = torch.where(real, t, -1).cummax(0).values.roll(1, 0)
    last_real[:1] = -1
    seen = torch.where(last_real < 0, entry, count.gather(0, last_real.clamp(min=0)))
    begins = real & (seen != count)
    return begins.flip(0) if reverse else begins
