"""The fused GRU layer: Triton recurrences between matrix products, all directions in one grid, chunk by chunk of time.

    gru_forward   one product for the input side of a chunk, then `_gru_forward_kernel`
    gru_backward  chunks from the end: two products for the gates, `_gru_derivatives_kernel`, `_gru_backward_kernel`,
                  `_gru_gate_gradients_kernel`, then one product for each gradient

Kept for backward: x and y. Beyond them the memory is that of one chunk, CHUNK_BYTES for each of a dozen buffers at
most. No atomics: results are bitwise repeatable. Nothing waits for the device. T time, B batch, I input, H hidden, D
directions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.nn.functional import pad

from .backward import _gru_backward_kernel
from .derivatives import _gru_derivatives_kernel, _gru_gate_gradients_kernel
from .exchange import INTERPRETED, LINE
from .flags import BEGAN, states_before, step_flags, tile_spans
from .forward import _gru_forward_kernel
from .plan import device, kind, plan
from .split import _gru_backward_split_kernel, _gru_forward_split_kernel
from .step import gru_step

CHUNK_BYTES = 2**25  # of one value a unit and step; a chunk of T = 512 steps at B = 64, H = 512 in bfloat16


class Chunk(NamedTuple):
    """C steps: for each direction the earliest in time. The second direction travels from the end."""

    steps: int
    first: tuple[int, int]


class _Layer:
    """What forward and backward share: sizes, padded weights, flags, and the grid."""

    def __init__(
        self,
        x: Tensor,  # (T, B, I)
        h0: Tensor,  # (D, B, H)
        w_ih: Tensor,  # (D, 3H, I)
        w_hh: Tensor,  # (D, 3H, H)
        b_ih: Tensor | None,  # (D, 3H)
        b_hh: Tensor | None,  # (D, 3H)
        real: Tensor | None,  # (T, B) bool
        start: Tensor | None,  # (T, B) bool
        precision: str,
        recurrence: str,  # "forward" or "backward"
    ):
        self.steps, self.batch, self.input_size = x.shape
        self.directions, _, self.hidden_size = h0.shape
        arithmetic = kind(x.dtype, precision)
        self.plan = plan(recurrence, self.batch, self.hidden_size, self.directions, arithmetic, device(x.device))
        width = self.plan.block_j or 16
        self.H = -(-self.hidden_size // width) * width  # zero weights keep the units beyond hidden_size at 0
        self.tiles = triton.cdiv(self.batch, self.plan.block_b)
        self.fast = arithmetic != "ieee" and not INTERPRETED
        self.precision = "tf32" if arithmetic == "tf32" else "ieee"
        # The interpreter multiplies the bits of bfloat16 operands as if they were integers, and truncates to bfloat16.
        self.upcast = INTERPRETED and x.dtype is torch.bfloat16

        self.x, self.h0 = x, self.widened(h0)
        self.w_ih = self.widened(w_ih.unflatten(1, (3, -1)), dim=2).flatten(1, 2)  # (D, 3H, I)
        w_hh = self.widened(w_hh.unflatten(1, (3, -1)))
        self.w_hh = self.widened(w_hh, dim=2).flatten(1, 2)  # (D, 3H, H)
        bias = x.new_zeros(self.directions, 3, self.H)
        self.b_hn = x.new_zeros(self.directions, self.H)
        if b_ih is not None and b_hh is not None:
            b_ih, b_hh = (self.widened(b.unflatten(1, (3, -1))) for b in (b_ih, b_hh))
            bias = b_ih.clone()
            bias[:, :2] += b_hh[:, :2]
            self.b_hn = b_hh[:, 2].contiguous()
        self.bias = bias.flatten(1, 2)  # (D, 3H): all of b_ih, and what of b_hh no reset gate multiplies
        self.flags = None if real is None and start is None else step_flags(real, start, self.directions)
        if self.flags is not None and real is not None:
            self.x = x.masked_fill(~real.unsqueeze(-1), 0)  # what stands in the padding, NaN included, takes no part

    def widened(self, tensor: Tensor, dim: int = -1) -> Tensor:
        """The tensor with zeros up to H units in one dimension."""
        missing = self.H - tensor.shape[dim]
        if missing == 0:
            return tensor.contiguous()
        after = len(tensor.shape) - 1 - dim % tensor.dim()
        return pad(tensor, [0, 0] * after + [0, missing])

    def chunks(self) -> Iterator[Chunk]:
        """Chunks of time in the direction of travel."""
        size = self.directions * self.batch * self.H * self.x.element_size()
        longest = max(1, CHUNK_BYTES // max(1, size))
        for begin in range(0, self.steps, longest):
            steps = min(longest, self.steps - begin)
            yield Chunk(steps, (begin, self.steps - begin - steps))

    def buffer(self, chunk: Chunk, values: int) -> Tensor:
        """Memory for some values a unit and step of a chunk: (D, C*B, values*H)."""
        return self.x.new_empty(self.directions, chunk.steps * self.batch, values * self.H)

    def rows(self, tensor: Tensor, chunk: Chunk, d: int) -> Tensor:
        """A direction's steps of the chunk out of a (T, B, ...) tensor, as (C*B, ...)."""
        return tensor[chunk.first[d] : chunk.first[d] + chunk.steps].flatten(0, 1)

    def input_side(self, chunk: Chunk) -> Tensor:
        """gx (D, C*B, 3H) of a chunk."""
        gx = self.buffer(chunk, 3)
        for d in range(self.directions):
            torch.addmm(self.bias[d], self.rows(self.x, chunk, d), self.w_ih[d].t(), out=gx[d])
        return gx

    @property
    def sizes(self) -> dict[str, Any]:
        """Compile-time arguments of all recurrences."""
        return {
            "D": self.directions,
            "H": self.H,
            "BLOCK_B": self.plan.block_b,
            "HAS_FLAGS": self.flags is not None,
            "PRECISION": self.precision,
            "UPCAST": self.upcast,
            "STAGES": self.plan.stages,
            "num_warps": self.plan.warps,
        }

    def launch(
        self, chunk: Chunk, whole: Any, split: Any, tensors: tuple, slots: Tensor | None, **options: Any
    ) -> None:
        """Runs a recurrence over a chunk: `whole` where a program has all units, else `split` with its slots."""
        options |= self.sizes
        if slots is None:
            whole[(self.tiles * self.directions,)](
                *tensors, chunk.steps, self.batch, *chunk.first, BLOCK_H=self.plan.block_k, **options
            )
            return
        group = self.directions * self.H // self.plan.block_j  # programs that wait for one another
        counters = slots.new_zeros(self.tiles, self.directions, LINE.value, dtype=torch.int32)
        options |= {name.upper(): getattr(self.plan, name) for name in ("block_k", "streamed", "exchange")}
        options |= {"J": self.plan.block_j}
        tiles = 0  # that run at once
        if not INTERPRETED:
            tiles = device(self.x.device).processors // group
            options |= {"maxnreg": 255}  # one program a multiprocessor: no other needs the registers
        spans = [(i, i + 1) for i in range(chunk.steps)]
        if tiles:
            spans = [(0, chunk.steps)]
            options |= {"launch_cooperative_grid": True}  # refused, rather than hanging, where it does not fit
        for first_tile in range(0, self.tiles, tiles or self.tiles):
            programs = min(tiles or self.tiles, self.tiles - first_tile) * group
            for first, last in spans:
                split[(programs,)](
                    *tensors,
                    slots,
                    counters,
                    chunk.steps,
                    self.batch,
                    first_tile,
                    *chunk.first,
                    first,
                    last,
                    **options,
                )

    def slots(self, chunk: Chunk, first: Tensor) -> Tensor | None:
        """The exchange buffer of a chunk, its first slot given, the rest filling; None where nothing is exchanged."""
        if not self.plan.block_j:
            return None
        signed, unsigned = {2: (torch.int16, torch.uint16), 4: (torch.int32, torch.uint32)}[self.x.element_size()]
        shape = (chunk.steps + 1, *first.shape)
        if self.plan.exchange == "data":
            slots = torch.full(shape, -1, dtype=signed, device=self.x.device)
        else:
            slots = torch.empty(shape, dtype=signed, device=self.x.device)
        bits = first.to(self.x.dtype).view(signed)
        # A NaN may have the bits of the filling (PyTorch's own conversion to bfloat16 on CPU makes it so): 0x7FFF...
        # is one too.
        slots[0] = bits.masked_fill(bits == -1, torch.iinfo(signed).max)
        return slots.view(unsigned)


