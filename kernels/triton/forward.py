"""The forward recurrence over a chunk of time in one launch, all of W_hh on chip: H up to 128.

Each program runs a tile of BLOCK_B rows in one direction through all the chunk's steps; no program waits for another.
Per step, with the input side gx_t = x_t W_ih^T + b_ih (b_hr and b_hz added to it) computed before for all steps at
once:

    r  = sigmoid(gx_r + h W_hr^T)
    z  = sigmoid(gx_z + h W_hz^T)
    n  = tanh(gx_n + r * (h W_hn^T + b_hn))
    h' = (1 - z) * n + z * h

h stays in registers in float32 and crosses chunks in memory; sums are float32. T time, B batch, C steps a chunk, D
directions: the second runs from the end, so that its first chunk is the last in time. H is a multiple of 16 (the
launcher pads it), BLOCK_H the next power of two. Flags per (t, b) are those of `flags.py`.

The tensor cores take W^T from shared memory as W lies there. Float32 products without them ("ieee") would read it with
conflicts of 8 lanes and more: the launcher transposes each gate's W in memory for them, once a call.
"""

import triton
import triton.language as tl

from .activations import new_state, rounded, sigmoid, tanh
from .flags import RESTARTS, has, is_real


@triton.jit(do_not_specialize=["C", "B", "first_step_0", "first_step_1"])
def _gru_forward_kernel(
    gx_ptr,  # (D, C, B, 3, H)
    h_ptr,  # (D, B, H) float32: the state before the chunk, then that after it
    h_reset_ptr,  # (D, B, H), read if HAS_FLAGS
    w_hh_ptr,  # (D, 3, H, H), each gate's transposed if BY_COLUMN
    b_hn_ptr,  # (D, H)
    flags_ptr,  # (T, B) uint8, read if HAS_FLAGS
    span_ptr,  # (tiles, 2) int32, a tile's first real step and the one after its last; read if HAS_FLAGS
    y_ptr,  # (T, B, D, H), 0 before where a step is not real
    C,
    B,
    first_step_0,  # the chunk's earliest time step in the first direction
    first_step_1,  # and in the second
    D: tl.constexpr,
    H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    STAGES: tl.constexpr,
    HAS_FLAGS: tl.constexpr,
    FAST: tl.constexpr,
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

    BY_COLUMN: tl.constexpr = PRECISION == "ieee" and w_hh_ptr.dtype.element_ty == tl.float32
    w_ptrs = w_hh_ptr + d * 3 * H * H  # W^T: (k, j) from row j, column k
    if BY_COLUMN:
        w_ptrs += offs_h[:, None] * H + offs_h[None, :]
    else:
        w_ptrs += offs_h[None, :] * H + offs_h[:, None]
    mask_w = mask_h[:, None] & mask_h[None, :]
    w_r = tl.load(w_ptrs, mask=mask_w, other=0.0)
    w_z = tl.load(w_ptrs + H * H, mask=mask_w, other=0.0)
    w_n = tl.load(w_ptrs + 2 * H * H, mask=mask_w, other=0.0)
    if UPCAST:
        w_r, w_z, w_n = w_r.to(tl.float32), w_z.to(tl.float32), w_n.to(tl.float32)
    b_hn = tl.load(b_hn_ptr + d * H + offs_h, mask=mask_h, other=0.0).to(tl.float32)

    batch = B.to(tl.int64)
    offs_state = d * batch * H + offs_b[:, None].to(tl.int64) * H + offs_h[None, :]
    h = tl.load(h_ptr + offs_state, mask=mask, other=0.0)
    first_step = first_step_0 + d * (first_step_1 - first_step_0)
    begin, end = 0, C  # the steps of the chunk that this tile runs
    if HAS_FLAGS:
        h_reset = tl.load(h_reset_ptr + offs_state, mask=mask, other=0.0).to(tl.float32)
        begin = tl.maximum(tl.load(span_ptr + 2 * tile) - first_step, 0)
        end = tl.minimum(tl.load(span_ptr + 2 * tile + 1) - first_step, C)

    sign = 1 - 2 * d
    c = begin + d * (end - 1 - begin)
    rows = (d * C + c).to(tl.int64) * B + offs_b  # in the chunk
    all_rows = (first_step + c).to(tl.int64) * B + offs_b  # in the sequence
    gx_ptrs = gx_ptr + rows[:, None] * (3 * H) + offs_h[None, :]
    y_ptrs = y_ptr + (all_rows * D + d)[:, None] * H + offs_h[None, :]
    if HAS_FLAGS:
        flag_ptrs = flags_ptr + all_rows
    step = sign * batch * H
    for _ in tl.range(begin, end, num_stages=STAGES):
        gx_r = tl.load(gx_ptrs, mask=mask, other=0.0)
        gx_z = tl.load(gx_ptrs + H, mask=mask, other=0.0)
        gx_n = tl.load(gx_ptrs + 2 * H, mask=mask, other=0.0)
        operand = rounded(h, w_hh_ptr.dtype.element_ty, UPCAST)
        if UPCAST:
            operand = operand.to(tl.float32)
        r = sigmoid(tl.dot(operand, w_r, acc=gx_r.to(tl.float32), input_precision=PRECISION), FAST)
        u_z = tl.dot(operand, w_z, acc=gx_z.to(tl.float32), input_precision=PRECISION)
        gh_n = tl.dot(operand, w_n, input_precision=PRECISION) + b_hn[None, :]
        n = tanh(gx_n.to(tl.float32) + r * gh_n, FAST)
        h_new = new_state(u_z, n, h, FAST)
        if HAS_FLAGS:
            # Holding and resetting come last, where h is laid out as the products leave it: at the step's beginning
            # they cost 400 instructions a step rather than 270 (H = 64, sm_90).
            flag = tl.load(flag_ptrs, mask=mask_b, other=0)
            real = is_real(flag)
            restart = has(flag, RESTARTS, d)
            tl.store(y_ptrs, rounded(h_new, y_ptr.dtype.element_ty, UPCAST), mask=mask & real[:, None])
            h = tl.where(real[:, None], h_new, h)
            h = tl.where(restart[:, None], h_reset, h)
            flag_ptrs += sign * batch
        else:
            tl.store(y_ptrs, rounded(h_new, y_ptr.dtype.element_ty, UPCAST), mask=mask)
            h = h_new
        gx_ptrs += 3 * step
        y_ptrs += D * step
    tl.store(h_ptr + offs_state, h, mask=mask)
