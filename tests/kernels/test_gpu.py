"""Tests that need a GPU: `make test-gpu`."""

import pytest
import torch
from oracle import compare, to_oracle

from grucore import GRU

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


@pytest.fixture(autouse=True)
def _exact_products(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_equals_nn_gru(dtype):
    layer = GRU(5, 33, num_layers=2, bidirectional=True, device="cuda", dtype=dtype, precision="ieee")
    x, hx = torch.randn(40, 3, 5, device="cuda", dtype=dtype), torch.randn(4, 3, 33, device="cuda", dtype=dtype)
    with torch.backends.cudnn.flags(enabled=False):
        compare(layer, to_oracle(layer), x, hx)


def test_lengths_do_not_make_the_host_wait():
    layer = GRU(3, 4, num_layers=2, bidirectional=True, device="cuda", precision="ieee")
    x, lengths = torch.randn(7, 2, 3, device="cuda"), torch.tensor([0, 5], device="cuda")
    layer(x, lengths=lengths)
    torch.cuda.set_sync_debug_mode("error")
    try:
        y, h_n = layer(x, lengths=lengths)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    on_cpu = layer.cpu()(x.cpu(), lengths=lengths.cpu())
    torch.testing.assert_close(y.cpu(), on_cpu[0])
    torch.testing.assert_close(h_n.cpu(), on_cpu[1])


def test_addresses_past_32_bits():
    """T * B * H of 2.3e9: the last rows and steps equal those of a layer that sees only them."""
    T, B, H = 70_000, 64, 512
    layer = GRU(8, H, device="cuda", dtype=torch.bfloat16)
    x = torch.zeros(T, B, 8, device="cuda", dtype=torch.bfloat16)
    x[-50:] = torch.randn(50, B, 8, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        y, h_n = layer(x)
        assert y.numel() > 2**31
        want, _ = layer(x[-50:], y[-51].unsqueeze(0).contiguous())
    torch.testing.assert_close(y[-50:], want, rtol=0, atol=1e-2)
    torch.testing.assert_close(h_n[0], y[-1], rtol=0, atol=0)


@pytest.mark.parametrize("H", [64, 512], ids=["whole", "split"])
def test_a_cuda_graph_captures_training(H):
    layer = GRU(H, H, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(20, 16, H, device="cuda", dtype=torch.bfloat16)
    step = lambda: torch.autograd.grad(layer(x)[0].float().square().sum(), list(layer.parameters()))  # noqa: E731
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        grads = step()
    x.normal_()
    graph.replay()
    for got, want in zip(grads, step(), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.parametrize("H", [64, 512], ids=["whole", "split"])
def test_two_streams(H):
    """Layers that run concurrently, including groups that wait, give the same results as one after the other."""
    layers = [GRU(H, H, device="cuda", dtype=torch.bfloat16) for _ in range(2)]
    x = torch.randn(200, 64, H, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        alone = [layer(x)[0] for layer in layers]
        streams = [torch.cuda.Stream() for _ in layers]
        torch.cuda.synchronize()
        for _ in range(5):
            together = []
            for layer, stream in zip(layers, streams, strict=True):
                with torch.cuda.stream(stream):
                    together.append(layer(x)[0])
            torch.cuda.synchronize()
            for got, want in zip(together, alone, strict=True):
                torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_compiles_whole_on_the_device():
    layer = GRU(16, 32, num_layers=2, device="cuda", dtype=torch.bfloat16)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for T, B in ((5, 3), (9, 2)):
        x = torch.randn(T, B, 16, device="cuda", dtype=torch.bfloat16)
        for got, want in zip(compiled(x), layer(x), strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=0)
