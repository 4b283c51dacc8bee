"""The contract in Triton: recurrences between matrix products, all directions in one grid, chunk by chunk of time.

    gru_forward   one product for the input side of a chunk, then `_gru_forward_kernel`
    gru_backward  chunks from the end: two products for the gates, `_gru_derivatives_kernel`, `_gru_backward_kernel`,
                  `_gru_gate_gradients_kernel`, then one product for each gradient

Both take a variant with recurrent dropout and zoneout only, and the seed of its masks, which backward makes again.

Only x and y are saved for backward. All other memory is that of one chunk (`launch.CHUNKS`), but for dx, which several
recurrences add up in float32. Without atomics, results are bitwise repeatable. There is no host-device synchronisation.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from .. import Form, Gradients, State, Steps, Weights
from ..regularised import Variant
from .backward import _gru_backward_kernel
from .derivatives import _gru_derivatives_kernel, _gru_gate_gradients_kernel
from .flags import began_at, first_states, real_before, states_before, tile_spans
from .forward import _gru_forward_kernel
from .launch import Chunk, Launch
from .plan import current, kind
from .step import gru_step

_SWITCH = threading.Lock()


def gru_forward(
    x: Tensor,
    state: State,
    weights: Weights,
    steps: Steps,
    form: Form,
    variant: Variant | None = None,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y (T, B, D*H) and h_n (D, B, H) of one layer; `form.reset_after` is True."""
    if len(x) == len(state.h0) == 1 and steps.real is None and variant is None:
        h = state.h0[0]
        if steps.start is not None and state.h_reset is not None:
            h = torch.where(steps.start[0].unsqueeze(1), state.h_reset[0], h)
        h_n = gru_step(x[0], h, weights.of(0), form.precision)
        return h_n.unsqueeze(0), h_n.clone().unsqueeze(0)
    layer = Launch(x, state, weights, steps, form, "forward", variant, seed)
    shape = (layer.steps, layer.batch, layer.directions, layer.H)
    y = x.new_empty(shape) if layer.flags is None else x.new_zeros(shape)
    h = first_states(layer.h0, layer.h_reset, layer.flags, layer.heads).to(torch.float32, copy=True)
    spans = None if layer.flags is None or not layer.steps else tile_spans(layer.flags, layer.plan.block_b)
    w_hh = layer.w_hh
    if kind(x.dtype, form.precision) == "ieee":  # as `forward.py` takes it
        w_hh = w_hh.unflatten(1, (3, -1)).transpose(2, 3).contiguous()
    narrow = layer.hidden_size
    options: dict[str, Any] = {"UNITS": narrow, "FAST": layer.fast}
    options |= {"zoneout": layer.zoneout, "HAS_ZONEOUT": layer.zoneout > 0 and seed is None}
    with _launching(layer):
        for chunk in layer.chunks() if layer.batch else ():
            gx = layer.input_side(chunk)
            slots = layer.slots(chunk, h if layer.keep is None else h * layer.keep, h.shape)
            tensors = (h, layer.h_reset, w_hh, layer.b_hn, layer.flags, spans, layer.keep, y)
            layer.launch(_gru_forward_kernel, chunk, gx, *tensors, slots=slots, **options)
            del gx, slots  # before those of the next chunk
    return y[..., :narrow].flatten(2).contiguous(), h[..., :narrow].to(x.dtype).contiguous()


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
    variant: Variant | None = None,
    seed: Tensor | None = None,
) -> Gradients:
    """The gradients of one layer."""
    if not x.shape[0] * x.shape[1]:
        return _of_nothing(dh_n, x, state, weights, need_dx)
    sums = _Backward(Launch(x, state, weights, steps, form, "backward", variant, seed), dy, dh_n, y, need_dx)
    with _launching(sums.layer):
        for chunk in reversed(list(sums.layer.chunks())):
            sums.add(chunk)
    return sums.gradients(state, steps)


