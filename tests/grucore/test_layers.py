"""Layers and their options against torch.nn.GRU in float64; test_contract.py tests one layer at every size."""

import pytest
import torch
from allpairspy import AllPairs
from contract import DEVICE
from oracle import FUSED_LIMITS, LIMITS, compare, to_oracle
from torch.nn.utils.rnn import pack_sequence

from grucore import GRU, InputError

OPTIONS = {
    "T": [1, 7],
    "B": [1, 5],
    "I": [1, 6],
    "H": [1, 8],
    "num_layers": [1, 2, 3],
    "bias": [True, False],
    "batch_first": [False, True],
    "bidirectional": [False, True],
    "hx": [False, True],
    "dtype": [torch.float64, torch.float32],
}
BACKENDS = ["eager", pytest.param("triton", marks=[pytest.mark.gpu] if DEVICE == "cuda" else [])]
PAIRS = [dict(zip(OPTIONS, case, strict=True)) for case in AllPairs(OPTIONS.values())]


def readable(case: dict) -> str:
    return "-".join(f"{name}{str(value).removeprefix('torch.')}" for name, value in case.items())


def layer_and_input(T, B, I, H, hx, dtype, **options):  # noqa: E741
    layer = GRU(I, H, dtype=dtype, **options)
    x = torch.randn(*((B, T) if layer.batch_first else (T, B)), I, dtype=dtype)
    h = torch.randn(layer.num_layers * layer.num_directions, B, H, dtype=dtype) if hx else None
    return layer, x, h


@pytest.mark.parametrize("case", PAIRS, ids=readable)
def test_equals_nn_gru(case):
    layer, x, h = layer_and_input(**case)
    compare(layer, to_oracle(layer), x, h)


@pytest.mark.parametrize("two_way", [False, True], ids=["one-way", "two-way"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_serve_stacked_layers(backend, two_way):
    """Two layers with lengths and resets (one direction: to another state), against the reference in float64."""
    device, limits = (DEVICE, FUSED_LIMITS) if backend == "triton" else ("cpu", LIMITS)
    layer = GRU(5, 20, num_layers=2, bidirectional=two_way, device=device, precision="ieee", backend=backend)
    oracle = GRU.from_torch(layer.to_torch(), backend="reference").double()
    x, hx, state = (torch.randn(n, 3, m, device=device) for n, m in ((4, 5), (2 + 2 * two_way, 20), (2, 20)))
    lengths, reset = torch.tensor([4, 0, 3], device=device), torch.rand(4, 3, device=device) < 0.3
    begin = lambda x: {} if two_way else {"reset_state": state.to(x.dtype)}  # noqa: E731
    call = lambda m, x, h: m(x, h, lengths=lengths, reset=reset, **begin(x))  # noqa: E731
    compare(layer, oracle, x, hx, call, call, limits)


def test_forty_layers():
    layer = GRU(2, 3, 40, dtype=torch.float64)
    compare(layer, to_oracle(layer), torch.randn(2, 1, 2, dtype=torch.float64))


@pytest.mark.parametrize("T, B", [(0, 3), (4, 0), (0, 0)])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one-way", "two-way"])
def test_empty(T, B, bidirectional):
    """No steps: the state stays hx. No rows: nothing. (torch.nn.GRU refuses T = 0.)"""
    layer = GRU(3, 4, num_layers=2, bidirectional=bidirectional)
    directions = 2 if bidirectional else 1
    x, h = torch.randn(T, B, 3, requires_grad=True), torch.randn(2 * directions, B, 4, requires_grad=True)
    y, h_n = layer(x, h)
    assert y.shape == (T, B, 4 * directions)
    assert torch.equal(h_n, h) if T == 0 else h_n.shape == h.shape
    (y.sum() + h_n.sum()).backward()
    assert x.grad.shape == x.shape
    assert torch.equal(h.grad, torch.ones_like(h) if T == 0 else torch.zeros_like(h))
    assert all(p.grad.count_nonzero() == 0 for p in layer.parameters())


def test_backward_twice_through_one_forward():
    """The first backward does not overwrite saved tensors."""
    layer, x = GRU(3, 5), torch.randn(6, 2, 3, requires_grad=True)
    y, _ = layer(x)
    first = torch.autograd.grad(y.sum(), x, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(y.sum(), x)[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_saved_for_backward_is_x_and_y_only(backend):
    """Bytes kept between forward and backward: x, h0, y and the parameters, where nn.GRU keeps every gate."""

    def saved_bytes(module, x):
        seen = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: seen.setdefault((t.data_ptr(), t.numel()), t), lambda t: t
        ):
            module(x)
        return sum(t.numel() * t.element_size() for t in seen.values())

    device = DEVICE if backend == "triton" else "cpu"
    layer, x = GRU(32, 32, backend=backend, device=device), torch.randn(20, 8, 32, device=device, requires_grad=True)
    needed = 4 * (2 * x.numel() + 8 * 32 + sum(p.numel() for p in layer.parameters()))
    assert saved_bytes(layer, x) <= needed * 1.02
    if device == "cpu":
        assert saved_bytes(layer.to_torch(), x) > 2 * needed


@pytest.mark.parametrize("odd", ["sliced", "dtype"])
def test_hx_of_another_layout_or_dtype(odd):
    """Equal to contiguous copies, gradients included."""
    layer = GRU(3, 7, num_layers=2, dtype=torch.float64)
    x, hx = torch.randn(5, 4, 3, dtype=torch.float64), torch.randn(2, 4, 7, dtype=torch.float64)
    sliced = torch.randn(4, 14, 2, dtype=torch.float64).permute(2, 0, 1)[:, :, ::2]
    hx = sliced if odd == "sliced" else hx.float()
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


@pytest.mark.parametrize("shape", [(1, 5, 4), (1, 1, 4), (1, 4)])
def test_the_state_of_packed_rows_fits_them(shape):
    packed = pack_sequence([torch.randn(2, 3), torch.randn(4, 3)], enforce_sorted=False)
    with pytest.raises(InputError, match=r"Expected hidden size \(1, 2, 4\)"):
        GRU(3, 4)(packed, torch.zeros(shape))


def test_a_gradient_of_zeros_without_memory():
    """Forward-mode differentiation makes such tensors."""
    layer = GRU(3, 5, bidirectional=True)
    y, _ = layer(torch.randn(4, 2, 3))
    (gradient,) = torch.autograd.grad(y, layer.weight_hh_l0, torch._efficientzerotensor(y.shape))
    assert not gradient.any()
