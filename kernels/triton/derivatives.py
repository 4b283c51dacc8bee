"""The parts of the backward pass that are parallel over the steps of a chunk, before and after its recurrence.

Before: recomputes the gates, as local derivatives of the new state (from gx = x W_ih^T + b_ih with b_hr and b_hz added,
and gh = h W_hh^T, where h is the state before each step):

    a_z = (h - n) z (1 - z)        a_n = (1 - z) (1 - n^2)        a_r = a_n gh_n r (1 - r)

a = (a_r, a_z, a_n r, z) replaces gh, which has a fourth place for it, and a_n replaces gx_n. A padding step gets a_r =
a_z = a_n = 0 and z = 1, and so does a unit that keeps its state, whose gx_z is infinite (`noise.py`). In expectation
zoneout multiplies the first three by 1 - p, and z becomes p + (1 - p) z.

The a can be as small as the states, so they have the layer's dtype for its range. z is multiplied at every step, so for
a layer in bfloat16 it is stored in the 16 bits as float16, which is eight times as precise.

After, with dh the gradient of each new state:  dg_hidden = (a_r, a_z, a_n r) dh  and  dg_input = (a_r, a_z, a_n) dh,
in the places of gh and gx again.
M rows, one for each (t, b); any H, of which the launcher's padding, from UNITS on, gets what padding steps get.
"""

import triton
import triton.language as tl

from .activations import rounded, sigmoid_and_rest, tanh_and_slope
from .flags import is_real


@triton.jit
def update_gate(z):
    """z in float32, as stored in a."""
    return (z.to(tl.float16, bitcast=True) if z.dtype == tl.bfloat16 else z).to(tl.float32)


@triton.jit
def _tile(rows, H: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr):
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    return offs_m, offs_h, (offs_m < rows)[:, None] & (offs_h < H)[None, :]


@triton.jit(do_not_specialize=["rows"])
def _gru_derivatives_kernel(
    gx_ptr,  # (M, 3, H); out: a_n in the last place
    gh_ptr,  # (M, 4, H), the first three of them; out: a
    b_hn_ptr,  # (H,)
    h_ptr,  # (M, H)
    flags_ptr,  # (M,) uint8, read if HAS_FLAGS: bit 0 set at non-padding steps
    zoneout,  # p, used if HAS_ZONEOUT
    rows,  # M
    H: tl.constexpr,
    UNITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
    HAS_FLAGS: tl.constexpr,
    HAS_ZONEOUT: tl.constexpr,
    UPCAST: tl.constexpr,
):
    offs_m, offs_h, mask = _tile(rows, H, BLOCK_M, BLOCK_H)
    gx_ptrs = gx_ptr + offs_m[:, None] * (3 * H) + offs_h[None, :]
    gh_ptrs = gh_ptr + offs_m[:, None] * (4 * H) + offs_h[None, :]

    h = tl.load(h_ptr + offs_m[:, None] * H + offs_h[None, :], mask=mask, other=0.0).to(tl.float32)
    b_hn = tl.load(b_hn_ptr + offs_h, mask=offs_h < H, other=0.0).to(tl.float32)
    gh_n = tl.load(gh_ptrs + 2 * H, mask=mask, other=0.0).to(tl.float32) + b_hn[None, :]
    gh_r = tl.load(gh_ptrs, mask=mask, other=0.0).to(tl.float32)
    gh_z = tl.load(gh_ptrs + H, mask=mask, other=0.0).to(tl.float32)
    r, rest_r = sigmoid_and_rest(tl.load(gx_ptrs, mask=mask, other=0.0).to(tl.float32) + gh_r)
    z, rest_z = sigmoid_and_rest(tl.load(gx_ptrs + H, mask=mask, other=0.0).to(tl.float32) + gh_z)
    n, slope = tanh_and_slope(tl.load(gx_ptrs + 2 * H, mask=mask, other=0.0).to(tl.float32) + r * gh_n)
    if HAS_ZONEOUT:
        rest_z *= 1.0 - zoneout
    a_z = (h - n) * z * rest_z
    a_n = rest_z * slope
    a_r = a_n * gh_n * r * rest_r
    a_hn = a_n * r
    if HAS_ZONEOUT:
        z = zoneout + (1.0 - zoneout) * z
    if HAS_FLAGS or UNITS < H:
        acts = (offs_h < UNITS)[None, :]
        if HAS_FLAGS:
            flag = tl.load(flags_ptr + offs_m, mask=offs_m < rows, other=0)
            acts = acts & is_real(flag)[:, None]
        a_r = tl.where(acts, a_r, 0.0)
        a_z = tl.where(acts, a_z, 0.0)
        a_n = tl.where(acts, a_n, 0.0)
        a_hn = tl.where(acts, a_hn, 0.0)
        z = tl.where(acts, z, 1.0)

    dtype = gx_ptr.dtype.element_ty
    z = z.to(tl.float16).to(dtype, bitcast=True) if dtype == tl.bfloat16 else z.to(dtype)
    tl.store(gh_ptrs, rounded(a_r, dtype, UPCAST), mask=mask)
    tl.store(gh_ptrs + H, rounded(a_z, dtype, UPCAST), mask=mask)
    tl.store(gh_ptrs + 2 * H, rounded(a_hn, dtype, UPCAST), mask=mask)
    tl.store(gh_ptrs + 3 * H, z, mask=mask)
    tl.store(gx_ptrs + 2 * H, rounded(a_n, dtype, UPCAST), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def _gru_gate_gradients_kernel(
    dh_ptr,  # (M, H)
    gx_ptr,  # (M, 3, H): a_n in the last place; out: dg_input
    gh_ptr,  # (M, 4, H): a; out: dg_hidden in the first three places
    rows,  # M
    H: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
    UPCAST: tl.constexpr,
):
    offs_m, offs_h, mask = _tile(rows, H, BLOCK_M, BLOCK_H)
    gx_ptrs = gx_ptr + offs_m[:, None] * (3 * H) + offs_h[None, :]
    gh_ptrs = gh_ptr + offs_m[:, None] * (4 * H) + offs_h[None, :]
    dtype = gx_ptr.dtype.element_ty

    dh = tl.load(dh_ptr + offs_m[:, None] * H + offs_h[None, :], mask=mask, other=0.0).to(tl.float32)
    dg_r = rounded(dh * tl.load(gh_ptrs, mask=mask, other=0.0).to(tl.float32), dtype, UPCAST)
    dg_z = rounded(dh * tl.load(gh_ptrs + H, mask=mask, other=0.0).to(tl.float32), dtype, UPCAST)
    dg_hn = rounded(dh * tl.load(gh_ptrs + 2 * H, mask=mask, other=0.0).to(tl.float32), dtype, UPCAST)
    dg_n = rounded(dh * tl.load(gx_ptrs + 2 * H, mask=mask, other=0.0).to(tl.float32), dtype, UPCAST)
    tl.store(gx_ptrs, dg_r, mask=mask)
    tl.store(gx_ptrs + H, dg_z, mask=mask)
    tl.store(gx_ptrs + 2 * H, dg_n, mask=mask)
    tl.store(gh_ptrs, dg_r, mask=mask)
    tl.store(gh_ptrs + H, dg_z, mask=mask)
    tl.store(gh_ptrs + 2 * H, dg_hn, mask=mask)
