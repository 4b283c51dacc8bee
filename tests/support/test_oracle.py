"""The comparison itself must reject wrong results."""

import pytest
import torch
from oracle import assert_near, compare, rms_error, to_oracle

from grucore import GRU


def test_a_slightly_wrong_result_is_rejected():
    want = torch.randn(100, dtype=torch.float64)
    with pytest.raises(AssertionError, match="over the limit"):
        assert_near("output", (want * (1 + 2e-5)).float(), want)


def test_one_nan_is_rejected():
    want = torch.randn(100)
    got = want.clone()
    got[3] = float("nan")
    assert rms_error(got, want) == float("inf")


def test_swapped_gates_are_rejected():
    layer = GRU(3, 4)
    wrong = to_oracle(layer)
    with torch.no_grad():
        wrong.weight_hh_l0.copy_(wrong.weight_hh_l0.view(3, 4, 4)[[1, 0, 2]].reshape(12, 4))
    with pytest.raises(AssertionError, match="over the limit"):
        compare(layer, wrong, torch.randn(5, 2, 3))


def test_fresh_memory_is_poisoned():
    assert torch.empty(3).isnan().all()
    assert torch.zeros(3).new_empty(3).isnan().all()
