"""sigmoid and tanh of the kernels over all floats, by calls of the public API whose output is one of them."""

import numpy as np
import pytest
import torch

from grucore import GRU
from grucore.kernels.native import library

pytestmark = pytest.mark.skipif(library.UNAVAILABLE is not None, reason=str(library.UNAVAILABLE))

UNITS = 8
LARGEST = 0x7F7FFFFF  # the bits of the largest finite float


def layer_of(function, dtype=torch.float32):
    """A layer whose state after one step is that function of x, and its initial state.

    From h = 1 with n = 0 the state becomes z; from h = 0 with z = 0 it becomes n.
    """
    layer = GRU(UNITS, UNITS, dtype=dtype, backend="native")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        gate = slice(UNITS, 2 * UNITS) if function == "sigmoid" else slice(2 * UNITS, None)
        layer.weight_ih_l0[gate] = torch.eye(UNITS, dtype=dtype)
        if function == "tanh":
            layer.bias_ih_l0[UNITS : 2 * UNITS] = -200
    return layer, 1.0 if function == "sigmoid" else 0.0


def value_and_slope(function, x, with_slope=True):
    """Both as the kernels compute them, of a vector x."""
    layer, h = layer_of(function, x.dtype)
    rows = x.reshape(1, -1, UNITS).requires_grad_(with_slope)
    y, _ = layer(rows, rows.new_full(rows.shape, h))
    slope = torch.autograd.grad(y.sum(), rows)[0].flatten() if with_slope else None
    return y.detach().flatten(), slope


def floats(begin, end, step):
    """The floats whose bits are every `step`-th number from `begin` on, positive and negative, in parts."""
    part = step * UNITS << 15
    for first in range(begin, end, part):
        bits = torch.arange(first, min(first + part, end), step, dtype=torch.int32)
        bits = bits[: len(bits) // UNITS * UNITS]
        if len(bits):
            x = bits.view(torch.float32)
            yield x
            yield -x


def ulps(got, want):
    """The largest error in units of the last place of the exact value."""
    want = want.numpy()
    return float((np.abs(got.double().numpy() - want) / np.spacing(np.abs(want).astype(np.float32))).max())


EXACT = {"sigmoid": torch.sigmoid, "tanh": torch.tanh}
SLOPES = {"sigmoid": lambda x: torch.sigmoid(x) * torch.sigmoid(-x), "tanh": lambda x: torch.cosh(x) ** -2}
CHANGING = {"sigmoid": (2.0**-26, 128.0), "tanh": (2.0**-14, 16.0)}  # beyond, sigmoid is constant and tanh(x) x or 1
ACCURATE = {"sigmoid": 87.0, "tanh": 43.0}  # magnitudes beyond which the slope is less than 1e-36, and its error too

ULPS = 3  # measured 2.83 for sigmoid and 2.50 for tanh, over all floats where they change
SLOPE_LIMIT = 4e-7  # relative; measured 2.8e-7 for both
ULPS_64 = 3  # measured 2.41 for sigmoid and 2.46 for tanh
SLOPE_LIMIT_64 = 8e-16  # measured 5.7e-16 for sigmoid and 5.9e-16 for tanh
each_function = pytest.mark.parametrize("function", EXACT)


@torch.no_grad()
def worst_value(function, *range_of_bits):
    parts = floats(*range_of_bits)
    return max(ulps(value_and_slope(function, x, with_slope=False)[0], EXACT[function](x.double())) for x in parts)


@each_function
def test_values_of_every_500th_float(function):
    assert worst_value(function, 0, LARGEST + 1, 499) <= ULPS


@pytest.mark.slow
@pytest.mark.exhaustive
@each_function
def test_values_of_every_float_where_they_change(function):
    first, last = torch.tensor(CHANGING[function]).view(torch.int32).tolist()
    parts = (0, first, 61), (first, last, 1), (last, LARGEST + 1, 61)
    assert max(worst_value(function, *part) for part in parts) <= ULPS


@each_function
def test_slopes_of_every_8000th_float(function):
    worst = beyond = 0.0
    for x in floats(0, LARGEST + 1, 8009):
        got, want = value_and_slope(function, x)[1].double(), SLOPES[function](x.detach().double())
        error, is_accurate = (got - want).abs(), x.detach().abs() <= ACCURATE[function]
        worst = max(worst, float((error / want).masked_fill(~is_accurate, 0).max()))
        beyond = max(beyond, float(error.masked_fill(is_accurate, 0).max()))
    assert worst <= SLOPE_LIMIT and beyond < 1e-36


@each_function
def test_float64(function):
    """Against 80-bit numbers, in units of the last place of the exact value."""
    x = torch.cat([torch.randn(1 << 15, dtype=torch.float64) * scale for scale in (1e-9, 1e-3, 1, 8, 100)])
    value, slope = (t.numpy() for t in value_and_slope(function, x))
    wide = x.detach().numpy().astype(np.longdouble)
    if function == "sigmoid":
        exact, exact_slope = 1 / (1 + np.exp(-wide)), 1 / ((1 + np.exp(-wide)) * (1 + np.exp(wide)))
    else:
        exact, exact_slope = np.tanh(wide), 1 / np.cosh(wide) ** 2
    assert (np.abs(value - exact) / np.spacing(np.abs(exact).astype(np.float64))).max() <= ULPS_64
    assert (np.abs(slope - exact_slope) / exact_slope)[np.abs(wide) < 350].max() <= SLOPE_LIMIT_64
