"""Quantised layers: a row for each that can run, and tables of what was measured."""

import json
import sys

import pytest
import torch

from benchmarks.measuring import quantised
from benchmarks.publishing import quantised as tables

pytestmark = pytest.mark.slow


@pytest.fixture
def measured(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["quantised", "--rounds", "1", "--out", str(tmp_path)])
    monkeypatch.setattr(quantised, "SHAPES", [(3, 2, 4, 8)])
    monkeypatch.setitem(quantised.MAKERS, "torch", lambda layer: (lambda x: torch.zeros(3, 2, 8), 1))

    def fails(layer):
        raise ValueError("no such thing\nat all")

    monkeypatch.setitem(quantised.MAKERS, "onnxruntime-of-int8", fails)
    quantised.main()
    return tmp_path / "quantised"


def test_rows_become_tables(measured):
    rows, _ = tables.read(measured)
    errors = {(row.provider, row.weights): float(row.relative_error) for row in rows if row.relative_error}
    for weights in quantised.GAINS:
        assert errors["grucore", weights] < 1e-6 < errors["grucore-int8", weights] < 0.1
        assert errors["torch", weights] == 1  # what is wrong shows
    section = "\n".join(tables.section(rows, []))
    assert "| 3 x 2, 4 -> 8 | " in section and "onnxruntime-of-int8" not in section
    assert "onnxruntime, our int8 file: ValueError: no such thing." in section
    assert tables.section([], []) == []
    with pytest.raises(SystemExit, match="exists: results are never overwritten"):
        quantised.main()


def test_reviews_are_a_table(measured):
    numbers = dict.fromkeys(("accuracy", "largest_change_of_probability"), 0.5)
    found = {weights: {**numbers, "labels_changed": 3} for weights in ("float32", "int8", "bf16")}
    (measured / "imdb.json").write_text(json.dumps({"reviews": 2000, **found, "commit": "abc", "date": "today"}))
    section = "\n".join(tables.section(*tables.read(measured)))
    assert "on 2,000 real test reviews" in section and "| int8 | 0.5000 | 3 | 5.0e-01 |" in section
