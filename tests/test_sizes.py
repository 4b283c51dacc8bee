"""No cliffs: sizes past those where others stop, misread or go wrong."""

import pytest
import torch
from oracle import assert_near, compare, to_oracle

from grucore import GRU
from grucore.kernels import Form, State, Steps, Weights
from grucore.kernels.reference import gru_layer

BEYOND = 66_000  # 65,535 is the largest y or z axis of a CUDA grid, and cuDNN's T

SIZES = {  # T, B, I, H, layers, two-way
    "B": (2, BEYOND, 2, 3, 1, True),
    "I": (2, 1, BEYOND, 1, 1, False),
    "layers": (2, 1, 2, 3, 40, False),
    "prime": (7, 5, 3, 127, 1, True),
}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_equals_nn_gru(size):
    T, B, I, H, layers, two_way = size  # noqa: E741
    layer = GRU(I, H, layers, bidirectional=two_way, dtype=torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64) / I**0.5  # so that no gate is quite open or shut, whatever I is
    hx = torch.randn(layers * (1 + two_way), B, H, dtype=torch.float64)
    compare(layer, to_oracle(layer), x, hx)


def test_long_sequences():
    """Gradients of the last steps; nn.GRU begins 500 steps before the end, from its own state there: what is earlier
    has been forgotten.
    """
    layer, cut = GRU(2, 3, dtype=torch.float64), BEYOND - 500
    oracle, x = to_oracle(layer), torch.randn(BEYOND, 1, 2, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        want, h_cut = oracle(x[:cut])
    y, h_n = layer(x)
    y_want, h_want = oracle(x[cut:], h_cut)
    assert_near("output", y, torch.cat([want, y_want]))
    assert_near("output", h_n, h_want)
    dy = torch.randn(100, 1, 3, dtype=torch.float64)
    got = torch.autograd.grad(y[-100:], [x, *layer.parameters()], dy)
    for a, b in zip(got, torch.autograd.grad(y_want[-100:], [x, *oracle.parameters()], dy), strict=True):
        assert_near("dx", a, b)
    assert got[0][-500].abs().max() < 1e-20


@pytest.mark.parametrize("kind", ["lengths", "mask", "reset"])
def test_long_sequences_with_flags(kind):
    T = BEYOND
    layer = GRU(1, 2, dtype=torch.float64)
    x = torch.randn(T, 2, 1, dtype=torch.float64)
    options = {"lengths": torch.tensor([T, 3])} if kind == "lengths" else {kind: torch.rand(T, 2) < 0.5}
    y, h_n = layer(x, **options)
    cut = 65_530
    if kind == "lengths":
        want, _ = layer(x[cut:, :1], h0_after(layer, x[:cut, :1]))
        torch.testing.assert_close(y[cut:, :1], want, rtol=0, atol=1e-12)
        assert y[3:, 1].count_nonzero() == 0
    elif kind == "mask":
        rows = options["mask"][:, 0]
        want, h_want = layer(x[rows, :1])
        torch.testing.assert_close(y[rows, :1], want, rtol=0, atol=1e-12)
        torch.testing.assert_close(h_n[:, :1], h_want, rtol=0, atol=1e-12)
    else:
        last = int(options["reset"][:, 1].nonzero()[-1])
        torch.testing.assert_close(y[last:, 1:], layer(x[last:, 1:])[0], rtol=0, atol=1e-12)


def h0_after(layer, x):
    return layer(x)[1]


@pytest.mark.parametrize("odd", ["strides", "expanded", "offset", "sliced hx", "dtype of hx"])
def test_tensors_laid_out_in_any_way(odd):
    """Equal to contiguous copies, gradients included."""
    layer = GRU(3, 7, num_layers=2, dtype=torch.float64)
    x, hx = torch.randn(5, 4, 3, dtype=torch.float64), torch.randn(2, 4, 7, dtype=torch.float64)
    if odd == "strides":
        x = torch.randn(3, 8, 10, dtype=torch.float64).permute(2, 1, 0)[::2, ::2]
    elif odd == "expanded":
        x = x[:, :1].expand(5, 4, 3)
    elif odd == "offset":
        x = torch.randn(5 * 4 * 3 + 1, dtype=torch.float64)[1:].view(5, 4, 3)
    elif odd == "sliced hx":
        hx = torch.randn(4, 14, 2, dtype=torch.float64).permute(2, 0, 1)[:, :, ::2]
    else:
        hx = hx.float()
    results = []
    for copy in (False, True):
        x_, h_ = (t.clone(memory_format=torch.contiguous_format) if copy else t for t in (x, hx))
        x_, h_ = x_.detach().requires_grad_(), h_.detach().requires_grad_()
        y, h_n = layer(x_, h_ if not copy else h_.double())
        dy = torch.randn(4, 7, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64).permute(2, 0, 1)
        results.append((y, h_n, *torch.autograd.grad(y, [x_, h_, *layer.parameters()], dy)))
    for got, want in zip(*results, strict=True):
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_gradients_of_hx_come_in_its_dtype():
    layer, hx = GRU(3, 4), torch.randn(1, 2, 4, dtype=torch.float64, requires_grad=True)
    layer(torch.randn(5, 2, 3), hx)[0].sum().backward()
    assert hx.grad.dtype is torch.float64 and hx.grad.count_nonzero() == 8


def test_a_row_depends_on_itself_alone():
    """To the last bits: products of other heights may round otherwise, so a row alone need not equal it bit for bit."""
    layer = GRU(3, 40, bidirectional=True)
    x = torch.randn(20, 9, 3)
    y, h_n = layer(x)
    other = x.clone()
    other[:, 1:] = torch.randn(20, 8, 3)
    y_other, h_other = layer(other)
    assert torch.equal(y[:, 0], y_other[:, 0]) and torch.equal(h_n[:, 0], h_other[:, 0])
    alone, _ = layer(x[:, :1])
    torch.testing.assert_close(alone, y[:, :1], rtol=0, atol=1e-6)  # 1.8e-7 measured


def test_the_reference_takes_the_same_sizes():
    layer = GRU(2, 3, dtype=torch.float64)
    x, h0 = torch.randn(3, BEYOND, 2, dtype=torch.float64), torch.zeros(1, BEYOND, 3, dtype=torch.float64)
    y, _, _ = gru_layer(x, State(h0), Weights(*(w.unsqueeze(0) for w in layer.all_weights[0])), Steps(), Form())
    torch.testing.assert_close(y, layer(x)[0], rtol=0, atol=1e-12)
