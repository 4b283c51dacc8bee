"""The kernels on quantised weights: exact sums, equal bits, magnitudes."""

import pytest
import torch
from oracle import rms_error

from grucore import GRU
from grucore.kernels.native.library import UNAVAILABLE

pytestmark = pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))

FORMS = {"reset after": {}, "reset before": {"reset_after": False}, "both ways": {"bidirectional": True}}
SHAPES = [(1, 1, 1, 1), (6, 1, 7, 20), (5, 2, 16, 33), (4, 3, 9, 64), (3, 5, 8, 100), (70, 6, 3, 50), (2, 250, 5, 40)]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@torch.no_grad()
def test_bf16_has_the_bits_of_the_float_kernels_on_the_same_numbers(shape, form):
    T, B, I, H = shape  # noqa: E741
    quantized = GRU(I, H, backend="native", **form).quantize("bf16")
    x, hx, lengths = torch.randn(T, B, I), torch.randn(quantized.num_directions, B, H), torch.arange(B) % (T + 1)
    layer = quantized.dequantize()
    for call in ({}, {"lengths": lengths}):
        for got, want in zip(quantized(x, hx, **call), layer(x, hx, **call), strict=True):
            assert torch.equal(got, want)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("shape", [*SHAPES, (20, 9, 300, 600)], ids=str)
@torch.no_grad()
def test_int8_is_near_float64_on_the_same_weights(shape, form):
    T, B, I, H = shape  # noqa: E741
    quantized = GRU(I, H, backend="native", **form).quantize("int8")
    x, hx = torch.randn(T, B, I), torch.randn(quantized.num_directions, B, H)
    oracle = quantized.dequantize().double()
    for got, want in zip(quantized(x, hx), oracle(x.double(), hx.double()), strict=True):
        assert rms_error(got, want) <= 2e-4  # 6.0e-5


@pytest.mark.parametrize("dtype", ["int8", "bf16"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@torch.no_grad()
def test_a_row_is_the_same_in_any_batch_and_with_any_number_of_threads(dtype, form):
    """Bit for bit, whatever the others hold: a NaN or an infinity stays in its row."""
    quantized = GRU(40, 100, backend="native", **form).quantize(dtype)
    x, hx = torch.randn(20, 33, 40), torch.randn(quantized.num_directions, 33, 100)
    y, h_n = quantized(x, hx)
    for b in (0, 7, 32):
        y_b, h_b = quantized(x[:, b : b + 1], hx[:, b : b + 1])
        assert torch.equal(y_b, y[:, b : b + 1]) and torch.equal(h_b, h_n[:, b : b + 1])
    threads = torch.get_num_threads()
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            assert torch.equal(quantized(x, hx)[0], y)
            assert torch.equal(quantized(x[:, :1], hx[:, :1])[0], y[:, :1])
    finally:
        torch.set_num_threads(threads)
    for place, value in ((x[3], torch.nan), (x[3], torch.inf), (hx[0], torch.nan), (hx[0], -torch.inf)):
        if dtype == "bf16" and value not in (torch.nan,) and value == value:
            continue  # the float kernels' own sums with an infinity are not all NaN
        kept = place.clone()
        place[5, 2] = value
        poisoned = quantized(x, hx)[0]
        of_row = poisoned[3:, 5, :100] if place.shape[1] == 40 else poisoned[:, 5, :100]
        assert of_row.isnan().all()
        assert torch.equal(poisoned[:, :5], y[:, :5]) and torch.equal(poisoned[:, 6:], y[:, 6:])
        place.copy_(kept)


@pytest.mark.parametrize("K", [255, 256, 511, 512, 513, 4096, 20_000])
@torch.no_grad()
def test_the_largest_sums_do_not_overflow(K):
    """All weights and operands at their largest: a sum of 127 K times the largest operand."""
    layer = GRU(K, 1, bias=False)
    for sign in (1, -1):
        layer.weight_ih_l0.fill_(sign / K)
        want = layer(torch.ones(1, 1, K))[0]
        assert torch.allclose(layer.quantize("int8")(torch.ones(1, 1, K))[0], want, rtol=1e-3)
    if K > 5000:
        return
    layer = GRU(1, K, bias=False)
    layer.weight_hh_l0.fill_(1 / K)
    x, hx = torch.zeros(3, 2, 1), torch.ones(1, 2, K)
    assert torch.allclose(layer.quantize("int8")(x, hx)[0], layer(x, hx)[0], rtol=1e-3)


@pytest.mark.parametrize("scale", [0, 1e-42, 1e-30, 1e-8, 1, 1e8, 1e38])
@torch.no_grad()
def test_inputs_and_states_of_every_magnitude(scale):
    """An x keeps its digits; the state's are those of a number of 1, or of its row's largest where that is over 1."""
    quantized = GRU(8, 20, bias=False).quantize("int8")
    oracle, x = quantized.dequantize().double(), torch.randn(5, 7, 8).clamp(-3, 3) * scale
    for hx in (None, torch.randn(1, 7, 20) * min(scale, 1), torch.randn(1, 7, 20) * min(scale, 1e6)):
        got = quantized(x, hx)[0]
        want = oracle(x.double(), None if hx is None else hx.double())[0]
        largest = 1 if hx is None else max(1, hx.abs().max())
        assert (got - want).abs().max() <= 1e-4 * largest
    assert rms_error(quantized(x[:1])[0], oracle(x[:1].double())[0]) <= (1e-4 if scale >= 1e-30 else 1)


@torch.no_grad()
def test_strides_and_views():
    quantized = GRU(6, 5).quantize("int8")
    x = torch.randn(4, 6, 10).transpose(1, 2)  # features 10 apart
    assert torch.equal(quantized(x)[0], quantized(x.contiguous())[0])
    negated = torch.randn(4, 10, 6, dtype=torch.complex64).conj().imag
    assert negated.is_neg() and torch.equal(quantized(negated)[0], quantized(negated.clone())[0])
