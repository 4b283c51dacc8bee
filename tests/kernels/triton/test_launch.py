"""Launches: chunks of time, and the precision of products. test_contract.py tests the results.

Natively on a GPU, in Triton's interpreter everywhere else.
"""

import threading
import time

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


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of NumPy, in the interpreter
@pytest.mark.parametrize("where", ["x", "hx"])
@pytest.mark.parametrize("H", [5, 16, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_infinity_that_saturates_gates_makes_no_nan(dtype, H, where):
    """The units beyond hidden_size have weights of 0, and inf * 0 is a NaN."""
    layer = GRU(3, H, device=DEVICE, backend="triton").to(dtype)  # drawn in bfloat16, one in 256 weights would be 0
    reference = GRU(3, H, device=DEVICE, dtype=torch.float64, backend="reference")
    reference.load_state_dict(layer.state_dict())
    x, hx = torch.randn(4, 2, 3, device=DEVICE), torch.randn(1, 2, H, device=DEVICE)
    (x[2] if where == "x" else hx[0])[0, 1] = float("inf")
    found = []
    for each in (layer, reference):
        given = [t.to(each.weight_hh_l0.dtype).requires_grad_() for t in (x, hx)]
        y, _ = each(*given)
        grads = torch.autograd.grad(y.nan_to_num(0, 0, 0).sum(), [*given, *each.parameters()])
        found.append([each.isnan() for each in (y, *grads)])
    assert all((got <= want).all() for got, want in zip(*found, strict=True))
    assert where == "hx" or not found[0][0].any()


@pytest.mark.parametrize("flags", [{}, {"mask": torch.ones(0, 2, dtype=torch.bool, device=DEVICE)}], ids=["", "mask"])
def test_no_steps(flags):
    layer = GRU(3, 5, device=DEVICE, backend="triton")
    hx = torch.randn(1, 2, 5, device=DEVICE, requires_grad=True)
    y, h_n = layer(torch.randn(0, 2, 3, device=DEVICE), hx, **flags)
    h_n.sum().backward()
    assert y.shape == (0, 2, 5) and torch.equal(h_n, hx) and torch.equal(hx.grad, torch.ones_like(hx))


@pytest.mark.parametrize("H", [16, 20])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_results_have_the_layout_that_torch_compile_was_told(bidirectional, H):
    layer = GRU(3, H, device=DEVICE, bidirectional=bidirectional, backend="triton")
    x, hx = torch.randn(4, 2, 3, device=DEVICE), torch.randn(1 + bidirectional, 2, H, device=DEVICE, requires_grad=True)
    y, h_n = layer(x, hx)
    gradients = torch.autograd.grad([y.sum(), h_n.sum()], [hx, *layer.parameters()])
    assert all(t.is_contiguous() for t in (y, h_n, *gradients))


def test_threads_take_turns_with_the_precision_of_products(monkeypatch):
    """A process has one: a layer in ieee must not set it while one in tf32 computes, nor leave it changed."""
    switch = torch.backends.cuda.matmul
    name = "fp32_precision" if hasattr(switch, "fp32_precision") else "allow_tf32"  # before torch 2.9
    before, addmm, seen = getattr(switch, name), torch.addmm, {}
    entered = threading.Barrier(2)
    monkeypatch.setattr(torch, "addmm", lambda *a, **k: (time.sleep(0.01), note(), addmm(*a, **k))[2])

    def note():
        seen.setdefault(threading.current_thread().name, set()).add(getattr(switch, name))

    def run(precision):
        layer = GRU(3, 16, device=DEVICE, precision=precision, backend="triton")
        entered.wait()
        for _ in range(3):
            layer(torch.randn(2, 2, 3, device=DEVICE))

    threads = [threading.Thread(target=run, args=[each], name=each) for each in ("ieee", "tf32")]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    wanted = {each: {each if name == "fp32_precision" else each == "tf32"} for each in ("ieee", "tf32")}
    assert seen == wanted and getattr(switch, name) == before


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
