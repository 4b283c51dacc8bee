"""The recurrences with H split across the programs of a group: H over 128, all of W_hh still on chip.

A group of H / J programs runs one tile of rows in one direction. Each owns J hidden units: the same slice of r, z and
n, so that all pointwise work stays with it, and the rows or columns of W_hh that the slice needs. Once a step its
slice of the state (forward) or of the gates' gradients (backward) goes to the others through memory, and theirs come
back.

**The data is the flag.** A slot of the exchange buffer is filled with the bits 0xFF before the launch. No value
written to it has them: arithmetic and conversions make one NaN, 0x7FFF..., and a NaN of the caller's is replaced by
it. A reader loads its operand until no element is the filling, the largest unsigned number. No fence, no counter: each
element says for itself that it has come. Slots are not used twice in a launch. All programs of a group must run at
once, so the launcher asks for a cooperative grid and cuts the batch into as many launches as the device needs.

Both loops read slot i, compute, and write slot i + 1. So backward takes a step's product with W_hh at the beginning of
the next one; that of a chunk's last step is left to the launcher. Steps `first` to `last` of the chunk run in one
launch; in Triton's interpreter, which runs programs one after another, the launcher asks for one step at a time. All
else is as in `forward.py` and `backward.py`.
"""

import triton
import triton.language as tl

from .activations import rounded, sigmoid, tanh


@triton.jit
def _arrived(ptrs, mask):
    """The bits behind ptrs, once none is the filling."""
    filling: tl.constexpr = 2**ptrs.dtype.element_ty.primitive_bitwidth - 1
    bits = tl.load(ptrs, mask=mask, other=0, volatile=True)
    while tl.max(bits) == filling:  # the largest unsigned number
        bits = tl.load(ptrs, mask=mask, other=0, volatile=True)
    return bits


@triton.jit
def _operand(ptrs, mask, dtype: tl.constexpr, UPCAST: tl.constexpr):
    """What has arrived behind ptrs, integers as wide as dtype, as an operand of a product."""
    value = _arrived(ptrs, mask).to(dtype, bitcast=True)
    return value.to(tl.float32) if UPCAST else value


@triton.jit
def _weight(w_ptr, offs_row, offs_column, H: tl.constexpr, TRANSPOSED: tl.constexpr, UPCAST: tl.constexpr):
    """A tile (rows, columns) of a gate's W (H, H), or of its transpose."""
    row, column = (offs_column[None, :], offs_row[:, None]) if TRANSPOSED else (offs_row[:, None], offs_column[None, :])
    w = tl.load(w_ptr + row * H + column, mask=(row < H) & (column < H), other=0.0)
    return w.to(tl.float32) if UPCAST else w


