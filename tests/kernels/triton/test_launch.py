"""Launches: chunks of time, and the precision of products. test_contract.py tests the results.

Natively on a GPU, in Triton's interpreter everywhere else.
"""

import pytest
import torch
from contract import DEVICE, IMPLEMENTATIONS, Case, check

from grucore import GRU
from grucore.kernels.triton import launch

pytestmark = pytest.mark.gpu if DEVICE == "cuda" else []


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("flags", ["", "gaps resets"], ids=["dense", "flags"])
def test_chunks_do_not_change_the_result(flags, steps, monkeypatch):
    """States and gradients cross chunks."""
    case = Case(T=9, H=10, two_way=True, flags=flags)
    monkeypatch.setattr(launch, "chunk_steps", lambda *_: steps)
    check(IMPLEMENTATIONS["triton"], case, torch.float32)


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_all_products_have_the_layers_precision(precision, monkeypatch):
    """The global setting for products is ignored, and restored afterwards."""
    switch = torch.backends.cuda.matmul

    def now():
        return switch.fp32_precision if hasattr(switch, "fp32_precision") else switch.allow_tf32  # before torch 2.9

    seen, outside, wanted = set(), now(), precision if hasattr(switch, "fp32_precision") else precision == "tf32"
    for name in ("mm", "addmm"):
        product = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, p=product, **k: (seen.add(now()), p(*a, **k))[1])
    layer = GRU(3, 4, device=DEVICE, precision=precision, backend="triton")
    layer(torch.randn(2, 2, 3, device=DEVICE))[0].sum().backward()
    assert seen == {wanted} and now() == outside
