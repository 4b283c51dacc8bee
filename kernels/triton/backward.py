"""The backward recurrence over a chunk of time in one launch, W_hh on chip, or its tiles from the L2 cache.

The gates of the chunk have been recomputed for all its steps at once, as the local derivatives of each new state
(`derivatives.py`), so no transcendental functions are left. From the chunk's last step to its first in the direction of
travel, with dh the gradient of the state after the step:

    dh += dy_t                                       written out: all other gradients of the step follow from it
    dh  = z dh + keep (((a_r, a_z, a_n r) dh) W_hh)  the gradient of the state before the step; keep: see `forward.py`

A padding step has a = 0, z = 1 and dy = 0. Where a step began from h_reset, dh is added to its gradient and restarts
from 0. Shapes, flags and groups are those of `forward.py`. The programs of a group exchange the gates' gradients; each
needs the columns of W_hh of its units. A step reads slot i and writes slot i + 1, so a group computes a step's product
with W_hh at the beginning of the next step, and the launcher computes that of a chunk's last step.
"""

import triton
import triton.language as tl

from .activations import operand, rounded
from .derivatives import update_gate
from .exchange import LINE, await_group, nan_without, receive, report, signal, store
from .flags import BEGAN, has
from .forward import load_three, only_if, weight


@triton.jit
def _begin_again(dh, dh_reset, flag, direction):
    """dh and dh_reset before a step with that flag: dh goes to h_reset where the step began from it."""
    began = has(flag, BEGAN, direction)
    dh_reset += tl.where(began[:, None], dh, 0.0)
    dh = tl.where(began[:, None], 0.0, dh)
    return dh, dh_reset