def gru_forward(
    x: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    real: Tensor | None,
    start: Tensor | None,
    reset_after: bool,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """y (T, B, D*H) and h_n (D, B, H) of one layer; the arguments are those of `_Layer`."""
    if not reset_after:
        raise ValueError("the fused kernels have no reset_after=False")
    if len(x) == len(h0) == 1 and real is None:  # one step: a reset before it goes where it begins
        b_ih, b_hh = (None if b is None else b[0] for b in (b_ih, b_hh))
        h_n = gru_step(x[0], h0[0], w_ih[0], w_hh[0], b_ih, b_hh, precision)
        return h_n.unsqueeze(0), h_n.clone().unsqueeze(0)
    layer = _Layer(x, h0, w_ih, w_hh, b_ih, b_hh, real, start, precision, "forward")
    shape = (layer.steps, layer.batch, layer.directions, layer.H)
    y = x.new_empty(shape) if layer.flags is None else x.new_zeros(shape)
    h = layer.h0.to(torch.float32, copy=True)
    spans = h if layer.flags is None else tile_spans(layer.flags, layer.plan.block_b)
    w_hh = layer.w_hh
    if kind(x.dtype, precision) == "ieee":  # as `forward.py` takes it
        w_hh = w_hh.unflatten(1, (3, -1)).transpose(2, 3).contiguous()
    with _launching(layer):
        for chunk in layer.chunks() if layer.batch else ():
            flags = y if layer.flags is None else layer.flags
            tensors = (layer.input_side(chunk), h, layer.h0, w_hh, layer.b_hn, flags, spans, y)
            slots = layer.slots(chunk, h)
            layer.launch(chunk, _gru_forward_kernel, _gru_forward_split_kernel, tensors, slots, FAST=layer.fast)
    narrow = layer.hidden_size
    return y[..., :narrow].flatten(2), h[..., :narrow].to(x.dtype, memory_format=torch.contiguous_format)


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
    """dx (None unless needed), dh0, dw_ih, dw_hh, db_ih, db_hh; the other arguments are those of `_Layer`."""
    layer = _Layer(x, h0, w_ih, w_hh, b_ih, b_hh, real, start, precision, "backward")
    D, H, batch = layer.directions, layer.H, layer.batch
    y = layer.widened(y.unflatten(2, (D, -1)))  # (T, B, D, H)
    if dy is not None:
        dy = layer.widened(dy.unflatten(2, (D, -1)))
    dh = torch.zeros_like(layer.h0, dtype=torch.float32) if dh_n is None else layer.widened(dh_n).float()
    dh = dh.clone()
    dh0 = torch.zeros_like(dh)
    dx = torch.zeros(layer.steps * batch, layer.input_size, dtype=torch.float32, device=x.device) if need_dx else None
    d_weights = [torch.zeros_like(w, dtype=torch.float32) for w in (layer.w_ih, layer.w_hh)]
    d_biases = [torch.zeros(D, 3 * H, dtype=torch.float32, device=x.device) for _ in range(2)]
    with _launching(layer):
        for chunk in reversed(list(layer.chunks())) if batch else ():
            states = [_states_before(layer, y, chunk, d) for d in range(D)]
            gx, gh = layer.input_side(chunk), layer.buffer(chunk, 3)
            a, d_states = layer.buffer(chunk, 4), layer.buffer(chunk, 1)
            for d in range(D):
                torch.mm(states[d], layer.w_hh[d].t(), out=gh[d])
                flags = gx if layer.flags is None else layer.rows(layer.flags, chunk, d)
                _over_rows(
                    _gru_derivatives_kernel,
                    H,
                    gx[d],
                    gh[d],
                    layer.b_hn[d],
                    states[d],
                    flags,
                    a[d],
                    HAS_FLAGS=layer.flags is not None,
                    UPCAST=layer.upcast,
                )
                if dy is not None:
                    d_states[d] = layer.rows(dy[:, :, d], chunk, d)
                    if layer.flags is not None:
                        d_states[d].masked_fill_((flags.unsqueeze(1) & 1) == 0, 0)
            flags = a if layer.flags is None else layer.flags
            slots = layer.slots(chunk, dh.new_zeros(D, batch, 3 * H))
            tensors = (d_states, a, layer.w_hh, flags, dh, dh0)
            layer.launch(chunk, _gru_backward_kernel, _gru_backward_split_kernel, tensors, slots, HAS_DY=dy is not None)
            if slots is not None:
                _finish_chunk(layer, chunk, slots, dh, dh0)
            for d in range(D):
                _over_rows(_gru_gate_gradients_kernel, H, d_states[d], a[d], gx[d], gh[d], UPCAST=layer.upcast)
                x_rows = layer.rows(layer.x, chunk, d)
                d_weights[0][d] += torch.mm(gx[d].t(), x_rows)
                d_weights[1][d] += torch.mm(gh[d].t(), states[d])
                d_biases[0][d] += gx[d].sum(0, dtype=torch.float32)
                d_biases[1][d] += gh[d].sum(0, dtype=torch.float32)
                if dx is not None:
                    begin = chunk.first[d] * batch
                    dx[begin : begin + len(x_rows)] += torch.mm(gx[d], layer.w_ih[d])
    narrow = layer.hidden_size
    grads = [(dh + dh0)[..., :narrow]]
    grads += [g.unflatten(1, (3, H))[:, :, :narrow].flatten(1, 2) for g in (*d_weights, *d_biases)]
    grads[2] = grads[2][..., :narrow]
    dx = None if dx is None else dx.view(x.shape).to(x.dtype)
    if dx is not None and real is not None:
        dx.masked_fill_(~real.unsqueeze(-1), 0)
    return dx, *(g.to(x.dtype, memory_format=torch.contiguous_format) for g in grads)


def _finish_chunk(layer: _Layer, chunk: Chunk, slots: Tensor, dh: Tensor, dh0: Tensor) -> None:
    """The last product that the split recurrence leaves: dh becomes the gradient of the state before the chunk."""
    for d in range(layer.directions):
        last = slots[chunk.steps, d].view(layer.x.dtype)  # (B, 3H)
        dh[d] += torch.mm(last.float(), layer.w_hh[d].float())
        if layer.flags is not None:
            step = chunk.first[d] if d == 0 else chunk.first[d] + chunk.steps - 1
            began = ((layer.flags[step] & BEGAN[d]) != 0).unsqueeze(1)
            dh0[d] += dh[d].masked_fill(~began, 0)
            dh[d].masked_fill_(began, 0)


def _states_before(layer: _Layer, y: Tensor, chunk: Chunk, d: int) -> Tensor:
    """The state before each step of the chunk in one direction, (C*B, H)."""
    y = y[:, :, d]
    first, end = chunk.first[d], chunk.first[d] + chunk.steps
    if layer.flags is not None:
        return states_before(y, layer.h0[d], layer.flags, d)[first:end].flatten(0, 1)
    if d == 0:
        before = layer.h0[d].unsqueeze(0) if first == 0 else y[first - 1 : first]
        return torch.cat([before, y[first : end - 1]]).flatten(0, 1)
    after = layer.h0[d].unsqueeze(0) if end == layer.steps else y[end : end + 1]
    return torch.cat([y[first + 1 : end], after]).flatten(0, 1)


def _over_rows(kernel: Any, H: int, *tensors: Tensor, **options: Any) -> None:
    """Launches a pointwise kernel over the rows of its first tensor."""
    rows, block_m, block_h = len(tensors[0]), 8, min(256, triton.next_power_of_2(H))
    kernel[(triton.cdiv(rows, block_m), triton.cdiv(H, block_h))](
        *tensors, rows, H=H, BLOCK_M=block_m, BLOCK_H=block_h, **options
    )


@contextmanager
def _launching(layer: _Layer) -> Iterator[None]:
    """The tensors' device as the current one, as a launch needs it, and the layer's precision for all products."""
    switch = torch.backends.cuda.matmul
    name = "fp32_precision" if hasattr(switch, "fp32_precision") else "allow_tf32"  # torch 2.9 has the first
    before = getattr(switch, name)
    setattr(switch, name, layer.precision if name == "fp32_precision" else layer.precision == "tf32")
    try:
        with torch.cuda.device(layer.x.device) if layer.x.is_cuda else nullcontext():
            yield
    finally:
        setattr(switch, name, before)
