"""The activations of the kernels keep their digits from the smallest numbers to infinity.

Natively on a GPU, in Triton's interpreter everywhere else.
"""

import pytest
import torch
import triton
import triton.language as tl
from contract import DEVICE

from grucore.kernels.triton.activations import sigmoid, sigmoid_and_rest, tanh, tanh_and_slope

pytestmark = pytest.mark.gpu if DEVICE == "cuda" else []


@triton.jit
def activations_kernel(x_ptr, out_ptr, N, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i)
    n, slope = tanh_and_slope(x)
    z, rest = sigmoid_and_rest(x)
    tl.store(out_ptr + i, tanh(x, False))
    tl.store(out_ptr + N + i, n)
    tl.store(out_ptr + 2 * N + i, slope)
    tl.store(out_ptr + 3 * N + i, sigmoid(x, False))
    tl.store(out_ptr + 4 * N + i, z)
    tl.store(out_ptr + 5 * N + i, rest)


def test_exact_activations():
    """Within 8 units of 2^-24 of the value if it is a normal number (5.3 measured in the interpreter).

    A GPU takes denormal numbers for 0 (seen on an H200), and has approximate instructions. By the PTX manual ex2.approx
    is off by 4 units, div.full by 4, both in a row here; rounding the argument of exp(-2 |x|) costs 2 |x|, and the
    constant in it half as much at most.
    """
    x = torch.cat([torch.logspace(-44, 38, 2**15, dtype=torch.float64), torch.linspace(0, 100, 2**15)])
    x = torch.cat([x, torch.tensor([0, torch.inf, torch.nan]), torch.zeros(2**12 - 3)]).to(DEVICE, torch.float32)
    x = torch.cat([x, -x])
    out = torch.empty(6, len(x), device=DEVICE)
    activations_kernel[(len(x) // 2**12,)](x, out, len(x), BLOCK=2**12)
    d = x.double()
    wants = [d.tanh(), d.tanh(), d.cosh() ** -2, d.sigmoid(), d.sigmoid(), (-d).sigmoid()]
    units = 8 if DEVICE == "cpu" else (16 + 3 * d.abs()).nan_to_num(0, posinf=torch.inf)
    for got, want in zip(out.double(), wants, strict=True):
        assert torch.equal(got.isnan(), d.isnan())
        tiny = torch.finfo(torch.float32).tiny
        off = (got - want).abs().nan_to_num(0)
        smallest = 2**-23 * tiny if DEVICE == "cpu" else tiny
        assert (off <= units * (2**-24 * want.abs() + smallest).nan_to_num(0)).all()
