"""What Triton kernels share: sigmoid and tanh, in a fast and an exact form, and rounding."""

import triton
import triton.language as tl


@triton.jit
def tanh_approx(x):
    """tanh by the hardware instruction: error about 2^-11, less than bfloat16 or float16 round off."""
    return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def sigmoid(x, FAST: tl.constexpr):
    """1 / (1 + exp(-x)) of float32 x."""
    if FAST:
        return 0.5 * tanh_approx(0.5 * x) + 0.5
    else:
        return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x, FAST: tl.constexpr):
    """tanh of float32 x; the exact form is 2 sigmoid(2 x) - 1, which no x makes NaN."""
    if FAST:
        return tanh_approx(x)
    else:
        return 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0


@triton.jit
def rounded(x, dtype: tl.constexpr, EMULATE: tl.constexpr):
    """float32 x rounded to the nearest of dtype.

    Triton's interpreter (3.6, 3.7) truncates to bfloat16 instead; with EMULATE the nearest is made from bits before.
    """
    if EMULATE:
        bits = x.to(tl.int32, bitcast=True)
        x = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
    return x.to(dtype)
