"""The recurrences with H split across the programs of a group: H over 128, or whatever no single program holds.

A group of H / J programs runs one tile of rows in one direction. Each owns J hidden units: the same slice of r, z and
n, so that all pointwise work stays with it, and the rows or columns of W_hh that the slice needs. Those stay on chip
for the whole chunk of time, or, STREAMED, come from the L2 cache in each step. Once a step its slice of the state
(forward) or of the gates' gradients (backward) goes to the others through memory, and theirs come back, by the protocol
EXCHANGE of `exchange.py`.

Both loops read slot i, compute, and write slot i + 1. So backward takes a step's product with W_hh at the beginning of
the next one; that of a chunk's last step is left to the launcher. Steps `first` to `last` of the chunk run in one
launch, for which all programs of a group must run at once, or else in a launch for each step. All else is as in
`forward.py` and `backward.py`.
"""

import triton
import triton.language as tl

from .activations import new_state, rounded, sigmoid, tanh
from .derivatives import update_gate
from .exchange import LINE, await_group, receive, signal, store
from .flags import BEGAN, RESTARTS, has, is_real


@triton.jit
def _weight(w_ptr, offs_row, offs_column, H: tl.constexpr, TRANSPOSED: tl.constexpr, UPCAST: tl.constexpr):
    """A tile (rows, columns) of a gate's W (H, H), or of its transpose."""
    row, column = (offs_column[None, :], offs_row[:, None]) if TRANSPOSED else (offs_row[:, None], offs_column[None, :])
    w = tl.load(w_ptr + row * H + column, mask=(row < H) & (column < H), other=0.0)
    return w.to(tl.float32) if UPCAST else w


@triton.jit
def _only_if(condition, mask):
    """The mask, all False unless a scalar condition holds."""
    # Comparing is free; without it the interpreter of Triton 3.9 takes the result for no mask.
    return (mask & condition) != 0


