"""The single-step kernel against torch.nn.GRUCell in float64: natively on a GPU, else in Triton's interpreter."""

import pytest
import torch
from oracle import FUSED_LIMITS, assert_near

from grucore import GRU, GRUCell
from grucore.kernels.triton import layer as fused

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]

pytestmark = pytest.mark.gpu if DEVICE == "cuda" else []


def randn(*shape, dtype):
    return torch.randn(*shape, device=DEVICE, dtype=dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 24, 33, True), (17, 200, 20, False), (2, 1, 1, True)], ids=str)
def test_cell_equals_nn_gru_cell(shape, dtype):
    B, I, H, bias = shape  # noqa: E741
    cell = GRUCell(I, H, bias, device=DEVICE, dtype=dtype, precision="ieee", backend="triton")
    oracle = torch.nn.GRUCell(I, H, bias, device=DEVICE, dtype=torch.float64)
    oracle.load_state_dict(cell.state_dict())
    x, hx, dy = randn(B, I, dtype=dtype), randn(B, H, dtype=dtype), randn(B, H, dtype=dtype)
    results = []
    for module, inputs in ((cell, (x, hx)), (oracle, (x.double(), hx.double()))):
        inputs = [t.requires_grad_() for t in inputs]
        h = module(*inputs)
        results.append((h, *torch.autograd.grad(h, [*inputs, *module.parameters()], dy.to(h.dtype))))
    names = ["output", "dx", "dh0", "dw", "dw", "db", "db"]
    for name, got, want in zip(names, *results, strict=False):
        if got.numel() > 3 or dtype is torch.float32:  # the error of so few is that of the one whose terms cancel
            assert_near(name, got, want, FUSED_LIMITS)


def test_a_step_is_one_launch(monkeypatch):
    launches = []
    for name in ("_gru_forward_kernel", "gru_step"):
        run = getattr(fused, name)
        monkeypatch.setattr(fused, name, lambda *a, run=run, name=name, **k: (launches.append(name), run(*a, **k))[1])
    model = GRU(5, 7, num_layers=2, device=DEVICE, backend="triton")
    model.step(randn(2, 5, dtype=torch.float32))
    assert launches == ["gru_step"] * 2


def test_steps_equal_the_whole_sequence():
    model = GRU(5, 7, num_layers=2, device=DEVICE, precision="ieee", backend="triton")
    x, h = randn(6, 3, 5, dtype=torch.float32), randn(2, 3, 7, dtype=torch.float32)
    want, want_h_n = model(x, h)
    for x_t, want_t in zip(x, want, strict=True):
        y_t, h = model.step(x_t, h)
        torch.testing.assert_close(y_t, want_t, rtol=0, atol=1e-6)
    torch.testing.assert_close(h, want_h_n, rtol=0, atol=1e-6)


def test_unbatched_strided_and_empty():
    cell = GRUCell(5, 7, device=DEVICE, precision="ieee", backend="triton")
    x, hx = randn(3, 10, dtype=torch.float32)[:, ::2], randn(7, 3, dtype=torch.float32).t()
    want = cell(x.contiguous(), hx.contiguous())
    torch.testing.assert_close(cell(x, hx), want, rtol=0, atol=0)
    torch.testing.assert_close(cell(x[1], hx[1]), want[1], rtol=0, atol=1e-6)
    assert cell(x[:0], hx[:0]).shape == (0, 7)


def test_reset_of_a_single_step_changes_nothing():
    model = GRU(5, 7, device=DEVICE, backend="triton")
    x, hx = randn(1, 3, 5, dtype=torch.float32), randn(1, 3, 7, dtype=torch.float32)
    reset = torch.tensor([[True, False, True]], device=DEVICE)
    for got, want in zip(model(x, hx, reset=reset), model(x, hx), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_a_cuda_graph_captures_a_step():
    model = GRU(64, 64, num_layers=2, device=DEVICE, dtype=torch.bfloat16)
    x, h = randn(4, 64, dtype=torch.bfloat16), randn(2, 4, 64, dtype=torch.bfloat16)
    with torch.no_grad():
        model.step(x, h)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y, h_n = model.step(x, h)
        x.normal_(), h.normal_()
        graph.replay()
        for got, want in zip((y, h_n), model.step(x, h), strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=0)
