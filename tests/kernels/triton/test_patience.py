"""A lost program: its group's launch ends with NaN, and the next call raises. On a real GPU nothing is lost.

tests/ptxrun executes compiled code in which a store, a count or a program is lost.
"""

import pytest
import torch

from grucore import GRU
from grucore.kernels.triton import launch, layer, plan


class WithoutAStep:
    """The kernel without the programs of one step."""

    def __init__(self, kernel, lost):
        self.kernel, self.lost = kernel, lost

    def __getitem__(self, grid):
        at = self.kernel.arg_names.index("first")
        return lambda *args, **options: None if args[at] == self.lost else self.kernel[grid](*args, **options)


@pytest.mark.slow
@pytest.mark.parametrize("exchange", ["data", "counter"])
@pytest.mark.parametrize("recurrence", ["forward", "backward"])
def test_a_lost_step_ends_in_nan_and_is_raised_once(recurrence, exchange, monkeypatch):
    chosen = plan.Plan(16, 16, 16, False, exchange, 4, 1, 0)  # three programs share 40 units
    monkeypatch.setattr(launch, "plan", lambda *_: chosen)
    monkeypatch.setattr(launch, "PATIENCE", -1000)  # 24 polls, for 4 steps
    gru, x = GRU(3, 40, backend="triton"), torch.randn(4, 2, 3)
    name = f"_gru_{recurrence}_kernel"
    kernel = getattr(layer, name)
    with monkeypatch.context() as changed:
        changed.setattr(layer, name, WithoutAStep(kernel, 1))
        y, h_n = gru(x)
        if recurrence == "backward":
            y[-1].sum().backward()
    result = h_n if recurrence == "forward" else gru.weight_hh_l0.grad
    assert result.isnan().any()
    with pytest.raises(RuntimeError, match="on cpu gave up waiting for one of its programs"):
        gru(x)
    assert gru(x)[0].isfinite().all()
