"""Layers executed without a GPU: a few here, every row of plans.json by `make test-ptx`."""

import json

import pytest
from ptxrun import cases, faults
from ptxrun.child import UNAVAILABLE, run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(UNAVAILABLE is not None, reason=UNAVAILABLE or "")]


def results(what, seeds, tmp_path):
    out = tmp_path / "results"
    result = run("-m", "ptxrun", what, "--few", "--seeds", seeds, "--out", out)
    assert result.returncode == 0, result.stdout + result.stderr
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_layers_equal_nn_gru_in_two_interleavings(tmp_path):
    lines = results("layers", 2, tmp_path)
    assert len(lines) == 2 * len(cases.FEW) and all(line["instructions"] > 10_000 for line in lines)


def test_planted_faults_are_caught(tmp_path):
    lines = results("faults", 1, tmp_path)
    assert len(lines) == sum(map(len, faults.FEW.values())) and all(line["planted"] for line in lines)


def test_no_two_runs_have_the_same_name():
    names = [str(run) for run in cases.all_runs()]
    assert len(set(names)) == len(names)
