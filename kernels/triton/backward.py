"""The backward recurrence over a chunk of time in one launch, all of W_hh on chip: H up to 128.

The gates of the chunk were computed again before, for all its steps at once, as the local derivatives of each new state
(`derivatives.py`): what is left has no transcendental function. From the chunk's last step to its first in the
direction of travel, with dh the gradient of the state after the step:

    dh += dy_t                                written out: all other gradients of the step follow from it in parallel
    dh  = z dh + ((a_r, a_z, a_n r) dh) W_hh  the gradient of the state before the step

dh stays in registers in float32 and crosses chunks in memory. A step that is not real has a = 0, z = 1 and dy = 0.
Where a step began from h_reset, dh goes there and begins again from 0. Shapes and flags as in `forward.py`.
"""

import triton
import triton.language as tl

from .activations import rounded
from .derivatives import update_gate
from .flags import BEGAN, has


@triton.jit(do_not_specialize=["C", "B", "first_step_0", "first_step_1"])
def _gru_backward_kernel(
    dy_ptr,  # (D, C, B, H), read if HAS_DY; dh takes its place
    a_ptr,  # (D, C, B, 4, H): a_r, a_z, a_n r, z
    w_hh_ptr,  # (D, 3, H, H)
    flags_ptr,  # (T, B) uint8, read if HAS_FLAGS
    dh_ptr,  # (D, B, H) float32: the gradient of the state after the chunk, then of that before it
    dh_reset_ptr,  # (D, B, H) float32: the gradient of h_reset is added; used if HAS_FLAGS
    C,
    B,
    first_step_0,  # the chunk's earliest time step in the first direction
    first_step_1,  # and in the second
    D: tl.constexpr,
    H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    STAGES: tl.constexpr,
    HAS_DY: tl.constexpr,
    HAS_FLAGS: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    tile = tl.program_id(0) // D
    d = tl.program_id(0) % D
    offs_b = tile * BLOCK_B + tl.arange(0, BLOCK_B)
    offs_h = tl.arange(0, BLOCK_H)
    mask_b = offs_b < B
    mask_h = offs_h < H
    mask = mask_b[:, None] & mask_h[None, :]

    w_ptrs = w_hh_ptr + d * 3 * H * H + offs_h[:, None] * H + offs_h[None, :]
    mask_w = mask_h[:, None] & mask_h[None, :]
    w_r = tl.load(w_ptrs, mask=mask_w, other=0.0)
    w_z = tl.load(w_ptrs + H * H, mask=mask_w, other=0.0)
    w_n = tl.load(w_ptrs + 2 * H * H, mask=mask_w, other=0.0)
    if UPCAST:
        w_r, w_z, w_n = w_r.to(tl.float32), w_z.to(tl.float32), w_n.to(tl.float32)

    batch = B.to(tl.int64)
    offs_state = d * batch * H + offs_b[:, None].to(tl.int64) * H + offs_h[None, :]
    dh = tl.load(dh_ptr + offs_state, mask=mask, other=0.0)
    if HAS_FLAGS:
        dh_reset = tl.load(dh_reset_ptr + offs_state, mask=mask, other=0.0)

    sign = 2 * d - 1  # against the direction of travel
    c = (1 - d) * (C - 1)
    rows = (d * C + c).to(tl.int64) * B + offs_b  # in the chunk
    a_ptrs = a_ptr + rows[:, None] * (4 * H) + offs_h[None, :]
    dy_ptrs = dy_ptr + rows[:, None] * H + offs_h[None, :]
    first_step = first_step_0 + d * (first_step_1 - first_step_0)
    if HAS_FLAGS:
        flag_ptrs = flags_ptr + (first_step + c).to(tl.int64) * B + offs_b
    step = sign * batch * H
    for _ in tl.range(0, C, num_stages=STAGES):
        if HAS_DY:
            dh += tl.load(dy_ptrs, mask=mask, other=0.0).to(tl.float32)
        a_r = tl.load(a_ptrs, mask=mask, other=0.0)
        a_z = tl.load(a_ptrs + H, mask=mask, other=0.0)
        a_n = tl.load(a_ptrs + 2 * H, mask=mask, other=0.0)
        z = tl.load(a_ptrs + 3 * H, mask=mask, other=0.0)
        tl.store(dy_ptrs, rounded(dh, dy_ptr.dtype.element_ty, UPCAST), mask=mask)
        dg_r = rounded(dh * a_r.to(tl.float32), w_hh_ptr.dtype.element_ty, UPCAST)
        dg_z = rounded(dh * a_z.to(tl.float32), w_hh_ptr.dtype.element_ty, UPCAST)
        dg_n = rounded(dh * a_n.to(tl.float32), w_hh_ptr.dtype.element_ty, UPCAST)
        if UPCAST:
            dg_r, dg_z, dg_n = dg_r.to(tl.float32), dg_z.to(tl.float32), dg_n.to(tl.float32)
        dh = dh * update_gate(z)
        dh = tl.dot(dg_r, w_r, acc=dh, input_precision=PRECISION)
        dh = tl.dot(dg_z, w_z, acc=dh, input_precision=PRECISION)
        dh = tl.dot(dg_n, w_n, acc=dh, input_precision=PRECISION)
        if HAS_FLAGS:
            flag = tl.load(flag_ptrs, mask=mask_b, other=0)
            began = has(flag, BEGAN, d)
            dh_reset += tl.where(began[:, None], dh, 0.0)
            dh = tl.where(began[:, None], 0.0, dh)
            flag_ptrs += sign * batch
        a_ptrs += 4 * step
        dy_ptrs += step
    tl.store(dh_ptr + offs_state, dh, mask=mask)
    if HAS_FLAGS:
        tl.store(dh_reset_ptr + offs_state, dh_reset, mask=mask)
