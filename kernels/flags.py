"""The flags of the fused kernels: one uint8 for each (t, b), and the steps at which a tile of rows begins and ends."""

from __future__ import annotations

import torch
from torch import Tensor

from .reference import cuts

REAL = 1  # the step is real
RESTART = (2, 4)  # after this step the state goes back to h0, in the first and in the second direction
BEGAN = (8, 16)  # this step began from h0, likewise


def step_flags(real: Tensor | None, start: Tensor | None, directions: int) -> Tensor:
    """Flags (T, B) uint8 from real (T, B) and start (T, B) bool, of which at least one is given."""
    given = real if real is not None else start
    if given is None:
        raise ValueError("step_flags needs real or start, got neither")
    flags = torch.ones_like(given, dtype=torch.uint8) if real is None else real.to(torch.uint8)
    if start is not None:
        for d in range(directions):
            began = cuts(start, real, reverse=d == 1)
            before = torch.zeros_like(began)  # the step before, in the direction of travel
            if d == 0:
                before[:-1] = began[1:]
            else:
                before[1:] = began[:-1]
            flags += began.to(torch.uint8) * BEGAN[d] + before.to(torch.uint8) * RESTART[d]
    return flags


def tile_spans(flags: Tensor, block_b: int) -> Tensor:
    """A tile of block_b rows' first real step and the one after its last: (tiles, 2) int32, 0 and 0 if none."""
    steps, batch = flags.shape
    tiles = -(-batch // block_b)
    real = torch.zeros(steps, tiles * block_b, dtype=torch.bool, device=flags.device)
    real[:, :batch] = (flags & REAL) != 0
    real = real.view(steps, tiles, block_b).any(2)
    step = torch.arange(steps, device=flags.device).unsqueeze(1)
    end = torch.where(real, step + 1, 0).amax(0)
    begin = torch.where(real, step, steps).amin(0)
    return torch.stack([torch.minimum(begin, end), end], 1).to(torch.int32)


def states_before(y: Tensor, h0: Tensor, flags: Tensor, direction: int) -> Tensor:
    """The state each step starts from, (T, B, H), out of y (T, B, H), 0 where not real, and h0 (B, H)."""
    steps, batch, _ = y.shape
    if direction == 1:
        y, flags = y.flip(0), flags.flip(0)
    step = torch.arange(steps, device=y.device).unsqueeze(1)
    last = torch.where((flags & REAL) != 0, step, -1).cummax(0).values
    last = torch.cat([last.new_full((1, batch), -1), last[:-1]])  # before each step
    last = torch.where((flags & BEGAN[direction]) != 0, -1, last)
    states = y[last.clamp(min=0), torch.arange(batch, device=y.device)]
    states = torch.where((last >= 0).unsqueeze(-1), states, h0)
    return states.flip(0) if direction == 1 else states