@triton.jit(do_not_specialize=["C", "B", "first_tile", "first_step_0", "first_step_1", "first", "last", "patience"])
def _gru_backward_kernel(
    dy_ptr,  # (D, C, B, H), read if HAS_DY; overwritten by dh
    a_ptr,  # (D, C, B, 4, H): a_r, a_z, a_n r, z
    w_hh_ptr,  # (D, 3, H, H)
    flags_ptr,  # (T, B) uint8, read if HAS_FLAGS
    keep_ptr,  # (D, B, H) float32, the factor of h in the products; read if HAS_DROPOUT
    dh_ptr,  # (D, B, H) float32: the gradient of the state after the chunk, then that before it; z dh if EXCHANGE
    dh_reset_ptr,  # (D, B, H) float32: the gradient of h_reset is added; used if HAS_FLAGS
    slots_ptr,  # (C + 1, D, B, 3, H) integers as wide as the dtype: slot 0 zeros; used if EXCHANGE
    counters_ptr,  # (tiles, D, LINE) int32, 0 before the chunk; used where EXCHANGE is "counter"
    failed_ptr,  # (1,) int32 in the host's memory: set if a program gave up waiting; used if EXCHANGE
    C,
    B,
    first_tile,
    first_step_0,  # the chunk's earliest time step in the first direction
    first_step_1,  # and in the second
    first,  # counted from the chunk's last step
    last,
    patience,  # polls of a program
    D: tl.constexpr,
    HEADS: tl.constexpr,
    H: tl.constexpr,
    J: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STREAMED: tl.constexpr,
    STAGES: tl.constexpr,
    EXCHANGE: tl.constexpr,
    HAS_DY: tl.constexpr,
    HAS_FLAGS: tl.constexpr,
    HAS_DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    GROUP: tl.constexpr = EXCHANGE != ""
    if not GROUP:
        first, last = 0, C  # as the launcher says; known here, they save instructions in the loop
    SPLITS: tl.constexpr = (H + J - 1) // J
    CHUNKS: tl.constexpr = (H + BLOCK_K - 1) // BLOCK_K
    j = tl.program_id(0) % SPLITS
    d = (tl.program_id(0) // SPLITS) % D
    direction = (tl.program_id(0) // (SPLITS * HEADS)) % (D // HEADS)
    tile = first_tile + tl.program_id(0) // (SPLITS * D)
    dtype: tl.constexpr = w_hh_ptr.dtype.element_ty
    offs_b = tile * BLOCK_B + tl.arange(0, BLOCK_B)
    offs_j = j * J + tl.arange(0, J)
    offs_k = tl.arange(0, BLOCK_K)
    mask_b = offs_b < B
    mask = mask_b[:, None]
    if H % J:
        mask = mask & (offs_j < H)[None, :]

    w_ptr = w_hh_ptr + d.to(tl.int64) * (3 * H * H)
    w = ()
    if not STREAMED:
        for c in tl.static_range(3 * CHUNKS):
            gate_ptr = w_ptr + (c // CHUNKS) * H * H
            w = w + (weight(gate_ptr, (c % CHUNKS) * BLOCK_K + offs_k, offs_j, H, False, UPCAST),)

    batch = B.to(tl.int64)
    offs_state = (d * batch + offs_b)[:, None] * H + offs_j[None, :]
    dh = tl.load(dh_ptr + offs_state, mask=mask, other=0.0)
    if HAS_DROPOUT:
        keep = tl.load(keep_ptr + offs_state, mask=mask, other=0.0)
    if HAS_FLAGS:
        dh_reset = tl.load(dh_reset_ptr + offs_state, mask=mask, other=0.0)

    sign = 2 * direction - 1  # against the direction of travel
    c0 = (1 - direction) * (C - 1) + sign * first
    rows = (d * C + c0).to(tl.int64) * B + offs_b
    a_ptrs = a_ptr + rows[:, None] * (4 * H) + offs_j[None, :]
    dy_ptrs = dy_ptr + rows[:, None] * H + offs_j[None, :]
    first_step = first_step_0 + direction * (first_step_1 - first_step_0)
    if HAS_FLAGS:
        flag_ptrs = flags_ptr + (first_step + c0 - (sign if GROUP else 0)).to(tl.int64) * B + offs_b
    step = sign * batch * H
    if GROUP:
        counter_ptr = counters_ptr + (tile * D + d) * LINE
        slot_rows = (first.to(tl.int64) * D + d) * B + offs_b
        in_ptrs = slots_ptr + slot_rows[:, None] * (3 * H) + offs_k[None, :]
        out_ptrs = slots_ptr + (slot_rows + D * batch)[:, None] * (3 * H) + offs_j[None, :]
        ahead = only_if(first < last, mask)
        next_r, next_z, next_n = load_three(a_ptrs, ahead, H)
        next_keep = tl.load(a_ptrs + 3 * H, mask=ahead, other=0.0)
    for i in tl.range(first, last, num_stages=1 if GROUP else STAGES):
        if GROUP:
            a_r, a_z, a_n = next_r.to(tl.float32), next_z.to(tl.float32), next_n.to(tl.float32)
            z = update_gate(next_keep)
            a_ptrs += 4 * step
            ahead = only_if(i + 1 < last, mask)  # on its way while the group is awaited
            next_r, next_z, next_n = load_three(a_ptrs, ahead, H)
            next_keep = tl.load(a_ptrs + 3 * H, mask=ahead, other=0.0)
            if HAS_DY:
                dy = tl.load(dy_ptrs, mask=mask, other=0.0)
            patience = await_group(counter_ptr, i, patience, SPLITS, EXCHANGE)
            if EXCHANGE == "counter":
                dh += nan_without(patience)
            acc = tl.zeros([BLOCK_B, J], tl.float32) if HAS_DROPOUT else dh
            if STREAMED:  # what was left of the step taken before
                for c in tl.range(3 * CHUNKS, num_stages=STAGES):
                    gate, k = c // CHUNKS, (c % CHUNKS) * BLOCK_K + offs_k
                    offset = gate * H + (c % CHUNKS) * BLOCK_K
                    dg, patience = receive(in_ptrs + offset, mask & (k < H)[None, :], patience, dtype, EXCHANGE, UPCAST)
                    tile_w = weight(w_ptr + gate * H * H, k, offs_j, H, False, UPCAST)
                    acc = tl.dot(dg, tile_w, acc=acc, input_precision=PRECISION)
            else:
                for c in tl.static_range(3 * CHUNKS):
                    offset = (c // CHUNKS) * H + (c % CHUNKS) * BLOCK_K
                    mask_k = ((c % CHUNKS) * BLOCK_K + offs_k < H)[None, :]
                    dg, patience = receive(in_ptrs + offset, mask & mask_k, patience, dtype, EXCHANGE, UPCAST)
                    acc = tl.dot(dg, w[c], acc=acc, input_precision=PRECISION)
            dh = dh + keep * acc if HAS_DROPOUT else acc
            if HAS_FLAGS:
                flag = tl.load(flag_ptrs, mask=only_if(i > 0, mask_b), other=0)
                dh, dh_reset = _begin_again(dh, dh_reset, flag, direction)
        else:
            if HAS_DY:
                dy = tl.load(dy_ptrs, mask=mask, other=0.0)
            a_r, a_z, a_n = load_three(a_ptrs, mask, H)
            z = update_gate(tl.load(a_ptrs + 3 * H, mask=mask, other=0.0))
            a_r, a_z, a_n = a_r.to(tl.float32), a_z.to(tl.float32), a_n.to(tl.float32)
            a_ptrs += 4 * step
        if HAS_DY:
            dh += dy.to(tl.float32)
        if GROUP:
            store(out_ptrs, dh * a_r, mask, dtype, EXCHANGE, UPCAST)
            store(out_ptrs + H, dh * a_z, mask, dtype, EXCHANGE, UPCAST)
            store(out_ptrs + 2 * H, dh * a_n, mask, dtype, EXCHANGE, UPCAST)
            signal(counter_ptr, EXCHANGE)
            in_ptrs += D * batch * 3 * H
            out_ptrs += D * batch * 3 * H
        tl.store(dy_ptrs, rounded(dh, dy_ptr.dtype.element_ty, UPCAST), mask=mask)
        if GROUP:
            dh = dh * z
        else:
            dg_r = operand(dh * a_r, dtype, UPCAST)
            dg_z = operand(dh * a_z, dtype, UPCAST)
            dg_n = operand(dh * a_n, dtype, UPCAST)
            acc = tl.zeros([BLOCK_B, J], tl.float32) if HAS_DROPOUT else dh * z
            acc = tl.dot(dg_r, w[0], acc=acc, input_precision=PRECISION)
            acc = tl.dot(dg_z, w[1], acc=acc, input_precision=PRECISION)
            acc = tl.dot(dg_n, w[2], acc=acc, input_precision=PRECISION)
            dh = dh * z + keep * acc if HAS_DROPOUT else acc
            if HAS_FLAGS:
                flag = tl.load(flag_ptrs, mask=mask_b, other=0)
                dh, dh_reset = _begin_again(dh, dh_reset, flag, direction)
        if HAS_FLAGS:
            flag_ptrs += sign * batch
        dy_ptrs += step
    tl.store(dh_ptr + offs_state, dh, mask=mask)
    if HAS_FLAGS:
        tl.store(dh_reset_ptr + offs_state, dh_reset, mask=mask)
    if GROUP:
        report(failed_ptr, patience)
