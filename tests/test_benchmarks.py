"""The benchmark suite: what is timed is right, what cannot be timed says why, and the report says what was measured."""

import csv
import subprocess
import sys

import pytest
import torch

from benchmarks import ceilings, problem, report, run
from benchmarks.cases import Case
from benchmarks.providers import PROVIDERS, Provider, Unavailable

CASE = Case(4, 3, 5, 6)
RIVALS = ["torch-lstm", "products", "onnxruntime", "keras"]  # of those that tests have installed


class Wrong(Provider):
    def forward(self, x, lengths):
        y, h_n = super().forward(x, lengths)
        return y * 1.01, h_n


class Failing(Provider):
    error: Exception

    def forward(self, x, lengths):
        raise self.error


def failing(error):
    return type("Failing", (Failing,), {"error": error})


@pytest.mark.parametrize(
    "made, note",
    [
        (Wrong, "error over 1e-04: not timed"),
        (failing(torch.OutOfMemoryError("4 GiB")), "out of memory"),
        (failing(Unavailable("not here")), "not here"),
        (failing(KeyError("a\nb")), r"KeyError: 'a\nb'"),
    ],
)
def test_what_cannot_be_timed_says_why(made, note, monkeypatch):
    monkeypatch.setitem(PROVIDERS, "bad", made)
    rows = {row["provider"]: row for row in run.measure("training", CASE, ["bad", "torch"], 1, "cpu")}
    assert rows["bad"]["note"] == note and rows["bad"]["ms_p50"] == ""
    assert float(rows["torch"]["ms_p50"]) > 0 and rows["torch"]["note"] == ""


@pytest.mark.parametrize("mode", ["inference", "training", "step"])
@pytest.mark.parametrize("case", [CASE, CASE._replace(lengths="uniform", layers=2, bidirectional=True)], ids=str)
def test_every_provider_is_right_or_says_why_not(mode, case):
    if mode == "step":
        case = case._replace(T=1, lengths="full", layers=1, bidirectional=False)
    names = ["grucore-reference", "torch", *RIVALS]
    rows = {row["provider"]: row for row in run.measure(mode, case, names, 1, "cpu")}
    allowed = {"rows of one length", "one layer in one direction", "inference alone", "sequences alone"}
    allowed.add("keras runs on torch, not on jax")  # where another test of this process imported it so
    assert all(bool(row["ms_p50"]) != bool(row["note"]) for row in rows.values())
    assert {row["note"] for row in rows.values()} <= allowed | {""}
    assert rows["torch"]["ms_p50"] and rows["grucore-reference"]["ms_p50"]
    assert float(rows["grucore-reference"]["error_rms"]) < 1e-6


def test_the_oracle_of_the_other_form_is_another():
    made = problem.Problem(CASE, "inference", "cpu")
    assert problem.Provider(made.layer).reset_after
    assert (made.right(True)[0] - made.right(False)[0]).abs().max() > 1e-3


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--providers", "cudnn"], "invalid choice: 'cudnn'"),
        (["--suite", "all"], "invalid choice: 'all'"),
        (["--part", "3/2"], "must be i/n with 1 <= i <= n, got '3/2'"),
        (["--device", "cuda"], "--device cuda: no GPU that PyTorch can use"),
        ([], "cpu-quick.csv exists: results are never overwritten"),
    ],
    ids=str,
)
def test_refused(arguments, message, monkeypatch, tmp_path, capsys):
    (tmp_path / "cpu-quick.csv").write_text("mine")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["run", *arguments, "--out", str(tmp_path)])
    with pytest.raises((SystemExit, run.Refused)) as caught:
        run.main()
    assert message in str(caught.value) + capsys.readouterr().err
    assert (tmp_path / "cpu-quick.csv").read_text() == "mine"


def test_lengths_are_those_of_imdb():
    lengths = Case(2000, 20_000, 1, 1, lengths="imdb").row_lengths()
    assert lengths.float().mean() == pytest.approx(234, rel=0.05)  # as counted in the training reviews
    assert lengths.float().median() == pytest.approx(174, rel=0.05)


def test_work_and_floor():
    case = Case(10, 4, 8, 16, bidirectional=True)
    operations, size = ceilings.work(case, "inference")
    assert operations == 2 * 40 * 2 * 3 * 16 * (8 + 16)
    assert size == 4 * (40 * (8 + 32) + 2 * 3 * 16 * (8 + 16))
    assert ceilings.work(case, "training")[0] == 3 * operations
    free = {"products float32": 1e9, "copy": 1e9, "step": 0.0}
    for name, value, floor in (
        ("products float32", 1e-6, operations / 1e3),
        ("copy", 1e-3, size / 1e3),
        ("step", 7.0, 0.07),
    ):
        assert ceilings.floor_ms(case, "inference", "ieee", free | {name: value}) == pytest.approx(floor)


def test_the_report_shows_losing_cells(tmp_path):
    rows = []
    for steps, provider, ms in ((10, "torch", 3.0), (10, "grucore-reference", 1.0), (20, "torch", 1.0)):
        rows.append(dict.fromkeys(run.COLUMNS, "") | CASE._replace(T=steps)._asdict())
        rows[-1] |= {"mode": "training", "provider": provider, "ms_p50": ms, "device": "cpu", "torch": "2+cpu"}
    rows.append(rows[-1] | {"provider": "grucore-reference", "ms_p50": 4.0})
    rows.append(rows[-1] | {"provider": "haste", "ms_p50": "", "note": "import haste"})
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, run.COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    page = report.report(report.read([tmp_path]), {}, [])
    assert "| training, all rows of one length | 0.87 | 0.25 | 3.00 | 2 |" in page
    assert "| 20 x 3, 5 -> 6 | float32 | 1 | 4 | 0.25 |" in page
    assert "| haste | import haste |" in page


def test_a_fresh_process_says_its_time_and_memory():
    case = [str(value) for value in Case(400, 32, 32, 64)]
    command = [sys.executable, "-m", "benchmarks.fresh"]
    figures = {
        mode: float(subprocess.run([*command, mode, "torch", "cpu", *case], capture_output=True, check=True).stdout)
        for mode in ("first", "memory")
    }
    assert figures["first"] > 0
    assert figures["memory"] > 400 * 32 * 64 * 4 / 2**20  # y alone
