"""On a GPU: `make test-gpu`. Everywhere else these are not run."""

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
    layer = GRU(3, 4, num_layers=2, bidirectional=True, device="cuda")
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
