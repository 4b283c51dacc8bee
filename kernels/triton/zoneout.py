"""Zoneout of a chunk, before its recurrence: a unit that keeps its state in a step gets gx_z = infinity there.

Then z is 1 and 1 - z is 0, forward and in backward's local derivatives, so no other kernel has to know, and none
computes a hash within its loop. The masks are those of `noise.py`, bit for bit.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..noise import threshold


@triton.jit
def mixed(x):
    """The hash of `noise.py`, of uint32."""
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    return x ^ (x >> 16)


@triton.jit(do_not_specialize=["B", "first_step", "stream", "most"])
def _gru_zoneout_kernel(
    gx_ptr,  # (C, B, 3, H), of one recurrence
    seed_ptr,  # () int64
    B,
    first_step,  # the chunk's earliest time step
    stream,
    most,  # the bits of the largest uint32 that keeps the state
    H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    tiles = tl.cdiv(B, BLOCK_B)
    step = tl.program_id(0) // tiles
    row = tl.program_id(0) % tiles * BLOCK_B + tl.arange(0, BLOCK_B)
    unit = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    at = mixed(mixed(tl.load(seed_ptr).to(tl.uint32)) + stream.to(tl.uint32))
    at = mixed(at + (first_step + step).to(tl.uint32))
    at = mixed(at + row.to(tl.uint32))
    at = mixed(at[:, None] + unit.to(tl.uint32)[None, :])
    keeps = at <= most.to(tl.uint32, bitcast=True)
    ptrs = gx_ptr + (step.to(tl.int64) * B + row)[:, None] * (3 * H) + H + unit[None, :]
    always = tl.full([BLOCK_B, BLOCK_H], float("inf"), tl.float32).to(gx_ptr.dtype.element_ty)
    tl.store(ptrs, always, mask=keeps & (row < B)[:, None] & (unit < H)[None, :])


def zone_out(gx: Tensor, seed: Tensor, p: float, d: int, batch: int, H: int, first_step: int) -> None:
    """Lets units of recurrence d keep their state with probability p in a chunk of steps, gx (C*B, 3H)."""
    most = threshold(p) - 1
    if most < 0:
        return
    most -= 2**32 * (most >= 2**31)  # as int32
    block_b, block_h = 8, min(256, triton.next_power_of_2(H))
    grid = (len(gx) // batch * triton.cdiv(batch, block_b), triton.cdiv(H, block_h))
    _gru_zoneout_kernel[grid](gx, seed, batch, first_step, 2 * d + 1, most, H=H, BLOCK_B=block_b, BLOCK_H=block_h)
