"""`python -m grucore.selftest` passes here, and reports wrong results."""

import math

import torch

from grucore import GRU, selftest


def test_this_machine_is_right(monkeypatch, capsys):
    monkeypatch.setattr(selftest, "SHAPES", [(3, 2, 4, 5)])
    assert selftest.main() == 0
    printed = capsys.readouterr().out
    assert "cpu    float32" in printed and "all results are correct" in printed
    assert GRU(4, 5).explain_backend(torch.zeros(3, 2, 4)).name in printed


def test_a_wrong_result_is_said(monkeypatch, capsys):
    monkeypatch.setattr(selftest, "SHAPES", [(3, 2, 4, 5)])
    right = selftest.GRU.forward
    monkeypatch.setattr(selftest.GRU, "forward", lambda self, x: tuple(t * (1 + 1e-3) for t in right(self, x)))
    assert selftest.main() == 1
    assert "WRONG" in capsys.readouterr().out


def test_a_gradient_that_is_not_a_number_is_wrong():
    layer = GRU(4, 5)
    layer.weight_hh_l0.register_hook(lambda gradient: gradient * float("nan"))
    assert math.isnan(selftest.worst_error(layer, torch.randn(3, 2, 4)))


def test_error_is_relative():
    want = torch.ones(4, dtype=torch.float64)
    assert abs(selftest.rms_error(want * 1.5, want) - 0.5) < 1e-12
