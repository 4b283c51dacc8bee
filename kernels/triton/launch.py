"""How a layer's recurrences are launched: operands, flags, chunks of time, the grid and the buffers of an exchange."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.nn.functional import pad

from .. import Form, State, Steps, Weights
from ..reference import without_padding
from ..regularised import Variant
from .exchange import INTERPRETED, LINE
from .flags import step_flags
from .noise import dropout_factors, zone_out
from .plan import device, kind, plan

PATIENCE = 2**27  # polls per program and launch, plus 256 per step: a minute or two, each through the L2 cache

# The least steps of a chunk, and the bytes of one value per unit and step up to which it is longer. The forward pass
# has four such values at a time, the backward pass a dozen.
CHUNKS = {"forward": (512, 2**22), "backward": (128, 2**20)}

_FAILED: dict[torch.device, Tensor] = {}


def failed_on(device: torch.device) -> Tensor:
    """The flag in host memory that a launch sets when a program gave up waiting."""
    if device not in _FAILED:
        flag = torch.zeros(1, dtype=torch.int32, device="cpu", pin_memory=device.type == "cuda")
        _FAILED.setdefault(device, flag)  # another thread may have made one
    return _FAILED[device]


def raise_if_failed(device: torch.device) -> None:
    """Raises a RuntimeError, once, if a finished launch gave up waiting; does not wait for running ones."""
    if device in _FAILED and _FAILED[device].item():
        _FAILED[device].zero_()
        raise RuntimeError(
            f"an earlier call of the fused kernels on {device} gave up waiting for one of its programs, and its "
            "results contain NaN. backend='eager' avoids these kernels. Please report the GPU, the sizes and other load"
        )


def chunk_steps(recurrence: str, step_bytes: int) -> int:
    """The most steps of a chunk, from the bytes of one value per unit in a step."""
    steps, size = CHUNKS[recurrence]
    return max(steps, size // max(1, step_bytes))


class Chunk(NamedTuple):
    """C steps, and the earliest of them in time for each direction. The second direction runs from the end."""

    steps: int
    first: tuple[int, int]


class Launch:
    """The operands, sizes, flags and grid of one layer's recurrences, of one direction of travel or both."""

    def __init__(
        self,
        x: Tensor,  # (T, B, I)
        state: State,
        weights: Weights,
        steps: Steps,
        form: Form,
        recurrence: str,  # "forward" or "backward"
        variant: Variant | None = None,
        seed: Tensor | None = None,  # () int64, of a variant's masks; without one zoneout is its expectation
    ):
        raise_if_failed(x.device)
        self.recurrence = recurrence
        self.steps, self.batch, self.input_size = x.shape
        self.directions, _, self.hidden_size = state.h0.shape
        self.heads = form.heads
        arithmetic = kind(x.dtype, form.precision)
        self.plan = plan(recurrence, self.batch, self.hidden_size, self.directions, arithmetic, device(x.device))
        width = self.plan.block_j or 16
        self.H = -(-self.hidden_size // width) * width  # the kernels keep the units beyond hidden_size at 0
        self.tiles = triton.cdiv(self.batch, self.plan.block_b)
        self.fast = arithmetic != "ieee" and not INTERPRETED
        self.precision = "tf32" if arithmetic == "tf32" else "ieee"
        # The interpreter multiplies the bits of bfloat16 operands as if they were integers, and truncates to bfloat16.
        self.upcast = INTERPRETED and x.dtype is torch.bfloat16

        self.x, self.h0 = without_padding(x, steps), self.widened(state.h0)
        self.h_reset = self.h0 if state.h_reset is None else self.widened(state.h_reset)
        self.w_ih = self.of_gates(weights.w_ih)  # (D, 3H, I)
        self.w_hh = self.widened(self.of_gates(weights.w_hh))  # (D, 3H, H)
        # bias (D, 3H): all of b_ih, and the part of b_hh that no reset gate multiplies
        if weights.b_ih is None or weights.b_hh is None:
            self.bias, self.b_hn = (x.new_zeros(self.directions, gates * self.H) for gates in (3, 1))
        else:
            b_hh, inner = self.of_gates(weights.b_hh), 2 * self.H
            self.bias = self.of_gates(weights.b_ih).clone()
            self.bias[:, :inner] += b_hh[:, :inner]
            self.b_hn = b_hh[:, inner:].contiguous()
        self.flags = step_flags(steps, self.directions // self.heads)

        variant = variant or Variant()
        self.seed, self.zoneout, self.keep = seed, variant.zoneout, None
        if seed is not None and variant.recurrent_dropout:
            sizes = (self.directions, self.batch, self.H)
            self.keep = dropout_factors(seed, variant.recurrent_dropout, *sizes)

    def widened(self, tensor: Tensor, dim: int = -1) -> Tensor:
        """Pads one dimension with zeros to H units."""
        missing = self.H - tensor.shape[dim]
        if missing == 0:
            return tensor.contiguous()
        after = len(tensor.shape) - 1 - dim % tensor.dim()
        return pad(tensor, [0, 0] * after + [0, missing])

    def of_gates(self, tensor: Tensor) -> Tensor:
        """Pads each gate of weights or biases (D, 3*hidden_size, ...) with zeros to H units."""
        if self.hidden_size == self.H:
            return tensor.contiguous()
        return self.widened(tensor.unflatten(1, (3, -1)), dim=2).flatten(1, 2)

    def chunks(self) -> Iterator[Chunk]:
        """Chunks of time in the direction of travel."""
        size = self.directions * self.batch * self.H * self.x.element_size()
        longest = chunk_steps(self.recurrence, size)
        for begin in range(0, self.steps, longest):
            steps = min(longest, self.steps - begin)
            yield Chunk(steps, (begin, self.steps - begin - steps))

    def buffer(self, chunk: Chunk, values: int) -> Tensor:
        """Memory for some values per unit and step of a chunk: (D, C*B, values*H)."""
        return self.x.new_empty(self.directions, chunk.steps * self.batch, values * self.H)

    def rows(self, tensor: Tensor, chunk: Chunk, d: int) -> Tensor:
        """A recurrence's steps of the chunk in a (T, B, ...) tensor, as (C*B, ...)."""
        first = chunk.first[d // self.heads]
        return tensor[first : first + chunk.steps].flatten(0, 1)

    def input_side(self, chunk: Chunk) -> Tensor:
        """gx (D, C*B, 3H) of a chunk, with random zoneout."""
        gx = self.buffer(chunk, 3)
        for d in range(self.directions):
            torch.addmm(self.bias[d], self.rows(self.x, chunk, d), self.w_ih[d].t(), out=gx[d])
            if self.seed is not None and self.zoneout:
                zone_out(gx[d], self.seed, self.zoneout, d, self.batch, self.H, chunk.first[d // self.heads])
        return gx

    @property
    def sizes(self) -> dict[str, Any]:
        """Compile-time arguments of both recurrences."""
        return {
            "D": self.directions,
            "HEADS": self.heads,
            "H": self.H,
            "J": self.plan.block_j or self.plan.block_k,
            "BLOCK_B": self.plan.block_b,
            "BLOCK_K": self.plan.block_k,
            "STREAMED": self.plan.streamed,
            "EXCHANGE": self.plan.exchange,
            "HAS_FLAGS": self.flags is not None,
            "HAS_DROPOUT": self.keep is not None,
            "PRECISION": self.precision,
            "UPCAST": self.upcast,
            "STAGES": self.plan.stages,
            "num_warps": self.plan.warps,
        }

    def launch(self, kernel: Any, chunk: Chunk, *tensors: Tensor | None, slots: Tensor | None, **options: Any) -> None:
        """Runs a recurrence over a chunk, with slots if the programs of a group exchange data."""
        group = self.directions * triton.cdiv(self.H, self.plan.block_j or self.plan.block_k)  # programs of a tile
        counters = failed = None
        tiles, spans = self.tiles, [(0, chunk.steps)]  # tiles that run at once
        if slots is not None:
            failed = failed_on(self.x.device)
            counters = slots.new_zeros(self.tiles, self.directions, LINE.value, dtype=torch.int32)
            together = 0 if INTERPRETED else device(self.x.device).processors // group
            if not INTERPRETED:
                options |= {"maxnreg": 255}  # one program per multiprocessor: no other needs the registers
            if together:
                tiles = together
                options |= {"launch_cooperative_grid": True}  # refused, rather than hanging, where it does not fit
            else:
                spans = [(i, i + 1) for i in range(chunk.steps)]
        for first_tile in range(0, self.tiles, tiles):
            programs = min(tiles, self.tiles - first_tile) * group
            for first, last in spans:
                kernel[(programs,)](
                    *tensors,
                    slots,
                    counters,
                    failed,
                    chunk.steps,
                    self.batch,
                    first_tile,
                    *chunk.first,
                    first,
                    last,
                    PATIENCE + 256 * chunk.steps,
                    **self.sizes,
                    **options,
                )

    def slots(self, chunk: Chunk, first: Tensor | None, sizes: tuple[int, ...]) -> Tensor | None:
        """The exchange buffer of a chunk: the first slot given, or 0, the others filled; None without exchange."""
        if not self.plan.block_j:
            return None
        signed, unsigned = {2: (torch.int16, torch.uint16), 4: (torch.int32, torch.uint32)}[self.x.element_size()]
        shape = (chunk.steps + 1, *sizes)
        slots = torch.empty(shape, dtype=signed, device=self.x.device)
        if self.plan.exchange == "data":
            slots[1:] = -1
        if first is None:
            slots[0] = 0
        else:
            bits = first.to(self.x.dtype).view(signed)
            # A NaN may have the bits of the filling (PyTorch's own conversion to bfloat16 on CPU makes it so):
            # 0x7FFF... is one too.
            slots[0] = bits.masked_fill(bits == -1, torch.iinfo(signed).max)
        return slots.view(unsigned)
