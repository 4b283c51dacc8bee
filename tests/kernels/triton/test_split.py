"""Layers whose hidden units are shared by groups of programs, which exchange their slices of each step.

Natively on a GPU, in Triton's interpreter everywhere else.
"""

import pytest
import torch
from contract import DEVICE, IMPLEMENTATIONS, Case, check

from grucore import GRU
from grucore.kernels.triton import launch, plan
from grucore.kernels.triton.plan import H100

pytestmark = [pytest.mark.slow, *([pytest.mark.gpu] if DEVICE == "cuda" else [])]


f32, f16, bf16 = torch.float32, torch.float16, torch.bfloat16
SPLIT = {  # a case, a dtype, and whether weights are streamed
    "two tiles, two-way": (Case(2, 17, 3, 130, two_way=True), f16, False),
    "whole width": (Case(2, 2, 3, 256), bf16, False),
    "several products": (Case(2, 2, 3, 300), f16, False),
    "streamed, float32": (Case(3, 2, 3, 65, two_way=True), f32, True),
    "streamed, wider tiles": (Case(3, 33, 3, 100, two_way=True), f32, True),
    "streamed, wide": (Case(2, 2, 3, 1030), f16, True),
    "streamed, wide, wider tiles": (Case(2, 33, 3, 1030), bf16, True),
}


IN_MINUTES = ("streamed, wide", "streamed, wide, wider tiles")


@pytest.mark.parametrize(
    "case, dtype, streamed",
    [
        pytest.param(*each, id=name, marks=[pytest.mark.exhaustive] * (name in IN_MINUTES))
        for name, each in SPLIT.items()
    ],
)
def test_equals_nn_gru(case, dtype, streamed):
    for recurrence in ("forward", "backward"):
        chosen = launch.plan(recurrence, case.B, case.H, 1, plan.kind(dtype, "ieee"), H100)
        assert chosen.block_j > 0 and chosen.streamed is streamed
    check(IMPLEMENTATIONS["triton"], case, dtype)


@pytest.mark.parametrize(
    "exchange, streamed",
    [
        pytest.param("data", False, id="data, kept"),
        pytest.param("counter", True, id="counter, streamed"),
        pytest.param("data", True, id="data, streamed", marks=pytest.mark.exhaustive),
        pytest.param("counter", False, id="counter, kept", marks=pytest.mark.exhaustive),
    ],
)
def test_both_exchanges_with_flags_and_chunks(exchange, streamed, monkeypatch):
    """Regardless of the table; chunks of two steps, so that states and gradients cross them."""
    case = Case(3, 18, 3, 24, two_way=True, flags="gaps resets")
    chosen = plan.Plan(16, 16, 16, streamed, exchange, 4, 1, 0)
    monkeypatch.setattr(launch, "plan", lambda *_: chosen)
    monkeypatch.setattr(launch, "chunk_steps", lambda *_: 2)
    check(IMPLEMENTATIONS["triton"], case, f32)


@pytest.mark.parametrize("flags", ["lengths", "gaps resets state"])
def test_flags_and_chunks(flags, monkeypatch):
    """Plans from the table, in 16 bits."""
    case = Case(4, 3, 3, 130, two_way=True, flags=flags)
    monkeypatch.setattr(launch, "chunk_steps", lambda *_: 2)
    check(IMPLEMENTATIONS["triton"], case, f16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_nan_with_the_bits_of_the_filling_does_not_stop_a_group(dtype):
    """Kept from step to step in one row, while other rows continue."""
    layer = GRU(3, 130, device=DEVICE, dtype=dtype, backend="triton")
    hx = torch.randn(1, 3, 130, device=DEVICE, dtype=dtype)
    filling = torch.full((130,), -1, dtype=torch.int16, device=DEVICE).view(dtype)
    assert filling.isnan().all()
    hx[0, 1] = filling
    mask = torch.tensor([[True, False, True]], device=DEVICE).expand(3, 3)
    x = torch.randn(3, 3, 3, device=DEVICE, dtype=dtype)
    y, h_n = layer(x, hx, mask=mask)
    assert h_n[0, 1].isnan().all() and y[:, 1].count_nonzero() == 0
    others = [0, 2]
    want, _ = layer(x[:, others], hx[:, others])
    torch.testing.assert_close(y[:, others], want, rtol=0, atol=0)


def test_nan_stays_in_its_row():
    """A NaN input at one step of one row: the outputs and gradients of other rows do not change."""
    layer = GRU(3, 130, device=DEVICE, dtype=f16, backend="triton")
    x, others = torch.randn(4, 3, 3, device=DEVICE, dtype=f16), [0, 2]
    results = []
    for value in (1.0, float("nan")):
        x_ = x.clone()
        x_[1, 1] = value
        y, h_n = layer(x_.requires_grad_())
        (dx,) = torch.autograd.grad(y[:, others].float().square().sum() + h_n[:, others].float().sum(), x_)
        results.append((y, h_n, dx))
    y, h_n, _ = results[1]
    assert y[1:, 1].isnan().all() and h_n[:, 1].isnan().all() and not y[0].isnan().any()
    for got, want in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got[:, others], want[:, others], rtol=0, atol=0)
