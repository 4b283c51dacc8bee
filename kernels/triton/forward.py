"""The forward recurrence over a chunk of time in one launch, W_hh on chip, or its tiles from the L2 cache.

Per step, with the input side gx_t = x_t W_ih^T + b_ih (b_hr and b_hz added to it) computed before for all steps at
once:

    r  = sigmoid(gx_r + h W_hr^T)
    z  = sigmoid(gx_z + h W_hz^T)
    n  = tanh(gx_n + r * (h W_hn^T + b_hn))
    h' = (1 - z) * n + z * h

A group of programs runs a tile of BLOCK_B rows in one direction through the chunk's steps. Each owns J hidden units:
the same slice of r, z and n, so that all pointwise work stays with it, and the rows of W_hh that the slice needs. Those
stay on chip for the whole chunk or, STREAMED, come from the L2 cache in each step.

With recurrent dropout, h in the products is h times `keep`, a factor per unit that is the same in all steps. Random
zoneout needs nothing here (`noise.py`); its expectation is h' = p h + (1 - p) h'.

EXCHANGE = "" (H up to 128): a group is one program, J the next power of two of H. Its state goes from registers into
the products, and gx_t is on its way STAGES - 1 steps before.

Otherwise J divides H, and in each step the programs exchange their slices of the state through memory, by the protocol
EXCHANGE of `exchange.py`: a step reads slot i, computes, and writes slot i + 1. Steps `first` to `last` run in one
launch, in which all programs of a group must run at the same time, or else in one launch per step.

h is float32 and crosses chunks in memory; sums are float32. T time, B batch, C steps per chunk, D directions, or D
times HEADS recurrences: those of the second direction run from the end, so that their first chunk is the last in time.
H is a multiple of 16 (the launcher pads UNITS to it). Flags per (t, b) are those of `flags.py`.

Tensor cores read W^T directly from W in shared memory. Float32 products without them ("ieee") would have bank conflicts
of 8 lanes or more, so the launcher transposes each gate's W in memory for them, once per call.
"""

import triton
import triton.language as tl

from .activations import new_state, operand, rounded, sigmoid, tanh
from .exchange import LINE, await_group, nan_without, receive, report, signal, store
from .flags import RESTARTS, has, is_real


@triton.jit
def weight(w_ptr, offs_row, offs_column, H: tl.constexpr, TRANSPOSED: tl.constexpr, UPCAST: tl.constexpr):
    """A tile (rows, columns) of a gate's W (H, H), or of its transpose."""
    row, column = (offs_column[None, :], offs_row[:, None]) if TRANSPOSED else (offs_row[:, None], offs_column[None, :])
    w = tl.load(w_ptr + row * H + column, mask=(row < H) & (column < H), other=0.0)
    return w.to(tl.float32) if UPCAST else w


@triton.jit
def only_if(condition, mask):
    """The mask, all False unless a scalar condition holds."""
    # Comparing is free; without it the interpreter of Triton 3.9 does not accept the result as a mask.
    return (mask & condition) != 0


@triton.jit
def load_three(ptrs, mask, H: tl.constexpr):
    """Loads from ptrs, ptrs + H and ptrs + 2 H; 0 outside the mask."""
    return (
        tl.load(ptrs, mask=mask, other=0.0),
        tl.load(ptrs + H, mask=mask, other=0.0),
        tl.load(ptrs + 2 * H, mask=mask, other=0.0),
    )