@triton.jit(do_not_specialize=["C", "B", "first_tile", "first_step_0", "first_step_1", "first", "last"])
def _gru_forward_split_kernel(
    gx_ptr,  # (D, C, B, 3, H)
    h_ptr,  # (D, B, H) float32: the state before step `first`, then that after step `last` - 1
    h_reset_ptr,  # (D, B, H), read if HAS_FLAGS
    w_hh_ptr,  # (D, 3, H, H), each gate's transposed if BY_COLUMN
    b_hn_ptr,  # (D, H)
    flags_ptr,  # (T, B) uint8, read if HAS_FLAGS
    span_ptr,  # (tiles, 2) int32, a tile's first real step and the one after its last; read if HAS_FLAGS
    y_ptr,  # (T, B, D, H), 0 before where a step is not real
    slots_ptr,  # (C + 1, D, B, H) integers as wide as the dtype: slot 0 the state before the chunk
    counters_ptr,  # (tiles, D, LINE) int32, 0 before the chunk; used where EXCHANGE is "counter"
    C,
    B,
    first_tile,
    first_step_0,
    first_step_1,
    first,  # of the tile's steps in this chunk
    last,
    D: tl.constexpr,
    H: tl.constexpr,
    J: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STREAMED: tl.constexpr,
    STAGES: tl.constexpr,
    EXCHANGE: tl.constexpr,
    HAS_FLAGS: tl.constexpr,
    FAST: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    SPLITS: tl.constexpr = H // J
    CHUNKS: tl.constexpr = (H + BLOCK_K - 1) // BLOCK_K
    j = tl.program_id(0) % SPLITS
    d = (tl.program_id(0) // SPLITS) % D
    tile = first_tile + tl.program_id(0) // (SPLITS * D)
    dtype: tl.constexpr = w_hh_ptr.dtype.element_ty
    offs_b = tile * BLOCK_B + tl.arange(0, BLOCK_B)
    offs_j = j * J + tl.arange(0, J)
    offs_k = tl.arange(0, BLOCK_K)
    mask_b = offs_b < B
    mask = mask_b[:, None]

    BY_COLUMN: tl.constexpr = PRECISION == "ieee" and dtype == tl.float32
    w_ptr = w_hh_ptr + d * 3 * H * H
    w_r, w_z, w_n = (), (), ()
    if not STREAMED:
        for c in tl.static_range(CHUNKS):
            w_r = w_r + (_weight(w_ptr, c * BLOCK_K + offs_k, offs_j, H, not BY_COLUMN, UPCAST),)
            w_z = w_z + (_weight(w_ptr + H * H, c * BLOCK_K + offs_k, offs_j, H, not BY_COLUMN, UPCAST),)
            w_n = w_n + (_weight(w_ptr + 2 * H * H, c * BLOCK_K + offs_k, offs_j, H, not BY_COLUMN, UPCAST),)
    b_hn = tl.load(b_hn_ptr + d * H + offs_j).to(tl.float32)

    counter_ptr = counters_ptr + (tile * D + d) * LINE
    batch = B.to(tl.int64)
    offs_state = (d * batch + offs_b)[:, None] * H + offs_j[None, :]
    h = tl.load(h_ptr + offs_state, mask=mask, other=0.0)
    first_step = first_step_0 + d * (first_step_1 - first_step_0)
    begin, end = 0, C
    if HAS_FLAGS:
        h_reset = tl.load(h_reset_ptr + offs_state, mask=mask, other=0.0).to(tl.float32)
        begin = tl.maximum(tl.load(span_ptr + 2 * tile) - first_step, 0)
        end = tl.minimum(tl.load(span_ptr + 2 * tile + 1) - first_step, C)
    last = tl.minimum(last, end - begin)

    sign = 1 - 2 * d
    c0 = begin + d * (end - 1 - begin) + sign * first
    all_rows = (first_step + c0).to(tl.int64) * B + offs_b
    gx_ptrs = gx_ptr + ((d * C + c0).to(tl.int64) * B + offs_b)[:, None] * (3 * H) + offs_j[None, :]
    y_ptrs = y_ptr + (all_rows * D + d)[:, None] * H + offs_j[None, :]
    if HAS_FLAGS:
        flag_ptrs = flags_ptr + all_rows
    slot_rows = (first.to(tl.int64) * D + d) * B + offs_b
    in_ptrs = slots_ptr + slot_rows[:, None] * H + offs_k[None, :]
    out_ptrs = slots_ptr + (slot_rows + D * batch)[:, None] * H + offs_j[None, :]
    step = sign * batch * H
    ahead = _only_if(first < last, mask)
    next_r = tl.load(gx_ptrs, mask=ahead, other=0.0)
    next_z = tl.load(gx_ptrs + H, mask=ahead, other=0.0)
    next_n = tl.load(gx_ptrs + 2 * H, mask=ahead, other=0.0)
    for i in range(first, last):
        acc_r, acc_z, gx_n = next_r.to(tl.float32), next_z.to(tl.float32), next_n.to(tl.float32)
        acc_n = tl.zeros([BLOCK_B, J], tl.float32)
        gx_ptrs += 3 * step
        ahead = _only_if(i + 1 < last, mask)  # on its way while the group is awaited
        next_r = tl.load(gx_ptrs, mask=ahead, other=0.0)
        next_z = tl.load(gx_ptrs + H, mask=ahead, other=0.0)
        next_n = tl.load(gx_ptrs + 2 * H, mask=ahead, other=0.0)
        if HAS_FLAGS:
            flag = tl.load(flag_ptrs, mask=mask_b, other=0)
        await_group(counter_ptr, i, SPLITS, EXCHANGE)
        if STREAMED:
            for c in tl.range(CHUNKS, num_stages=STAGES):
                k = c * BLOCK_K + offs_k
                operand = receive(in_ptrs + c * BLOCK_K, mask & (k < H)[None, :], dtype, EXCHANGE, UPCAST)
                w = _weight(w_ptr, k, offs_j, H, not BY_COLUMN, UPCAST)
                acc_r = tl.dot(operand, w, acc=acc_r, input_precision=PRECISION)
                w = _weight(w_ptr + H * H, k, offs_j, H, not BY_COLUMN, UPCAST)
                acc_z = tl.dot(operand, w, acc=acc_z, input_precision=PRECISION)
                w = _weight(w_ptr + 2 * H * H, k, offs_j, H, not BY_COLUMN, UPCAST)
                acc_n = tl.dot(operand, w, acc=acc_n, input_precision=PRECISION)
        else:
            for c in tl.static_range(CHUNKS):
                k = c * BLOCK_K + offs_k
                operand = receive(in_ptrs + c * BLOCK_K, mask & (k < H)[None, :], dtype, EXCHANGE, UPCAST)
                acc_r = tl.dot(operand, w_r[c], acc=acc_r, input_precision=PRECISION)
                acc_z = tl.dot(operand, w_z[c], acc=acc_z, input_precision=PRECISION)
                acc_n = tl.dot(operand, w_n[c], acc=acc_n, input_precision=PRECISION)
        r = sigmoid(acc_r, FAST)
        n = tanh(gx_n + r * (acc_n + b_hn[None, :]), FAST)
        h_new = new_state(acc_z, n, h, FAST)
        if HAS_FLAGS:
            real = is_real(flag)
            restart = has(flag, RESTARTS, d)
            h = tl.where(real[:, None], h_new, h)
            h = tl.where(restart[:, None], h_reset, h)
            flag_ptrs += sign * batch
        else:
            h = h_new
        sent = tl.where(h == h, h, float("nan"))  # a NaN of the caller's, held, may have the bits of the filling
        store(out_ptrs, sent, mask, dtype, EXCHANGE, UPCAST)
        signal(counter_ptr, EXCHANGE)
        if HAS_FLAGS:
            tl.store(y_ptrs, rounded(h_new, y_ptr.dtype.element_ty, UPCAST), mask=mask & real[:, None])
        else:
            tl.store(y_ptrs, rounded(h_new, y_ptr.dtype.element_ty, UPCAST), mask=mask)
        in_ptrs += D * batch * H
        out_ptrs += D * batch * H
        y_ptrs += D * step
    tl.store(h_ptr + offs_state, h, mask=mask)


@triton.jit(do_not_specialize=["C", "B", "first_tile", "first_step_0", "first_step_1", "first", "last"])
def _gru_backward_split_kernel(
    dy_ptr,  # (D, C, B, H), read if HAS_DY; dh takes its place
    a_ptr,  # (D, C, B, 4, H): a_r, a_z, a_n r, z
    w_hh_ptr,  # (D, 3, H, H)
    flags_ptr,  # (T, B) uint8, read if HAS_FLAGS
    dh_ptr,  # (D, B, H) float32: the gradient of the state after the chunk, then z dh of its last step taken
    dh_reset_ptr,  # (D, B, H) float32: the gradient of h_reset is added; used if HAS_FLAGS
    slots_ptr,  # (C + 1, D, B, 3, H) integers as wide as the dtype: slot 0 zeros
    counters_ptr,  # (tiles, D, LINE) int32, 0 before the chunk; used where EXCHANGE is "counter"
    C,
    B,
    first_tile,
    first_step_0,
    first_step_1,
    first,  # counted from the chunk's last step
    last,
    D: tl.constexpr,
    H: tl.constexpr,
    J: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STREAMED: tl.constexpr,
    STAGES: tl.constexpr,
    EXCHANGE: tl.constexpr,
    HAS_DY: tl.constexpr,
    HAS_FLAGS: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    SPLITS: tl.constexpr = H // J
    CHUNKS: tl.constexpr = (H + BLOCK_K - 1) // BLOCK_K
    j = tl.program_id(0) % SPLITS
    d = (tl.program_id(0) // SPLITS) % D
    tile = first_tile + tl.program_id(0) // (SPLITS * D)
    dtype: tl.constexpr = w_hh_ptr.dtype.element_ty
    offs_b = tile * BLOCK_B + tl.arange(0, BLOCK_B)
    offs_j = j * J + tl.arange(0, J)
    offs_k = tl.arange(0, BLOCK_K)
    mask_b = offs_b < B
    mask = mask_b[:, None]

    w_ptr = w_hh_ptr + d * 3 * H * H
    w = ()
    if not STREAMED:
        for c in tl.static_range(3 * CHUNKS):
            gate_ptr = w_ptr + (c // CHUNKS) * H * H
            w = w + (_weight(gate_ptr, (c % CHUNKS) * BLOCK_K + offs_k, offs_j, H, False, UPCAST),)

    counter_ptr = counters_ptr + (tile * D + d) * LINE
    batch = B.to(tl.int64)
    offs_state = (d * batch + offs_b)[:, None] * H + offs_j[None, :]
    dh = tl.load(dh_ptr + offs_state, mask=mask, other=0.0)
    if HAS_FLAGS:
        dh_reset = tl.load(dh_reset_ptr + offs_state, mask=mask, other=0.0)

    sign = 2 * d - 1  # against the direction of travel
    c0 = (1 - d) * (C - 1) + sign * first
    rows = (d * C + c0).to(tl.int64) * B + offs_b
    a_ptrs = a_ptr + rows[:, None] * (4 * H) + offs_j[None, :]
    dy_ptrs = dy_ptr + rows[:, None] * H + offs_j[None, :]
    first_step = first_step_0 + d * (first_step_1 - first_step_0)
    if HAS_FLAGS:
        flag_ptrs = flags_ptr + (first_step + c0 - sign).to(tl.int64) * B + offs_b  # of the step taken before
    slot_rows = (first.to(tl.int64) * D + d) * B + offs_b
    in_ptrs = slots_ptr + slot_rows[:, None] * (3 * H) + offs_k[None, :]
    out_ptrs = slots_ptr + (slot_rows + D * batch)[:, None] * (3 * H) + offs_j[None, :]
    step = sign * batch * H
    ahead = _only_if(first < last, mask)
    next_r = tl.load(a_ptrs, mask=ahead, other=0.0)
    next_z = tl.load(a_ptrs + H, mask=ahead, other=0.0)
    next_n = tl.load(a_ptrs + 2 * H, mask=ahead, other=0.0)
    next_keep = tl.load(a_ptrs + 3 * H, mask=ahead, other=0.0)
    for i in range(first, last):
        a_r, a_z, a_n = next_r.to(tl.float32), next_z.to(tl.float32), next_n.to(tl.float32)
        z = update_gate(next_keep)
        a_ptrs += 4 * step
        ahead = _only_if(i + 1 < last, mask)  # on its way while the group is awaited
        next_r = tl.load(a_ptrs, mask=ahead, other=0.0)
        next_z = tl.load(a_ptrs + H, mask=ahead, other=0.0)
        next_n = tl.load(a_ptrs + 2 * H, mask=ahead, other=0.0)
        next_keep = tl.load(a_ptrs + 3 * H, mask=ahead, other=0.0)
        if HAS_DY:
            dy = tl.load(dy_ptrs, mask=mask, other=0.0)
        await_group(counter_ptr, i, SPLITS, EXCHANGE)
        if STREAMED:  # what was left of the step taken before
            for c in tl.range(3 * CHUNKS, num_stages=STAGES):
                gate, k = c // CHUNKS, (c % CHUNKS) * BLOCK_K + offs_k
                offset = gate * H + (c % CHUNKS) * BLOCK_K
                dg = receive(in_ptrs + offset, mask & (k < H)[None, :], dtype, EXCHANGE, UPCAST)
                tile_w = _weight(w_ptr + gate * H * H, k, offs_j, H, False, UPCAST)
                dh = tl.dot(dg, tile_w, acc=dh, input_precision=PRECISION)
        else:
            for c in tl.static_range(3 * CHUNKS):
                offset = (c // CHUNKS) * H + (c % CHUNKS) * BLOCK_K
                mask_k = ((c % CHUNKS) * BLOCK_K + offs_k < H)[None, :]
                dg = receive(in_ptrs + offset, mask & mask_k, dtype, EXCHANGE, UPCAST)
                dh = tl.dot(dg, w[c], acc=dh, input_precision=PRECISION)
        if HAS_FLAGS:
            flag = tl.load(flag_ptrs, mask=_only_if(i > 0, mask_b), other=0)
            began = has(flag, BEGAN, d)
            dh_reset += tl.where(began[:, None], dh, 0.0)
            dh = tl.where(began[:, None], 0.0, dh)
            flag_ptrs += sign * batch
        if HAS_DY:
            dh += dy.to(tl.float32)
        store(out_ptrs, dh * a_r, mask, dtype, EXCHANGE, UPCAST)
        store(out_ptrs + H, dh * a_z, mask, dtype, EXCHANGE, UPCAST)
        store(out_ptrs + 2 * H, dh * a_n, mask, dtype, EXCHANGE, UPCAST)
        signal(counter_ptr, EXCHANGE)
        tl.store(dy_ptrs, rounded(dh, dy_ptr.dtype.element_ty, UPCAST), mask=mask)
        dh = dh * z
        in_ptrs += D * batch * 3 * H
        out_ptrs += D * batch * 3 * H
        dy_ptrs += step
    tl.store(dh_ptr + offs_state, dh, mask=mask)
    if HAS_FLAGS:
        tl.store(dh_reset_ptr + offs_state, dh_reset, mask=mask)
