"""The benchmarks: timed results are correct, failures have a reason, and the report shows the measured values."""

import ast
import csv
import subprocess
import sys

import pytest
import torch

from benchmarks import results
from benchmarks.measuring import ceilings, compare, problem, run
from benchmarks.measuring.cases import Case
from benchmarks.providers import PROVIDERS
from benchmarks.providers.base import Provider, Unavailable
from benchmarks.providers.pytorch import Torch
from benchmarks.publishing import report
from benchmarks.results import Row

pytestmark = pytest.mark.slow

CASE = Case(4, 3, 5, 6)
OTHERS = ["torch-padded", "torch-lstm", "products", "onnxruntime", "keras"]  # of those that tests have installed


class Wrong(Torch):
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
    rows = {row.provider: row for row in compare.measure("training", CASE, ["bad", "torch"], 1, "cpu")}
    assert rows["bad"].note == note and rows["bad"].ms_p50 is None
    assert rows["torch"].ms_p50 > 0 and rows["torch"].note == ""


@pytest.mark.parametrize("mode", ["inference", "training", "step"])
@pytest.mark.parametrize(
    "case",
    [CASE, CASE._replace(lengths="uniform"), CASE._replace(lengths="uniform", layers=2, bidirectional=True)],
    ids=str,
)
def test_every_provider_is_right_or_says_why_not(mode, case):
    if mode == "step":
        case = case._replace(T=1, lengths="full", layers=1, bidirectional=False)
    names = ["grucore-eager", "torch", *OTHERS]
    rows = {row.provider: row for row in compare.measure(mode, case, names, 1, "cpu")}
    allowed = {"rows of one length", "one layer in one direction", "inference only", "sequences only"}
    allowed.add("keras runs on torch, not on jax")  # where another test of this process imported it so
    assert list(rows) == names
    assert all(bool(row.ms_p50) != bool(row.note) for row in rows.values())
    assert {row.note for row in rows.values()} <= allowed | {""}
    assert rows["torch"].ms_p50 and rows["grucore-eager"].ms_p50
    assert rows["grucore-eager"].error_rms < 1e-6


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_nn_gru_on_a_padded_batch_is_nn_gru_on_a_packed_one(mode):
    made = problem.Problem(Case(9, 7, 5, 6, lengths="uniform"), mode, "cpu")
    assert made.lengths.min() < 9
    layer = made.layer.double()
    padded, packed = (made.results(PROVIDERS[name](layer), torch.float64, "cpu") for name in ("torch-padded", "torch"))
    assert len(padded) == len(packed) == {"inference": 2, "training": 7}[mode]
    for ours, theirs in zip(padded, packed, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_the_oracle_of_the_other_form_is_another():
    made = problem.Problem(CASE, "inference", "cpu")
    assert Torch(made.layer).reset_after
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
    with pytest.raises(SystemExit) as caught:
        run.main()
    assert message in str(caught.value) + capsys.readouterr().err
    assert (tmp_path / "cpu-quick.csv").read_text() == "mine"


def test_lengths_are_those_of_imdb():
    lengths = Case(2000, 20_000, 1, 1, lengths="imdb").row_lengths()
    assert lengths.float().mean() == pytest.approx(234, rel=0.05)  # counted in the training reviews
    assert lengths.float().median() == pytest.approx(174, rel=0.05)


def test_work():
    case = Case(10, 4, 8, 16, bidirectional=True)
    operations, size = ceilings.work(case, "inference")
    assert operations == 2 * 40 * 2 * 3 * 16 * (8 + 16)
    assert size == 4 * (40 * (8 + 32) + 2 * 3 * 16 * (8 + 16))
    assert ceilings.work(case, "training")[0] == 3 * operations


def test_rows_come_back_from_a_file(tmp_path):
    rows = [
        Row("torch", "training", **CASE._asdict(), ms_p50=1.5, error_rms=2e-7, device="cpu, 2 threads", commit="0012"),
        Row("haste", "epoch", bidirectional=True, data="IMDB", note="import haste"),
    ]
    with results.new_file(tmp_path / "a.csv") as write:
        write(rows[0])
        assert results.read([tmp_path]) == rows[:1]  # written at once
        write(rows[1])
    assert results.read([tmp_path]) == rows


def test_an_older_epoch_says_its_data_in_its_note(tmp_path):
    old = dict.fromkeys(results.COLUMNS_BEFORE_DATA, "") | {"provider": "torch", "mode": "epoch", "lengths": "imdb"}
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(old))
        writer.writeheader()
        writer.writerows([old | {"note": "book-masked, sample"}, old | {"note": "book, IMDB: KeyError: 'a, b'"}])
    found = [(row.note, row.data, row.lengths) for row in results.read([tmp_path])]
    assert found == [("book-masked", "sample", ""), ("book: KeyError: 'a, b'", "IMDB", "")]


