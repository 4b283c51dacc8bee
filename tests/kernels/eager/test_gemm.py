"""Products with a weight: oneDNN's and the plain ones are the same, and which is taken."""

import pytest
import torch
from oracle import assert_near

from grucore.kernels.eager import gemm

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")


@pytest.mark.parametrize("onednn", [False, pytest.param(True, marks=needs_onednn)], ids=["plain", "oneDNN"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_products_are_right(bias, onednn, monkeypatch):
    """Also for another number of rows than was announced, and for a weight that lies transposed."""
    monkeypatch.setattr(gemm, "ONEDNN_MIN_WORK", 1 if onednn else 2**60)
    w, b = torch.randn(5, 7).t(), torch.randn(7) if bias else None
    weight = gemm.Weight(w, rows=4)
    assert weight.onednn is onednn
    for rows in (4, 3, 0):
        x, total = torch.randn(rows, 5), torch.randn(rows, 7)
        product = x.double() @ w.double().t()
        want = product if b is None else product + b.double()
        assert_near("output", weight.apply(x, b), want)
        assert_near("output", weight.apply(x, b, out=torch.empty(4, 7)), want)
        assert_near("output", weight.apply_add(x, total.clone()), total.double() + product)
        dg, dw = torch.randn(rows, 7), torch.randn(5, 7)
        want = dw.double() + x.double().t() @ dg.double()
        gemm.add_outer(dw, dg, x)
        assert_near("dw", dw, want)


@needs_onednn
def test_which_product_is_taken():
    """Large ones in float32 of a power of two of rows: memory is kept for every number of rows that oneDNN has seen."""
    w = torch.randn(512, 1024)
    assert gemm.Weight(w, 64).onednn
    assert not any(gemm.Weight(*few).onednn for few in ((w, 63), (w[:3, :3], 64), (w.double(), 64)))
