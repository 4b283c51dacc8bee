"""The masks of `../noise.py`, bit for bit, made in one launch: factors of recurrent dropout, and zoneout of a chunk.

Zoneout comes before the recurrence: a unit that keeps its state in a step gets gx_z = infinity there. Then z is 1 and
1 - z is 0, forward and in backward's local derivatives, so no other kernel has to know, and none computes a hash within
its loop. Unlike in `../regularised.py`, a NaN that x has in a step also comes to the units that keep their state.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..noise import threshold
from .plan import current

_BLOCK_B = 8


@triton.jit
def _mixed(x):
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _is_false(seed_ptr, stream, step, row, unit, most):
    """(rows, units), True where the mask is False: where the hash is at most the uint32 with the bits of `most`."""
    at = _mixed(_mixed(tl.load(seed_ptr).to(tl.uint32)) + stream.to(tl.uint32))
    at = _mixed(at + step)
    at = _mixed(at + row.to(tl.uint32))
    at = _mixed(at[:, None] + unit.to(tl.uint32)[None, :])
    return at <= most.to(tl.uint32, bitcast=True)


@triton.jit(do_not_specialize=["B", "first_step", "stream", "most"])
def _gru_zoneout_kernel(
    gx_ptr,  # (C, B, 3, H), of one recurrence
    seed_ptr,  # () int64
    B,
    first_step,  # the chunk's earliest time step
    stream,
    most,
    H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    tiles = tl.cdiv(B, BLOCK_B)
    step = tl.program_id(0) // tiles
    row = tl.program_id(0) % tiles * BLOCK_B + tl.arange(0, BLOCK_B)
    unit = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    keeps = _is_false(seed_ptr, stream, (first_step + step).to(tl.uint32), row, unit, most)
    ptrs = gx_ptr + (step.to(tl.int64) * B + row)[:, None] * (3 * H) + H + unit[None, :]
    always = tl.full([BLOCK_B, BLOCK_H], float("inf"), tl.float32).to(gx_ptr.dtype.element_ty)
    tl.store(ptrs, always, mask=keeps & (row < B)[:, None] & (unit < H)[None, :])


@triton.jit(do_not_specialize=["B", "most"])
def _gru_dropout_kernel(
    keep_ptr,  # (D, B, H) float32, out
    seed_ptr,  # () int64
    B,
    most,
    factor,
    H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    tiles = tl.cdiv(B, BLOCK_B)
    d = tl.program_id(0) // tiles
    row = tl.program_id(0) % tiles * BLOCK_B + tl.arange(0, BLOCK_B)
    unit = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    keep = tl.where(_is_false(seed_ptr, 2 * d, 0, row, unit, most), 0.0, factor)
    ptrs = keep_ptr + (d.to(tl.int64) * B + row)[:, None] * H + unit[None, :]
    tl.store(ptrs, keep, mask=(row < B)[:, None] & (unit < H)[None, :])


def zone_out(gx: Tensor, seed: Tensor, p: float, d: int, batch: int, H: int, first_step: int) -> None:
    """Lets units of recurrence d keep their state with probability p in a chunk of steps, gx (C*B, 3H)."""
    if threshold(p) > 0:
        grid, blocks = _tiles(len(gx) // batch, batch, H)
        _gru_zoneout_kernel[grid](gx, seed, batch, first_step, 2 * d + 1, _most(p), H=H, **blocks)


def dropout_factors(seed: Tensor, p: float, recurrences: int, batch: int, H: int) -> Tensor:
    """The factors of the state in the products of each recurrence, (D, B, H) float32."""
    keep = torch.ones(recurrences, batch, H, device=seed.device)
    if threshold(p) > 0 and batch:
        grid, blocks = _tiles(recurrences, batch, H)
        with current(seed.device):
            _gru_dropout_kernel[grid](keep, seed, batch, _most(p), 1 / max(1 - p, 1e-7), H=H, **blocks)
    return keep


def _tiles(count: int, batch: int, H: int) -> tuple[tuple[int, int], dict[str, int]]:
    """The grid for some times (B, H), and its blocks."""
    block_h = min(256, triton.next_power_of_2(H))
    grid = (count * triton.cdiv(batch, _BLOCK_B), triton.cdiv(H, block_h))
    return grid, {"BLOCK_B": _BLOCK_B, "BLOCK_H": block_h}


def _most(p: float) -> int:
    """The largest uint32 at which a mask is False, as int32."""
    most = threshold(p) - 1
    return most - 2**32 if most >= 2**31 else most