@triton.jit(do_not_specialize=["C", "B", "first_tile", "first_step_0", "first_step_1", "first", "last"])
def _gru_forward_split_kernel(
    gx_ptr,  # (D, C, B, 3, H)
    h_ptr,  # (D, B, H) float32: the state before step `first`, then that after step `last` - 1
    h0_ptr,  # (D, B, H), read if HAS_FLAGS
    w_hh_ptr,  # (D, 3, H, H)
    b_hn_ptr,  # (D, H)
    flags_ptr,  # (T, B) uint8, read if HAS_FLAGS
    span_ptr,  # (tiles, 2) int32, a tile's first real step and the one after its last; read if HAS_FLAGS
    y_ptr,  # (T, B, D, H), 0 before where a step is not real
    slots_ptr,  # (C + 1, D, B, H) integers as wide as the dtype: slot 0 the state before the chunk, the rest filling
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

    w_r, w_z, w_n = (), (), ()
    for c in tl.static_range(CHUNKS):
        w_r = w_r + (_weight(w_hh_ptr + (d * 3 + 0) * H * H, c * BLOCK_K + offs_k, offs_j, H, True, UPCAST),)
        w_z = w_z + (_weight(w_hh_ptr + (d * 3 + 1) * H * H, c * BLOCK_K + offs_k, offs_j, H, True, UPCAST),)
        w_n = w_n + (_weight(w_hh_ptr + (d * 3 + 2) * H * H, c * BLOCK_K + offs_k, offs_j, H, True, UPCAST),)
    b_hn = tl.load(b_hn_ptr + d * H + offs_j).to(tl.float32)

    batch = B.to(tl.int64)
    offs_state = (d * batch + offs_b)[:, None] * H + offs_j[None, :]
    h = tl.load(h_ptr + offs_state, mask=mask, other=0.0)
    first_step = first_step_0 + d * (first_step_1 - first_step_0)
    begin, end = 0, C
    if HAS_FLAGS:
        h0 = tl.load(h0_ptr + offs_state, mask=mask, other=0.0).to(tl.float32)
        begin = tl.maximum(tl.load(span_ptr + 2 * tile) - first_step, 0)
        end = tl.minimum(tl.load(span_ptr + 2 * tile + 1) - first_step, C)
    last = tl.minimum(last, end - begin)

    sign = 1 - 2 * d
    c0 = begin + d * (end - 1 - begin) + sign * first
    all_rows = (first_step + c0).to(tl.int64) * B + offs_b
    gx_ptrs = gx_ptr + ((d * C + c0).to(tl.int64) * B + offs_b)[:, None] * (3 * H) + offs_j[None, :]
    y_ptrs = y_ptr + (all_rows * D + d)[:, None] * H + offs_j[None, :]
    flag_ptrs = flags_ptr + all_rows
    slot_rows = (first.to(tl.int64) * D + d) * B + offs_b
    in_ptrs = slots_ptr + slot_rows[:, None] * H + offs_k[None, :]
    out_ptrs = slots_ptr + (slot_rows + D * batch)[:, None] * H + offs_j[None, :]
    step = sign * batch * H
    for _ in range(first, last):
        acc_r = tl.load(gx_ptrs, mask=mask, other=0.0).to(tl.float32)
        acc_z = tl.load(gx_ptrs + H, mask=mask, other=0.0).to(tl.float32)
        gx_n = tl.load(gx_ptrs + 2 * H, mask=mask, other=0.0).to(tl.float32)
        acc_n = tl.zeros([BLOCK_B, J], tl.float32)
        if HAS_FLAGS:
            flag = tl.load(flag_ptrs, mask=mask_b, other=0)
        for c in tl.static_range(CHUNKS):
            operand = _operand(in_ptrs + c * BLOCK_K, mask & (c * BLOCK_K + offs_k < H)[None, :], dtype, UPCAST)
            acc_r = tl.dot(operand, w_r[c], acc=acc_r, input_precision=PRECISION)
            acc_z = tl.dot(operand, w_z[c], acc=acc_z, input_precision=PRECISION)
            acc_n = tl.dot(operand, w_n[c], acc=acc_n, input_precision=PRECISION)
        r = sigmoid(acc_r, FAST)
        z = sigmoid(acc_z, FAST)
        n = tanh(gx_n + r * (acc_n + b_hn[None, :]), FAST)
        h_new = n + z * (h - n)
        if HAS_FLAGS:
            real = (flag & 1) != 0
            restart = ((flag >> (1 + d)) & 1) != 0
            h = tl.where(real[:, None], h_new, h)
            h = tl.where(restart[:, None], h0, h)
            flag_ptrs += sign * batch
        else:
            h = h_new
        sent = tl.where(h == h, h, float("nan"))  # a NaN of the caller's, held, may have the bits of the filling
        tl.store(out_ptrs, rounded(sent, dtype, UPCAST).to(slots_ptr.dtype.element_ty, bitcast=True), mask=mask)
        if HAS_FLAGS:
            tl.store(y_ptrs, rounded(h_new, y_ptr.dtype.element_ty, UPCAST), mask=mask & real[:, None])
        else:
            tl.store(y_ptrs, rounded(h_new, y_ptr.dtype.element_ty, UPCAST), mask=mask)
        in_ptrs += D * batch * H
        out_ptrs += D * batch * H
        gx_ptrs += 3 * step
        y_ptrs += D * step
    tl.store(h_ptr + offs_state, h, mask=mask)


@triton.jit(do_not_specialize=["C", "B", "first_tile", "first_step_0", "first_step_1", "first", "last"])
def _gru_backward_split_kernel(
    dy_ptr,  # (D, C, B, H), read if HAS_DY; dh takes its place
    a_ptr,  # (D, C, B, 4, H): a_r, a_z, a_n r, z
    w_hh_ptr,  # (D, 3, H, H)
    flags_ptr,  # (T, B) uint8, read if HAS_FLAGS
    dh_ptr,  # (D, B, H) float32: the gradient of the state after the chunk, then z dh of its last step taken
    dh0_ptr,  # (D, B, H) float32: what resets send to h0 is added; used if HAS_FLAGS
    slots_ptr,  # (C + 1, D, B, 3, H) integers as wide as the dtype: slot 0 zeros, the rest filling
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
    bits: tl.constexpr = slots_ptr.dtype.element_ty
    offs_b = tile * BLOCK_B + tl.arange(0, BLOCK_B)
    offs_j = j * J + tl.arange(0, J)
    offs_k = tl.arange(0, BLOCK_K)
    mask_b = offs_b < B
    mask = mask_b[:, None]

    w = ()
    for c in tl.static_range(3 * CHUNKS):
        gate_ptr = w_hh_ptr + (d * 3 + c // CHUNKS) * H * H
        w = w + (_weight(gate_ptr, (c % CHUNKS) * BLOCK_K + offs_k, offs_j, H, False, UPCAST),)

    batch = B.to(tl.int64)
    offs_state = (d * batch + offs_b)[:, None] * H + offs_j[None, :]
    dh = tl.load(dh_ptr + offs_state, mask=mask, other=0.0)
    if HAS_FLAGS:
        dh0 = tl.load(dh0_ptr + offs_state, mask=mask, other=0.0)

    sign = 2 * d - 1  # against the direction of travel
    c0 = (1 - d) * (C - 1) + sign * first
    rows = (d * C + c0).to(tl.int64) * B + offs_b
    a_ptrs = a_ptr + rows[:, None] * (4 * H) + offs_j[None, :]
    dy_ptrs = dy_ptr + rows[:, None] * H + offs_j[None, :]
    first_step = first_step_0 + d * (first_step_1 - first_step_0)
    flag_ptrs = flags_ptr + (first_step + c0 - sign).to(tl.int64) * B + offs_b  # of the step taken before
    slot_rows = (first.to(tl.int64) * D + d) * B + offs_b
    in_ptrs = slots_ptr + slot_rows[:, None] * (3 * H) + offs_k[None, :]
    out_ptrs = slots_ptr + (slot_rows + D * batch)[:, None] * (3 * H) + offs_j[None, :]
    step = sign * batch * H
    for i in range(first, last):
        a_r = tl.load(a_ptrs, mask=mask, other=0.0).to(tl.float32)
        a_z = tl.load(a_ptrs + H, mask=mask, other=0.0).to(tl.float32)
        a_n = tl.load(a_ptrs + 2 * H, mask=mask, other=0.0).to(tl.float32)
        z = tl.load(a_ptrs + 3 * H, mask=mask, other=0.0).to(tl.float32)
        for c in tl.static_range(3 * CHUNKS):  # what was left of the step taken before
            offset = (c // CHUNKS) * H + (c % CHUNKS) * BLOCK_K
            mask_k = ((c % CHUNKS) * BLOCK_K + offs_k < H)[None, :]
            dg = _operand(in_ptrs + offset, mask & mask_k, dtype, UPCAST)
            dh = tl.dot(dg, w[c], acc=dh, input_precision=PRECISION)
        if HAS_FLAGS:
            flag = tl.load(flag_ptrs, mask=mask_b & (i > 0), other=0)
            began = ((flag >> (3 + d)) & 1) != 0
            dh0 += tl.where(began[:, None], dh, 0.0)
            dh = tl.where(began[:, None], 0.0, dh)
            flag_ptrs += sign * batch
        if HAS_DY:
            dh += tl.load(dy_ptrs, mask=mask, other=0.0).to(tl.float32)
        tl.store(out_ptrs, rounded(dh * a_r, dtype, UPCAST).to(bits, bitcast=True), mask=mask)
        tl.store(out_ptrs + H, rounded(dh * a_z, dtype, UPCAST).to(bits, bitcast=True), mask=mask)
        tl.store(out_ptrs + 2 * H, rounded(dh * a_n, dtype, UPCAST).to(bits, bitcast=True), mask=mask)
        tl.store(dy_ptrs, rounded(dh, dy_ptr.dtype.element_ty, UPCAST), mask=mask)
        dh = dh * z
        in_ptrs += D * batch * 3 * H
        out_ptrs += D * batch * 3 * H
        a_ptrs += 4 * step
        dy_ptrs += step
    tl.store(dh_ptr + offs_state, dh, mask=mask)
    if HAS_FLAGS:
        tl.store(dh0_ptr + offs_state, dh0, mask=mask)
