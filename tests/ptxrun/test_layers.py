"""Layers executed without a GPU: a few here; every row of plans.json by `make test-ptx`."""

import json

import pytest
from ptxrun import cases, faults
from ptxrun.child import UNAVAILABLE, run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(UNAVAILABLE is not None, reason=UNAVAILABLE or "")]


def test_layers_equal_nn_gru_and_planted_faults_are_caught(tmp_path):
    """In two interleavings, and in up to three."""
    out = tmp_path / "results"
    result = run("-m", "ptxrun", "layers", "faults", "--few", "--seeds", 2, "--out", out)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    layers, planted = ([line for line in lines if line["what"] == what] for what in ("layers", "faults"))
    assert len(layers) == 2 * len(cases.FEW) and all(line["instructions"] > 10_000 for line in layers)
    assert len(planted) == sum(map(len, faults.FEW.values())) and all(line["planted"] for line in planted)


def test_no_two_runs_have_the_same_name():
    names = [str(run) for run in cases.all_runs()]
    assert len(set(names)) == len(names)
