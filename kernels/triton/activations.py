"""Shared functions of the Triton kernels: sigmoid, tanh and the new state in a fast and an exact form, and rounding.

The exact forms, including 1 - sigmoid and 1 - tanh^2, keep their relative accuracy (a few units in the last place) at
every magnitude, and never turn a finite input into infinity or NaN. The fast ones are for sums of products in 16 bits
or tf32.
"""

import triton
import triton.language as tl


@triton.jit
def tanh_approx(x):
    """tanh by the hardware instruction; its relative error is about 2^-11, below the rounding of 16-bit types."""
    return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def sigmoid(x, FAST: tl.constexpr):
    """1 / (1 + exp(-x)) of float32 x.

    The fast form has an absolute error of up to 2^-12: the rounding of float16 between 1/2 and 1, and an eighth of
    bfloat16's. So it cannot tell a nearly open or closed gate from a fully open or closed one.
    """
    if FAST:
        return 0.5 * tanh_approx(0.5 * x) + 0.5
    else:
        value, _ = sigmoid_and_rest(x)
        return value


@triton.jit
def sigmoid_and_rest(x):
    """sigmoid(x) and 1 - sigmoid(x), exact."""
    e = tl.exp(-tl.abs(x))
    large = 1.0 / (1.0 + e)
    small = e * large
    return tl.where(x < 0.0, small, large), tl.where(x < 0.0, large, small)


@triton.jit
def tanh(x, FAST: tl.constexpr):
    """tanh of float32 x."""
    if FAST:
        return tanh_approx(x)
    else:
        value, _ = tanh_and_slope(x)
        return value


@triton.jit
def tanh_and_slope(x):
    """tanh(x) and 1 - tanh(x)^2, exact."""
    size = tl.abs(x)
    e = tl.exp(-2.0 * size)
    inverse = 1.0 / (1.0 + e)
    far = (1.0 - e) * inverse
    # 1 - e cancels near 0: use an odd polynomial there, fitted to tanh(x) / x for |x| up to 1/2, error at most 2^-26.
    near = tl.minimum(size, 0.5)
    square = near * near
    series = ((0.01724149 * square - 0.05304549) * square + 0.13325879) * square - 0.33333143
    near += near * square * series
    value = tl.where(size < 0.5, near, far)
    return tl.where(x < 0.0, -value, value), 4.0 * e * inverse * inverse


@triton.jit
def new_state(u_z, n, h, FAST: tl.constexpr):
    """(1 - z) n + z h with z = sigmoid(u_z)."""
    if FAST:
        return n + sigmoid(u_z, True) * (h - n)
    else:  # h - n would lose an h much smaller than n, and with it the state if z is near 1
        z, rest = sigmoid_and_rest(u_z)
        return rest * n + z * h


@triton.jit
def rounded(x, dtype: tl.constexpr, EMULATE: tl.constexpr):
    """float32 x rounded to the nearest of dtype.

    Triton's interpreter (3.6, 3.7) truncates to bfloat16 instead; EMULATE rounds the bits to nearest first.
    """
    if EMULATE:
        bits = x.to(tl.int32, bitcast=True)
        x = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def operand(x, dtype: tl.constexpr, UPCAST: tl.constexpr):
    """float32 x rounded to dtype, as an operand of a product."""
    x = rounded(x, dtype, UPCAST)
    return x.to(tl.float32) if UPCAST else x
