"""What Triton kernels share: sigmoid, tanh and the new state, in a fast and an exact form, and rounding.

The exact forms keep their relative accuracy (a few units of the last place) at every magnitude, that of 1 - sigmoid and
1 - tanh^2 too, and make no infinity or NaN that was not there. The fast ones are for sums of products in 16 bits or
tf32.
"""

import triton
import triton.language as tl


@triton.jit
def tanh_approx(x):
    """tanh by the hardware instruction: relative error about 2^-11, less than bfloat16 or float16 round off."""
    return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def sigmoid(x, FAST: tl.constexpr):
    """1 / (1 + exp(-x)) of float32 x.

    The fast form is off by up to 2^-12, whatever x: what float16 rounds off between 1/2 and 1, and an eighth of what
    bfloat16 does. So a gate that is all but open or closed is not told from one that is so altogether.
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
    # 1 - e cancels near 0: there an odd polynomial, off by 2^-26 at most, fitted to tanh(x) / x for |x| up to 1/2.
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
    else:  # h - n would lose an h that is much smaller than n, and with it the state, where z is near 1
        z, rest = sigmoid_and_rest(u_z)
        return rest * n + z * h


@triton.jit
def rounded(x, dtype: tl.constexpr, EMULATE: tl.constexpr):
    """float32 x rounded to the nearest of dtype.

    Triton's interpreter (3.6, 3.7) truncates to bfloat16 instead; with EMULATE the nearest is made from bits before.
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
