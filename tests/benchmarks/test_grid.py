"""The grid of CPUs: what is measured, in which processes, and how it is published, whoever took part."""

import argparse
import csv
import subprocess
import sys

import pytest
import torch

from benchmarks import results
from benchmarks.measuring import ceilings, compare, imdb_epoch, peak, run, timing
from benchmarks.measuring.cases import Case
from benchmarks.measuring.grid import IMDB, SHAPES, grid
from benchmarks.providers import PROVIDERS
from benchmarks.publishing import blocks, report
from benchmarks.publishing import grid as tables
from benchmarks.results import Row, Run

CASE = Case(4, 3, 5, 6)
MACHINE = {
    "device": "cpu, 1 thread",
    "torch": "2+cpu",
    "commit": "abc",
    "date": "2026-11-25",
    "instruction_set": "avx2",
}
ON_TWO = {"device": "cpu, 2 threads", "threads": 2}


def row(provider, wall, cpu=None, mode="inference", case=CASE, **others):
    given = {"threads": 1} | MACHINE | others
    return Row(provider, mode, **case._asdict(), ms_p50=wall, ms_cpu_p50=cpu, **given)


def test_the_grid_holds_what_it_says():
    measured = grid()
    assert len(set(SHAPES)) == len(SHAPES) >= 20 and len(set(measured)) == len(measured)
    assert set(grid(short=True)) <= set(measured) and ("inference", IMDB) in grid(short=True)
    for mode in ("inference", "training"):
        cases = [case for each, case in measured if each == mode]
        assert set(SHAPES) <= set(cases)
        assert {case._replace(lengths="full") for case in cases if case.lengths == "uniform"} == {
            case for case in SHAPES if case.B > 1
        }
    steps = {(case.B, case.H) for mode, case in measured if mode == "step"}
    assert len(steps) == 20 and (32, 512) in steps


@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_has_the_time_of_the_cpu(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rows = list(compare.measure("step", Case(1, 2, 5, 6), ["torch", "grucore-auto"], 2, "cpu", 0.1))
    finally:
        torch.set_num_threads(before)
    for each in rows:
        assert each.threads == threads and each.device.endswith(f", {threads} thread{'s' * (threads > 1)}")
        assert 0 < each.ms_cpu_p20 <= each.ms_cpu_p50 <= each.ms_cpu_p80


def test_a_short_run_is_called_several_times_a_sample():
    calls = []
    samples = timing.sampled({"short": lambda: calls.append(1)}, 2)["short"]
    assert len(samples) == 2 and len(calls) > 100 and samples[0].ms < timing.BURST_MS / 10


def test_waiting_is_no_time_of_the_cpu():
    samples = timing.sampled({"wait": lambda: timing.time.sleep(0.02)}, 2)["wait"]
    assert all(sample.ms >= 20 and sample.ms_cpu < 10 for sample in samples)


@pytest.mark.parametrize("columns", [results.COLUMNS_BEFORE_CPU_TIME, results.COLUMNS_BEFORE_DATA])
def test_older_files_are_read(columns, tmp_path):
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerow({"provider": "torch", "mode": "step", "ms_p50": "2.5"} | dict.fromkeys(columns[2:11], ""))
    (found,) = results.read([tmp_path])
    assert found.ms_cpu_p50 is None and found.threads is None and found.instruction_set == ""


def ran(monkeypatch, tmp_path, *arguments, returncode=0):
    """The arguments and environment of each process that a run starts."""
    started = []

    def start(command, env):
        started.append((command[3:], env["OMP_NUM_THREADS"], env.get("GRUCORE_NATIVE_SET")))
        return subprocess.CompletedProcess(command, returncode)

    monkeypatch.setattr(run.subprocess, "run", start)
    monkeypatch.setattr(run.torch, "get_num_threads", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("GRUCORE_NATIVE_SET", raising=False)
    monkeypatch.setattr(sys, "argv", ["run", *arguments, "--out", str(tmp_path)])
    run.main()
    return started


def test_each_number_of_threads_has_a_process(monkeypatch, tmp_path):
    given = ["--suite", "grid", "--out", str(tmp_path)]
    found = ran(monkeypatch, tmp_path, "--suite", "grid")
    assert found == [([*given, "--threads", str(n)], str(n), None) for n in (1, 4)]
    found = ran(monkeypatch, tmp_path, "--threads", "3", "--instruction-set", "avx2")
    assert [each[1:] for each in found] == [("3", "avx2")]


def test_a_process_that_fails_ends_the_run(monkeypatch, tmp_path):
    with pytest.raises(SystemExit) as caught:
        ran(monkeypatch, tmp_path, "--suite", "grid", returncode=3)
    assert caught.value.code == 3


def test_nothing_is_measured_if_a_later_file_exists(monkeypatch, tmp_path):
    (tmp_path / "cpu-grid-4-threads.csv").write_text("mine")
    with pytest.raises(SystemExit, match=r"cpu-grid-4-threads\.csv exists"):
        ran(monkeypatch, tmp_path, "--suite", "grid")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--threads", "0"], "must be a whole number from 1, got '0'"),
        (["--suite", "grid", "--device", "cuda"], "the grid, --threads and --instruction-set are for --device cpu"),
        (["--instruction-set", "sse"], "invalid choice: 'sse'"),
    ],
    ids=str,
)
def test_refused(arguments, message, monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit):
        ran(monkeypatch, tmp_path, *arguments)
    assert message in capsys.readouterr().err


