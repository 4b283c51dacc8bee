"""Errors against float64: the measurement is correct, and the tables show the measured values."""

import csv
import sys

import pytest
import torch

from benchmarks.measuring import accuracy
from benchmarks.publishing import accuracy as tables

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("case", ["plain", *accuracy.CASES])
def test_the_exact_layer_is_nn_gru(case):
    """In the range where nn.GRU does not lose digits."""
    given = accuracy.problem(case, torch.float32, 7)
    got = accuracy.results(accuracy.Exact(given.layer), given, torch.float64)
    want = accuracy.results(given.layer, given, torch.float64)
    assert all(accuracy.rms_error(got[name], want[name]) < (1e-6 if case == "open" else 1e-9) for name in want)


def test_a_wrong_layer_and_a_leaking_one_show(monkeypatch):
    def wrong(provider, given, dtype):
        layer = right(provider, given, dtype)
        layer.register_forward_hook(lambda _, inputs, outputs: (outputs[0] + 0.01 * outputs[0].sum(), outputs[1]))
        return layer

    right = accuracy.layer_of
    assert all(error < 1e-5 for *_, error in accuracy.errors("plain", torch.float32, 10))
    assert not any(count for *_, count in accuracy.contained(float("nan"), torch.float32))
    monkeypatch.setattr(accuracy, "layer_of", wrong)
    assert all(error > 1e-3 for *_, error in accuracy.errors("plain", torch.float32, 10))
    assert all(count for _, name, count in accuracy.contained(float("nan"), torch.float32) if name == "y")


def test_rows_become_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["accuracy", "--longest", "10", "--out", str(tmp_path)])
    monkeypatch.setattr(accuracy, "DTYPES", {"float32": torch.float32})
    accuracy.main()
    rows = tables.read(tmp_path / "accuracy")
    with (tmp_path / "accuracy" / "cpu.csv").open() as file:
        assert len(rows) == len(list(csv.DictReader(file))) > 0
    summary, section = tables.summary(rows), "\n".join(tables.section(rows))
    assert summary.startswith("| dtype | error of | T = 10 |") and summary.count("float32") == 2
    for words in tables.CASES.values():
        assert f"### {words}" in section
    assert "| nan | 0 | 0 |" in section
    with pytest.raises(SystemExit, match="exists: results are never overwritten"):
        accuracy.main()
