"""Runs the script for a day on a GPU, and the tuning of the launch table, without a GPU."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.results import new_file
from benchmarks.tuning import compile_report, tune
from grucore.kernels.triton import plan
from grucore.kernels.triton.plan import H100, Plan

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
FASTER = Plan(16, 32, 128, False, "counter", 4, 1, 100_000)


def on_device(*arguments):
    command = ["bash", ROOT / "benchmarks" / "tuning" / "on_device.sh", *arguments]
    environment = {"PYTHON": sys.executable, "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)


@pytest.mark.exhaustive
def test_a_dry_run_of_a_gpu_day(tmp_path):
    (tmp_path / "environment.json").mkdir()  # this step fails, and the others must still run
    result = on_device(tmp_path, "dry-run")
    assert result.returncode == 1 and result.stdout.endswith("failed: environment\n"), result.stdout + result.stderr
    assert "backward,ieee,16" in (tmp_path / "tune" / "tune.csv").read_text()
    assert "the other library's time divided by grucore's" in (tmp_path / "report" / "RESULTS.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing where there is no GPU")
def test_a_gpu_day_needs_a_gpu(tmp_path):
    result = on_device(tmp_path / "out")
    assert result.returncode == 1 and "no GPU that PyTorch can use" in result.stderr
    assert not (tmp_path / "out").exists()


def test_an_unknown_mode_is_refused(tmp_path):
    result = on_device(tmp_path / "out", "fast")
    assert result.returncode == 2 and "got 'fast'" in result.stderr and not (tmp_path / "out").exists()


def test_winners_take_the_place_of_the_rows_they_were_measured_for():
    few, many = (tune.Cell("backward", "half", 512, most) for most in (32, None))
    table = tune.merged(plan.TABLE, {few: FASTER, many: FASTER._replace(warps=8)}, capability=90)
    served = ("backward", "half", 512)
    rows = [row for row in table if (row["recurrence"], row["kind"], row["max_hidden"]) == served]
    found = [(row["capability"], row["max_batch"], row["warps"]) for row in rows]
    assert found == [(90, 32, 4), (90, None, 8), (80, None, 8)]
    kept = [row for row in table if row not in rows]
    assert all(row in plan.TABLE for row in kept) and len(kept) == len(plan.TABLE) - 2


def test_the_times_of_candidates_are_read_as_they_were_written(tmp_path):
    row = {"device": "a GPU", "recurrence": "forward", "kind": "half", "max_hidden": 512, "max_batch": None}
    row |= {"B": 16, "H": 512, "T": 256, **FASTER._asdict(), "ms": 0.5, "error_rms": 2e-3, "note": ""}
    failed = row | {"max_hidden": None, "max_batch": 32, "ms": "", "error_rms": "", "note": "OutOfResources"}
    with new_file(tmp_path / "tune.csv", list(row)) as write:
        write(row), write(failed)
    found = tune.read(tmp_path / "tune.csv")
    assert list(found) == [tune.Cell("forward", "half", 512, None), tune.Cell("forward", "half", None, 32)]
    ((first,), (second,)) = found.values()
    assert first["ms"] == 0.5 and plan.Plan(*(first[name] for name in plan.Plan._fields)) == FASTER
    assert second["ms"] == "" and second["note"] == "OutOfResources"


def test_a_winner_for_few_rows_and_many_is_one_row():
    cells = {tune.Cell("backward", "half", 512, most): FASTER for most in (32, None)}
    table = tune.merged(plan.TABLE, cells, capability=90)
    assert len(table) == len(plan.TABLE)
    assert sum(row["max_hidden"] == 512 and row["exchange"] == "counter" and row["warps"] == 4 for row in table) == 1


def test_the_table_is_in_the_order_that_tuning_writes():
    assert tune.merged(plan.TABLE, {}, capability=90) == plan.TABLE


def test_candidates_fit_the_device():
    for cell in tune.cells():
        batch, hidden_size = cell.sizes
        chosen = list(tune.candidates(cell, 2, H100.shared_memory))
        most = min(max(batch, 16), 32)  # larger tiles compile to asynchronous products
        assert chosen and all(c.block_b <= most and c.block_k <= max(hidden_size, 16) for c in chosen), cell


def test_a_row_that_is_never_reached_is_noticed():
    row = dict(plan.TABLE[0], capability=100)
    assert not compile_report.is_chosen(row | {"warps": 32}, H100)