def timed(provider, ms, case=CASE, **others):
    given = {"device": "cpu", "torch": "2+cpu", "commit": "abc", "date": "2026-11-25"} | others
    return Row(provider, "training", **case._asdict(), ms_p50=ms, **given)


def test_the_report_shows_losing_cells_and_who_was_tried():
    longer = CASE._replace(T=20)
    rows = [timed("torch", 3.0), timed("grucore-eager", 1.0)]
    rows += [timed("torch", 1.0, longer), timed("grucore-eager", 4.0, longer)]
    rows += [timed("xma", None, note="import xma: no such module")]
    page = report.report(rows, {}, [])
    assert "| training, all rows of one length | 0.87 | 0.25 | 3.00 | 2 |" in page
    assert "| 20 x 3, 5 -> 6 | float32 | 1 | 4 | 0.25 |" in page
    assert "xma" not in page and "no figure" not in page
    page = report.report([*rows, timed("haste", None, note="out of memory")], {}, [])
    assert "| haste | out of memory |" in page


def test_lengths_are_compared_with_the_faster_nn_gru():
    case = CASE._replace(lengths="uniform")
    rows = [timed("torch", 3.0, case), timed("grucore-eager", 1.0, case)]
    page = report.report(rows, {}, [])
    assert "| training, lengths from 1 to T (nn.GRU packed; padded not measured) | 3.00 |" in page
    assert "| 4 x 3, 5 -> 6 | float32 | 3 | not measured | 1 | 3 |" in page
    for padded, ratio in ((2.0, 2), (4.0, 3)):
        page = report.report([*rows, timed("torch-padded", padded, case)], {}, [])
        assert f"| training, lengths from 1 to T (the faster of nn.GRU packed and padded) | {ratio}.00 |" in page
        assert f"| 4 x 3, 5 -> 6 | float32 | 3 | {padded:.0f} | 1 | {ratio} |" in page


@pytest.mark.parametrize("other", [{"commit": "def"}, {"device": "another cpu"}], ids=str)
def test_a_table_has_rows_of_one_machine_and_one_commit(other):
    rows = [timed("torch", 3.0), timed("grucore-eager", 1.0)]
    rows += [timed("torch", 5.0, **other), timed("grucore-eager", 1.0, date="2026-11-26", **other)]
    page = report.report(rows, {}, [])
    for mean in ("3.00", "5.00"):
        assert f"| training, all rows of one length | {mean} | {mean} | {mean} | 1 |" in page
    assert "Commit abc, measured 2026-11-25." in page
    assert f"Commit {other.get('commit', 'abc')}, measured 2026-11-25, 2026-11-26." in page


def imports(path, names):
    """The modules among `names` that a file imports anywhere."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
            whole = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in names else node.module for name in whole if {name, node.module} & names)


def test_imports_of_benchmarks_have_no_cycle():
    folder = report.ROOT / "benchmarks"
    files = {
        ".".join(path.relative_to(report.ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in folder.rglob("*.py")
    }
    graph = {name: set(imports(path, files.keys())) for name, path in files.items()}
    assert "benchmarks.measuring.cases" in graph["benchmarks.results"] and len(graph) > 20
    while free := {name for name, needed in graph.items() if not needed & graph.keys()}:
        graph = {name: needed for name, needed in graph.items() if name not in free}
    assert not graph  # the remaining modules form an import cycle


def test_a_fresh_process_says_its_time_and_memory():
    case = [str(value) for value in Case(400, 32, 32, 64)]
    command = [sys.executable, "-m", "benchmarks.measuring.fresh"]
    figures = {
        mode: float(subprocess.run([*command, mode, "torch", "cpu", *case], capture_output=True, check=True).stdout)
        for mode in ("first", "memory")
    }
    assert figures["first"] > 0
    assert figures["memory"] > 400 * 32 * 64 * 4 / 2**20  # y only