class _Backward:
    """The gradients of a layer, added up over chunks from the end."""

    def __init__(self, layer: Launch, dy: Tensor | None, dh_n: Tensor | None, y: Tensor, need_dx: bool):
        self.layer, self.y, self.dy = layer, *(self.by_recurrence(layer, t) for t in (y, dy))
        D, f32, shape = layer.directions, torch.float32, (layer.steps * layer.batch, layer.input_size)
        self.dh = torch.zeros_like(layer.h0, dtype=f32) if dh_n is None else layer.widened(dh_n).to(f32, copy=True)
        self.dh_reset = torch.zeros_like(self.dh)
        self.dx = None
        if need_dx:
            self.dx = layer.x.new_empty(shape) if D == 1 else layer.x.new_zeros(shape, dtype=f32)
        self.w_ih: list[Any] = [None] * D
        self.w_hh: list[Any] = [None] * D
        self.b_ih: Any = None
        self.b_hn: Any = None
        flags = layer.flags
        self.real_before = None if flags is None else [real_before(flags, d) for d in range(D // layer.heads)]

    @staticmethod
    def by_recurrence(layer: Launch, t: Tensor | None) -> Any:
        """(T, B, D*hidden_size) as (T, B, D, H)."""
        return None if t is None else layer.widened(t.unflatten(2, (layer.directions, -1)))

    def add(self, chunk: Chunk) -> None:
        """Adds a chunk's part, after those of all later chunks."""
        layer, D, H = self.layer, self.layer.directions, self.layer.H
        states = [self.states_before(chunk, d) for d in range(D)]
        factors = [_in_products(layer, states[d], d) for d in range(D)]
        gx, a, d_states = layer.input_side(chunk), layer.buffer(chunk, 4), layer.buffer(chunk, 1)
        gh = a[..., : 3 * H]  # of which a's first three are made, and of these the gates' gradients
        expected = layer.zoneout > 0 and layer.seed is None
        for d in range(D):
            torch.mm(factors[d], layer.w_hh[d].t(), out=gh[d])
            flags = None if layer.flags is None else layer.rows(layer.flags, chunk, d)
            operands = (gx[d], a[d], layer.b_hn[d], states[d], flags, layer.zoneout)
            options = {"HAS_FLAGS": flags is not None, "HAS_ZONEOUT": expected, "UPCAST": layer.upcast}
            _over_rows(_gru_derivatives_kernel, H, operands, UNITS=layer.hidden_size, **options)
            if self.dy is not None:
                d_states[d] = layer.rows(self.dy[:, :, d], chunk, d)
                if flags is not None:
                    d_states[d].masked_fill_((flags.unsqueeze(1) & 1) == 0, 0)
        slots = layer.slots(chunk, None, (D, layer.batch, 3 * H))
        tensors = (d_states, a, layer.w_hh, layer.flags, layer.keep, self.dh, self.dh_reset)
        layer.launch(_gru_backward_kernel, chunk, *tensors, slots=slots, HAS_DY=self.dy is not None)
        if slots is not None:
            self.finish(chunk, slots)
        for d in range(D):
            _over_rows(_gru_gate_gradients_kernel, H, (d_states[d], gx[d], a[d]), UPCAST=layer.upcast)
            x_rows = layer.rows(layer.x, chunk, d)
            self.w_ih[d] = _plus(self.w_ih[d], torch.mm(gx[d].t(), x_rows))
            self.w_hh[d] = _plus(self.w_hh[d], torch.mm(gh[d].t(), factors[d]))
            if self.dx is not None:
                begin = chunk.first[d // layer.heads] * layer.batch
                rows = self.dx[begin : begin + len(x_rows)]
                if D == 1:
                    torch.mm(gx[d], layer.w_ih[d], out=rows)
                else:
                    rows += torch.mm(gx[d], layer.w_ih[d])
        self.b_ih = _plus(self.b_ih, gx.sum(1, dtype=torch.float32))
        self.b_hn = _plus(self.b_hn, gh[..., 2 * H :].sum(1, dtype=torch.float32))

    def states_before(self, chunk: Chunk, d: int) -> Tensor:
        """The state before each step of the chunk in one recurrence, (C*B, H)."""
        layer, y, direction = self.layer, self.y[:, :, d], d // self.layer.heads
        h0, first, end = layer.h0[d], chunk.first[direction], chunk.first[direction] + chunk.steps
        if self.real_before is not None and layer.flags is not None:
            before, flags = self.real_before[direction][first:end], layer.flags[first:end]
            states = states_before(before, y, h0, layer.h_reset[d], flags, direction)
        elif direction == 0:
            states = y[first - 1 : end - 1] if first else torch.cat([h0.unsqueeze(0), y[: end - 1]])
        else:
            states = y[first + 1 : end + 1] if end < layer.steps else torch.cat([y[first + 1 :], h0.unsqueeze(0)])
        return states.flatten(0, 1).contiguous()

    def finish(self, chunk: Chunk, slots: Tensor) -> None:
        """Adds the product that a group leaves out: dh becomes the gradient of the state before the chunk."""
        layer = self.layer
        for d in range(layer.directions):
            last = slots[chunk.steps, d].view(layer.x.dtype)  # (B, 3H)
            product = torch.mm(last.float(), layer.w_hh[d].float())
            self.dh[d] += product if layer.keep is None else product * layer.keep[d]
            if layer.flags is not None:
                direction = d // layer.heads
                step = chunk.first[direction] + direction * (chunk.steps - 1)
                began = began_at(layer.flags[step], direction).unsqueeze(1)
                self.dh_reset[d] += self.dh[d].masked_fill(~began, 0)
                self.dh[d].masked_fill_(began, 0)

    def gradients(self, state: State, steps: Steps) -> Gradients:
        """All of them, in the layer's dtype."""
        H, narrow, dtype = self.layer.H, self.layer.hidden_size, self.layer.x.dtype
        # Where resets go back to h0, it gets their gradients too.
        initial: list[Tensor | None] = [self.dh, self.dh_reset]
        if state.h_reset is None:
            initial = [self.dh + self.dh_reset, None]
        b_hh = torch.cat([self.b_ih[:, : 2 * H], self.b_hn], 1)  # b_hr and b_hz have the gradients of b_ir and b_iz
        w_ih, w_hh = (g[0].unsqueeze(0) if len(g) == 1 else torch.stack(g) for g in (self.w_ih, self.w_hh))
        weights = [w_ih, w_hh, self.b_ih, b_hh]
        if narrow < H:
            weights = [g.unflatten(1, (3, H))[:, :, :narrow].flatten(1, 2) for g in weights]
            weights[1] = weights[1][..., :narrow]
            initial = [None if g is None else g[..., :narrow] for g in initial]
        dx = None if self.dx is None else self.dx.view(self.layer.x.shape)
        if dx is not None and steps.real is not None:
            dx.masked_fill_(~steps.real.unsqueeze(-1), 0)
        every = (None if g is None else g.to(dtype).contiguous() for g in (dx, *initial, *weights))
        return Gradients(*every)  # type: ignore[arg-type]


def _of_nothing(dh_n: Tensor | None, x: Tensor, state: State, weights: Weights, need_dx: bool) -> Gradients:
    """The gradients of a layer without rows or without steps."""
    w_ih, w_hh, *_ = weights
    dh0 = torch.zeros_like(state.h0) if dh_n is None else dh_n.clone()
    dh_reset = None if state.h_reset is None else torch.zeros_like(state.h_reset)
    biases = (w_ih.new_zeros(w_ih.shape[:2]) for _ in range(2))
    dx = torch.zeros_like(x) if need_dx else None
    return Gradients(dx, dh0, dh_reset, torch.zeros_like(w_ih), torch.zeros_like(w_hh), *biases)


def _plus(total: Tensor | None, part: Tensor) -> Tensor:
    """The sum over chunks so far, in float32 where there are several."""
    return part if total is None else total.float().add_(part)


def _in_products(layer: Launch, states: Tensor, d: int) -> Tensor:
    """States (C*B, H) of one recurrence as they enter its products."""
    if layer.keep is None:
        return states
    return (states.unflatten(0, (-1, layer.batch)) * layer.keep[d]).to(states.dtype).flatten(0, 1)


def _over_rows(kernel: Any, H: int, operands: tuple, **options: int) -> None:
    """Launches a pointwise kernel over the rows of its first operand."""
    rows, block_m, block_h = len(operands[0]), 8, min(256, triton.next_power_of_2(H))
    grid = (triton.cdiv(rows, block_m), triton.cdiv(H, block_h))
    kernel[grid](*operands, rows, H=H, BLOCK_M=block_m, BLOCK_H=block_h, **options)


@contextmanager
def _launching(layer: Launch) -> Iterator[None]:
    """Makes the tensors' device the current one, as launches require, and sets the precision of float32 products."""
    with current(layer.x.device), _precision(layer.precision) if layer.x.dtype is torch.float32 else nullcontext():
        yield


@contextmanager
def _precision(precision: str) -> Iterator[None]:
    """Sets PyTorch's precision of float32 products, of which a process has one: other threads wait here."""
    switch = torch.backends.cuda.matmul
    name = "fp32_precision" if hasattr(switch, "fp32_precision") else "allow_tf32"  # torch 2.9 has the first
    wanted = precision if name == "fp32_precision" else precision == "tf32"
    with _SWITCH:
        before = getattr(switch, name)
        if before == wanted:
            yield
            return
        setattr(switch, name, wanted)
        try:
            yield
        finally:
            setattr(switch, name, before)