def test_an_instruction_set_that_was_not_taken_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "INSTRUCTION_SET", "avx512")
    monkeypatch.setattr(run, "may_run_here", lambda given, threads: True)
    with pytest.raises(SystemExit, match="--instruction-set avx2: the native kernels take avx512"):
        ran(monkeypatch, tmp_path, "--instruction-set", "avx2")


def test_a_file_says_its_set_and_threads():
    given = argparse.Namespace(device="cpu", suite="grid", dtype=None, part=(1, 1), instruction_set="avx2")
    assert run.file_name(given, 1, says_threads=True) == "cpu-grid-avx2-1-thread.csv"
    given.instruction_set = None
    assert run.file_name(given, 2, says_threads=False) == "cpu-grid.csv"


def test_a_peak_needs_a_compiler_or_says_that_it_is_none(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(peak, "_products", lambda: 0.05)
    assert dict(peak.peaks()) == {"one core products": 0.05}
    assert peak.peak_of({"one core products": 0.05}, "avx2") == ("one core products", 0.05)
    assert peak.peak_of({"one core fma avx2": 0.1, "copy": 9.0}, "avx2") == ("one core fma avx2", 0.1)
    assert peak.peak_of({"copy": 9.0}, "avx2") is None


def test_openvino_is_right_or_says_that_it_is_missing():
    for mode, case in [
        ("inference", CASE),
        ("inference", CASE._replace(lengths="uniform", layers=2, bidirectional=True)),
        ("step", CASE._replace(T=1, layers=2)),
    ]:
        (found,) = compare.measure(mode, case, ["openvino"], 1, "cpu", 0.1)
        assert found.note.startswith("import openvino: ") or (found.error_rms < 1e-6 and found.ms_p50 > 0)


def test_tables_compare_by_cpu_on_one_thread_and_by_wall_on_all():
    other = CASE._replace(T=8)
    rows = [row("grucore-auto", 9, 1.0), row("torch", 9, 2.0), row("products", 9, 0.5)]
    rows += [row("grucore-auto", 9, 1.0, case=other), row("torch", 9, 0.5, case=other)]
    rows += [row("grucore-auto", 4.0, 9, **ON_TWO), row("torch", 12.0, 9, **ON_TWO)]
    operations = ceilings.work(CASE, "inference")[0]
    limit = {"one core fma avx2": operations / 1e-3 / 1e12 * 2}  # so that a millisecond is half the peak
    limits = {Run("cpu, 2 threads", "2+cpu", "", "", "of another commit"): limit}
    page = report.report(rows, limits, [])
    assert "## cpu, native kernels with avx2, commit abc" in page and page.count("## cpu") == 1
    assert "*CPU* is CPU time with 1 thread. *wall* is wall time with 2" in page
    assert (
        "| T x B, I -> H | CPU: grucore ms | CPU: % of peak | CPU: nn.GRU / grucore | CPU: products only / grucore | "
        "wall: grucore ms | wall: nn.GRU / grucore |"
    ) in page
    assert "| 4 x 3, 5 -> 6 | 1 | 50 | 2 | 0.5 | 4 | 3 |" in page
    assert "| 8 x 3, 5 -> 6 | 1 | 100 | **0.5** | - | - | - |" in page
    assert "| geometric mean |  | 70.7 | 1 | 0.5 |  | 3 |" in page
    assert "| minimum |  | 50 | **0.5** | 0.5 |  | 3 |" in page
    readme = blocks.cpu_speed(rows)
    assert "| geometric mean (minimum) | shapes | CPU: nn.GRU | wall: nn.GRU |" in readme
    assert "| inference | 2 | 1 (**0.5**) | 3 (3) |" in readme
    assert "Where grucore loses most: inference, 8 x 3, 5 -> 6, compared with nn.GRU by CPU, 0.5." in readme


def test_lengths_are_compared_with_the_faster_nn_gru_of_each_clock():
    case = CASE._replace(lengths="imdb")
    rows = [row(p, wall, cpu, case=case) for p, wall, cpu in (("grucore-auto", 1.0, 1.0), ("torch", 2.0, 4.0))]
    rows.append(row("torch-padded", 3.0, 3.0, case=case))
    summary = "\n".join(tables.summary(rows))
    assert "| inference, rows of different lengths | 1 | 3 (3) | 2 (2) |" in summary
    assert "grucore loses nowhere; where it is closest: " in summary
    page = report.report(rows, {}, [])
    assert "| 4 x 3, 5 -> 6, IMDB's | 1 | 4 | 3 | 1 | 2 | 3 |" in page and "% of peak" not in page


@pytest.mark.parametrize(
    "rows",
    [
        [row("grucore-auto", 1.0, 1.0)],
        [row("torch", 1.0, 1.0)],
        [row("torch", None, None), row("grucore-auto", None, None)],
        [row("torch", 3.0, 1.0, **ON_TWO), row("grucore-auto", 1.0, 1.0, **ON_TWO)],
    ],
)
def test_a_run_with_only_some_is_published(rows):
    assert "## cpu, native kernels" in report.report(rows, {}, []) and blocks.cpu_speed(rows).startswith("cpu, ")


def test_what_a_process_of_its_own_shows_is_shown_on_all_threads():
    rows = [row("torch", 3.0, mode="first"), row("torch", 2.0, mode="first", **ON_TWO)]
    page = report.report(rows, {}, [])
    assert page.count("### Time to the first result") == 1 and "| nn.GRU | 2 |" in page
    assert "No case has both" not in page


def test_instruction_sets_stand_apart_and_older_rows_stay_as_they_were():
    rows = [row("torch", 3.0, 3.0), row("grucore-auto", 1.0, 1.0)]
    rows += [row("torch", 3.0, 3.0, instruction_set="avx512"), row("grucore-auto", 2.0, 2.0, instruction_set="avx512")]
    older = {"threads": None, "instruction_set": ""}
    page = report.report([*rows, row("torch", 5.0, **older), row("grucore-eager", 1.0, **older)], {}, [])
    for name in ("avx2", "avx512"):
        assert page.count(f"## cpu, native kernels with {name}, commit abc") == 1
    assert "| inference, all rows of one length | 5.00 | 5.00 | 5.00 | 1 |" in page


def test_the_readme_states_the_lower_figure_of_each_kind():
    kinds = [("inference", CASE), ("training", CASE), ("training", CASE._replace(lengths="imdb"))]
    rows = [row(p, peak_mib=mib, wall=1.0, mode="memory") for p, mib in (("grucore-auto", 2.0), ("torch", 8.0))]
    for commit, ratios in (("abc", (3.0, 2.0, 7.0)), ("def", (2.5, 4.0, 6.0))):
        for (mode, case), ratio in zip(kinds, ratios, strict=True):
            rows += [row("torch", 1.0, ratio, mode, case, commit=commit)]
            rows += [row("grucore-auto", 1.0, 1.0, mode, case, commit=commit)]
    reasons = blocks.reasons(rows, report.ROOT)
    assert "2.5 times as fast as `nn.GRU` in inference, 2.0 in training" in reasons
    assert "the lower of 2 processors" in reasons and "takes `nn.GRU` 6.0 times as long" in reasons


def test_an_epoch_is_of_what_the_example_runs():
    assert imdb_epoch.LAYERS["grucore"] == "grucore-auto" and set(imdb_epoch.LAYERS.values()) <= set(PROVIDERS)


def test_what_has_no_shapes_makes_no_empty_table():
    """An epoch, or the time to a first result, is published, but not in the README."""
    rows = [row("torch", 3.0, None, mode="first"), row("grucore-auto", 3.0, mode="epoch")]
    page = report.report(rows, {}, [])
    assert "## cpu, native kernels" in page and "An epoch" in page and "No case" not in page
    assert blocks.cpu_speed(rows) == ""