@triton.jit(do_not_specialize=["C", "B", "first_tile", "first_step_0", "first_step_1", "first", "last", "patience"])
def _gru_forward_kernel(
    gx_ptr,  # (D, C, B, 3, H)
    h_ptr,  # (D, B, H) float32: the state before step `first`, then that after step `last` - 1
    h_reset_ptr,  # (D, B, H), read if HAS_FLAGS
    w_hh_ptr,  # (D, 3, H, H), each gate's transposed if BY_COLUMN
    b_hn_ptr,  # (D, H)
    flags_ptr,  # (T, B) uint8, read if HAS_FLAGS
    span_ptr,  # (tiles, 2) int32, the range of a tile's non-padding steps; read if HAS_FLAGS
    keep_ptr,  # (D, B, H) float32, the factor of h in the products; read if HAS_DROPOUT
    y_ptr,  # (T, B, D, H), 0 beforehand at padding
    slots_ptr,  # (C + 1, D, B, H) integers as wide as the dtype: slot 0 the state before, times keep; used if EXCHANGE
    counters_ptr,  # (tiles, D, LINE) int32, 0 before the chunk; used where EXCHANGE is "counter"
    failed_ptr,  # (1,) int32 in the host's memory: set if a program gave up waiting; used if EXCHANGE
    C,
    B,
    first_tile,
    first_step_0,  # the chunk's earliest time step in the first direction
    first_step_1,  # and in the second
    first,  # of the tile's steps in this chunk
    last,
    patience,  # polls of a program
    zoneout,  # p, used if HAS_ZONEOUT
    D: tl.constexpr,
    HEADS: tl.constexpr,
    H: tl.constexpr,
    UNITS: tl.constexpr,
    J: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STREAMED: tl.constexpr,
    STAGES: tl.constexpr,
    EXCHANGE: tl.constexpr,
    HAS_FLAGS: tl.constexpr,
    HAS_DROPOUT: tl.constexpr,
    HAS_ZONEOUT: tl.constexpr,
    FAST: tl.constexpr,
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

    BY_COLUMN: tl.constexpr = PRECISION == "ieee" and dtype == tl.float32
    w_ptr = w_hh_ptr + d.to(tl.int64) * (3 * H * H)
    w_r, w_z, w_n = (), (), ()
    if not STREAMED:
        for c in tl.static_range(CHUNKS):
            w_r = w_r + (weight(w_ptr, c * BLOCK_K + offs_k, offs_j, H, not BY_COLUMN, UPCAST),)
            w_z = w_z + (weight(w_ptr + H * H, c * BLOCK_K + offs_k, offs_j, H, not BY_COLUMN, UPCAST),)
            w_n = w_n + (weight(w_ptr + 2 * H * H, c * BLOCK_K + offs_k, offs_j, H, not BY_COLUMN, UPCAST),)
    b_hn = tl.load(b_hn_ptr + d * H + offs_j, mask=offs_j < H, other=0.0).to(tl.float32)

    batch = B.to(tl.int64)
    offs_state = (d * batch + offs_b)[:, None] * H + offs_j[None, :]
    h = tl.load(h_ptr + offs_state, mask=mask, other=0.0)
    if HAS_DROPOUT:
        keep = tl.load(keep_ptr + offs_state, mask=mask, other=0.0)
    first_step = first_step_0 + direction * (first_step_1 - first_step_0)
    begin, end = 0, C  # the steps of the chunk that this tile runs
    if HAS_FLAGS:
        h_reset = tl.load(h_reset_ptr + offs_state, mask=mask, other=0.0).to(tl.float32)
        begin = tl.maximum(tl.load(span_ptr + 2 * tile) - first_step, 0)
        end = tl.minimum(tl.load(span_ptr + 2 * tile + 1) - first_step, C)
    last = tl.minimum(last, end - begin)

    sign = 1 - 2 * direction
    c0 = begin + direction * (end - 1 - begin) + sign * first
    all_rows = (first_step + c0).to(tl.int64) * B + offs_b  # in the sequence
    gx_ptrs = gx_ptr + ((d * C + c0).to(tl.int64) * B + offs_b)[:, None] * (3 * H) + offs_j[None, :]
    y_ptrs = y_ptr + (all_rows * D + d)[:, None] * H + offs_j[None, :]
    if HAS_FLAGS:
        flag_ptrs = flags_ptr + all_rows
    step = sign * batch * H
    if GROUP:
        counter_ptr = counters_ptr + (tile * D + d) * LINE
        slot_rows = (first.to(tl.int64) * D + d) * B + offs_b
        in_ptrs = slots_ptr + slot_rows[:, None] * H + offs_k[None, :]
        out_ptrs = slots_ptr + (slot_rows + D * batch)[:, None] * H + offs_j[None, :]
        next_r, next_z, next_n = load_three(gx_ptrs, only_if(first < last, mask), H)
    for i in tl.range(first, last, num_stages=1 if GROUP else STAGES):
        if GROUP:
            acc_r, acc_z, gx_n = next_r.to(tl.float32), next_z.to(tl.float32), next_n.to(tl.float32)
            gx_ptrs += 3 * step  # the next is on its way while the group is awaited
            next_r, next_z, next_n = load_three(gx_ptrs, only_if(i + 1 < last, mask), H)
            if HAS_FLAGS:
                flag = tl.load(flag_ptrs, mask=mask_b, other=0)
            patience = await_group(counter_ptr, i, patience, SPLITS, EXCHANGE)
        else:
            gx_r, gx_z, gx_n = load_three(gx_ptrs, mask, H)
            acc_r, acc_z, gx_n = gx_r.to(tl.float32), gx_z.to(tl.float32), gx_n.to(tl.float32)
            gx_ptrs += 3 * step
        acc_n = tl.zeros([BLOCK_B, J], tl.float32)
        if EXCHANGE == "counter":
            acc_n += nan_without(patience)
        if STREAMED:
            for c in tl.range(CHUNKS, num_stages=STAGES):
                k = c * BLOCK_K + offs_k
                h_k, patience = receive(
                    in_ptrs + c * BLOCK_K, mask & (k < H)[None, :], patience, dtype, EXCHANGE, UPCAST
                )
                w = weight(w_ptr, k, offs_j, H, not BY_COLUMN, UPCAST)
                acc_r = tl.dot(h_k, w, acc=acc_r, input_precision=PRECISION)
                w = weight(w_ptr + H * H, k, offs_j, H, not BY_COLUMN, UPCAST)
                acc_z = tl.dot(h_k, w, acc=acc_z, input_precision=PRECISION)
                w = weight(w_ptr + 2 * H * H, k, offs_j, H, not BY_COLUMN, UPCAST)
                acc_n = tl.dot(h_k, w, acc=acc_n, input_precision=PRECISION)
        else:
            for c in tl.static_range(CHUNKS):
                if GROUP:
                    mask_k = (c * BLOCK_K + offs_k < H)[None, :]
                    h_k, patience = receive(in_ptrs + c * BLOCK_K, mask & mask_k, patience, dtype, EXCHANGE, UPCAST)
                else:
                    h_k = operand(h * keep if HAS_DROPOUT else h, dtype, UPCAST)
                acc_r = tl.dot(h_k, w_r[c], acc=acc_r, input_precision=PRECISION)
                acc_z = tl.dot(h_k, w_z[c], acc=acc_z, input_precision=PRECISION)
                acc_n = tl.dot(h_k, w_n[c], acc=acc_n, input_precision=PRECISION)
        r = sigmoid(acc_r, FAST)
        n = tanh(gx_n + r * (acc_n + b_hn[None, :]), FAST)
        h_new = new_state(acc_z, n, h, FAST)
        if HAS_ZONEOUT:
            h_new = zoneout * h + (1.0 - zoneout) * h_new
        if UNITS < SPLITS * J:  # an infinity times their weights, which are 0, is NaN
            h_new = tl.where((offs_j < UNITS)[None, :], h_new, 0.0)
        wanted = mask
        if HAS_FLAGS:
            # Padding and resets are applied last, where h has the layout of the products: at the beginning of the step
            # they cost 400 instructions a step rather than 270 (H = 64, sm_90).
            if not GROUP:
                flag = tl.load(flag_ptrs, mask=mask_b, other=0)
            real = is_real(flag)
            restart = has(flag, RESTARTS, direction)
            wanted = mask & real[:, None]
            h = tl.where(real[:, None], h_new, h)
            h = tl.where(restart[:, None], h_reset, h)
            flag_ptrs += sign * batch
        else:
            h = h_new
        if GROUP:
            sent = h * keep if HAS_DROPOUT else h
            sent = tl.where(sent == sent, sent, float("nan"))  # a NaN held for the caller may have the filling's bits
            store(out_ptrs, sent, mask, dtype, EXCHANGE, UPCAST)
            signal(counter_ptr, EXCHANGE)
            in_ptrs += D * batch * H
            out_ptrs += D * batch * H
        tl.store(y_ptrs, rounded(h_new, y_ptr.dtype.element_ty, UPCAST), mask=wanted)
        y_ptrs += D * step
    tl.store(h_ptr + offs_state, h, mask=mask)
    if GROUP:
        report(failed_ptr, patience)
