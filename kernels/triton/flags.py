"""The flags of the fused kernels: one uint8 per (t, b), and the first and last steps of each tile of rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import Steps
from ..reference import cuts

# Bits: bit 0 is set where the step is not padding; the others are those of direction 0, direction 1 is the next bit.
RESTARTS = tl.constexpr(1)  # after this step the state becomes h_reset
BEGAN = tl.constexpr(3)  # this step began from h_reset


@triton.jit
def is_real(flag):
    """Whether the step is not padding."""
    return (flag & 1) != 0


@triton.jit
def has(flag, bit: tl.constexpr, d):
    """Whether RESTARTS or BEGAN is set for direction d."""
    return ((flag >> (bit + d)) & 1) != 0


def step_flags(steps: Steps, directions: int) -> Tensor | None:
    """Flags (T, B) uint8 for all directions, None without padding and resets."""
    real, start = steps
    given = real if real is not None else start
    if given is None:
        return None
    flags = torch.ones_like(given, dtype=torch.uint8) if real is None else real.to(torch.uint8)
    if start is not None:
        for d in range(directions):
            began = cuts(start, real, reverse=d == 1)
            before = torch.zeros_like(began)  # the step before, in the direction of travel
            if d == 0:
                before[:-1] = began[1:]
            else:
                before[1:] = began[:-1]
            flags += (began.to(torch.uint8) << BEGAN.value + d) + (before.to(torch.uint8) << RESTARTS.value + d)
    return flags


def began_at(flags: Tensor, d: int) -> Tensor:
    """The steps that began from h_reset in direction d, bool, in the shape of the flags."""
    return (flags >> (BEGAN.value + d)) & 1 != 0


def tile_spans(flags: Tensor, block_b: int) -> Tensor:
    """The range of non-padding steps of each tile of block_b rows: (tiles, 2) int32, end exclusive, 0 and 0 if none."""
    steps, batch = flags.shape
    tiles = -(-batch // block_b)
    real = torch.zeros(steps, tiles * block_b, dtype=torch.bool, device=flags.device)
    real[:, :batch] = (flags & 1) != 0
    real = real.view(steps, tiles, block_b).any(2)
    step = torch.arange(steps, device=flags.device).unsqueeze(1)
    end = torch.where(real, step + 1, 0).amax(0)
    begin = torch.where(real, step, steps).amin(0)
    return torch.stack([torch.minimum(begin, end), end], 1).to(torch.int32)


def first_states(h0: Tensor, h_reset: Tensor, flags: Tensor | None, heads: int = 1) -> Tensor:
    """The state before each row's first non-padding step: h_reset (D, B, H) if a reset precedes it, else h0."""
    if flags is None or h_reset is h0:
        return h0
    states = []
    for d in range(len(h0)):
        along = flags.flip(0) if d >= heads else flags
        real = (along & 1) != 0
        began = real & (real.cumsum(0) == 1) & began_at(along, d // heads)
        states.append(torch.where(began.any(0).unsqueeze(1), h_reset[d], h0[d]))
    return torch.stack(states)


def real_before(flags: Tensor, direction: int) -> Tensor:
    """The last step that is not padding before each step, in the direction of travel: (T, B) int64, -1 where none."""
    steps, batch = flags.shape
    if direction == 1:
        flags = flags.flip(0)
    step = torch.arange(steps, device=flags.device).unsqueeze(1)
    last = torch.where((flags & 1) != 0, step, -1).cummax(0).values
    last = torch.cat([last.new_full((1, batch), -1), last[:-1]])
    return torch.where(last < 0, last, steps - 1 - last).flip(0) if direction == 1 else last


def states_before(before: Tensor, y: Tensor, h0: Tensor, h_reset: Tensor, flags: Tensor, direction: int) -> Tensor:
    """The state before each of C steps, (C, B, H).

    Args:
        before: `real_before` at these steps, (C, B).
        y: all outputs, (T, B, H), 0 at padding.
        h0: (B, H).
        h_reset: (B, H).
        flags: at these steps, (C, B).
        direction: 0 or 1.
    """
    states = y[before.clamp(min=0), torch.arange(y.shape[1], device=y.device)]
    states = torch.where((before >= 0).unsqueeze(-1), states, h0)
    return torch.where(began_at(flags, direction).unsqueeze(-1), h_reset, states)
