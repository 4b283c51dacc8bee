"""One step of one direction in one launch, with both products and the gates; used by streaming and `GRUCell` on a GPU.

Each program has J hidden units of a tile of rows and loops over I, then over H; reading the weights, once, dominates
the cost. The equations are those of `forward.py`, with gx computed here instead of before. There are no buffers and
nothing is awaited, so a CUDA graph captures it as one node.

Float32 products without tensor cores ("ieee") would read W^T from W in shared memory with bank conflicts of 16 lanes.
Their tiles have units first, and multiply W by x^T.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import Weights
from .activations import new_state, rounded, sigmoid, tanh
from .exchange import INTERPRETED
from .plan import current, device, kind, plan

# The dimension that Triton takes for the one to go along in memory, where it sees adjacent elements in neither.
FIRST_BY_DEFAULT: tl.constexpr = tl.constexpr(tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7))


@triton.jit
def _products(
    x_ptr,  # (B, K)
    w_ptr,  # (3, H, K)
    offs_b,
    offs_j,
    B,
    acc_r,
    acc_z,
    acc_n,
    K: tl.constexpr,
    H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    UNITS_FIRST: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """The three accumulators with x W^T added, gate by gate."""
    offs_k = tl.arange(0, BLOCK_K)
    x_ptrs, w_ptrs = x_ptr + offs_b.to(tl.int64) * K, w_ptr + offs_j.to(tl.int64) * K
    for first in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        k = first + offs_k
        if UNITS_FIRST:
            # Triton does not see that these columns are adjacent: x comes to shared memory by columns, as it is read.
            column = tl.where(k < K, k, 0)
            if FIRST_BY_DEFAULT:
                x = tl.load(x_ptrs[:, None] + column[None, :], mask=(offs_b < B)[:, None] & (k < K)[None, :], other=0.0)
                x = tl.trans(x)
            else:
                x = tl.load(x_ptrs[None, :] + column[:, None], mask=(k < K)[:, None] & (offs_b < B)[None, :], other=0.0)
            w_at, mask_w = w_ptrs[:, None] + k[None, :], (offs_j < H)[:, None] & (k < K)[None, :]
        else:
            x = tl.load(x_ptrs[:, None] + k[None, :], mask=(offs_b < B)[:, None] & (k < K)[None, :], other=0.0)
            w_at, mask_w = w_ptrs[None, :] + k[:, None], (k < K)[:, None] & (offs_j < H)[None, :]
        w_r = tl.load(w_at, mask=mask_w, other=0.0)
        w_z = tl.load(w_at + H * K, mask=mask_w, other=0.0)
        w_n = tl.load(w_at + 2 * H * K, mask=mask_w, other=0.0)
        if UPCAST:
            x, w_r, w_z, w_n = x.to(tl.float32), w_r.to(tl.float32), w_z.to(tl.float32), w_n.to(tl.float32)
        if UNITS_FIRST:
            acc_r = tl.dot(w_r, x, acc=acc_r, input_precision=PRECISION)
            acc_z = tl.dot(w_z, x, acc=acc_z, input_precision=PRECISION)
            acc_n = tl.dot(w_n, x, acc=acc_n, input_precision=PRECISION)
        else:
            acc_r = tl.dot(x, w_r, acc=acc_r, input_precision=PRECISION)
            acc_z = tl.dot(x, w_z, acc=acc_z, input_precision=PRECISION)
            acc_n = tl.dot(x, w_n, acc=acc_n, input_precision=PRECISION)
    return acc_r, acc_z, acc_n


@triton.jit(do_not_specialize=["B"])
def _gru_step_kernel(
    x_ptr,  # (B, I)
    hx_ptr,  # (B, H)
    w_ih_ptr,  # (3, H, I)
    w_hh_ptr,  # (3, H, H)
    b_ih_ptr,  # (3, H), read if HAS_BIAS
    b_hh_ptr,  # (3, H), read if HAS_BIAS
    out_ptr,  # (B, H): the new state
    B,
    I: tl.constexpr,  # noqa: E741
    H: tl.constexpr,
    J: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    FAST: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    UNITS_FIRST: tl.constexpr = PRECISION == "ieee" and x_ptr.dtype.element_ty == tl.float32
    offs_b = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    offs_j = tl.program_id(1) * J + tl.arange(0, J)
    if UNITS_FIRST:
        row, unit = offs_b[None, :], offs_j[:, None]
        acc_r = tl.zeros([J, BLOCK_B], tl.float32)
    else:
        row, unit = offs_b[:, None], offs_j[None, :]
        acc_r = tl.zeros([BLOCK_B, J], tl.float32)
    acc_z, gx_n, gh_n = acc_r, acc_r, acc_r
    if HAS_BIAS:
        acc_r += _bias(b_ih_ptr, unit, H) + _bias(b_hh_ptr, unit, H)
        acc_z += _bias(b_ih_ptr + H, unit, H) + _bias(b_hh_ptr + H, unit, H)
        gx_n += _bias(b_ih_ptr + 2 * H, unit, H)
        gh_n += _bias(b_hh_ptr + 2 * H, unit, H)
    acc_r, acc_z, gx_n = _products(
        x_ptr, w_ih_ptr, offs_b, offs_j, B, acc_r, acc_z, gx_n, I, H, BLOCK_K, STAGES, UNITS_FIRST, PRECISION, UPCAST
    )
    acc_r, acc_z, gh_n = _products(
        hx_ptr, w_hh_ptr, offs_b, offs_j, B, acc_r, acc_z, gh_n, H, H, BLOCK_K, STAGES, UNITS_FIRST, PRECISION, UPCAST
    )
    r = sigmoid(acc_r, FAST)
    n = tanh(gx_n + r * gh_n, FAST)
    mask, offs = (row < B) & (unit < H), row.to(tl.int64) * H + unit
    h = tl.load(hx_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    h_new = new_state(acc_z, n, h, FAST)
    tl.store(out_ptr + offs, rounded(h_new, out_ptr.dtype.element_ty, UPCAST), mask=mask)


@triton.jit
def _bias(b_ptr, unit, H: tl.constexpr):
    return tl.load(b_ptr + unit, mask=unit < H, other=0.0).to(tl.float32)


def gru_step(
    x: Tensor,  # (B, I)
    h: Tensor,  # (B, H)
    weights: Weights,  # without D
    precision: str,
) -> Tensor:
    """The state after one step, (B, H)."""
    batch, hidden_size = h.shape
    arithmetic = kind(x.dtype, precision)
    chosen = plan("step", batch, hidden_size, 1, arithmetic, device(x.device))
    x, h = x.contiguous(), h.contiguous()
    weights = Weights(*(None if w is None else w.contiguous() for w in weights))  # type: ignore[arg-type]
    out = torch.empty_like(h)
    grid = (triton.cdiv(batch, chosen.block_b), triton.cdiv(hidden_size, chosen.block_j))
    if not batch:
        return out
    with current(x.device):
        _gru_step_kernel[grid](
            x,
            h,
            *weights,
            out,
            batch,
            I=x.shape[1],
            H=hidden_size,
            J=chosen.block_j,
            BLOCK_B=chosen.block_b,
            BLOCK_K=chosen.block_k,
            STAGES=chosen.stages,
            HAS_BIAS=weights.b_ih is not None,
            FAST=arithmetic != "ieee" and not INTERPRETED,
            PRECISION="tf32" if arithmetic == "tf32" else "ieee",
            UPCAST=INTERPRETED and x.dtype is torch.bfloat16,
            num_warps=chosen.warps,
        )
    return out
