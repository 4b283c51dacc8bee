"""Writes `benchmarks/RESULTS.md` and the README's tables from committed raw results: no figure is typed by hand.

In the README, a table stands between `<!-- NAME -->` and `<!-- /NAME -->`.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
import sys
from pathlib import Path

from benchmarks.run import COLUMNS

ROOT = Path(__file__).resolve().parent.parent
KEYS = ("mode", "T", "B", "I", "H", "layers", "bidirectional", "lengths", "dtype", "precision")
OURS, BASELINE = "grucore-reference", "torch"
LENGTHS = {"full": "all rows of one length", "uniform": "lengths from 1 to T (nn.GRU on a PackedSequence)"}
PARTS = [(mode, lengths) for lengths in LENGTHS for mode in ("training", "inference")]


def read(folders: list[Path]) -> list[dict[str, str]]:
    """The rows of every CSV in the folders.

    Raises:
        ValueError: a folder without CSV files, or a file with other columns.
    """
    rows = []
    for folder in folders:
        files = sorted(folder.glob("*.csv"))
        if not files:
            raise ValueError(f"{folder} holds no .csv file: expected what `python -m benchmarks.run --out` writes")
        for file in files:
            with file.open(newline="") as stream:
                reader = csv.DictReader(stream)
                if reader.fieldnames != COLUMNS:
                    raise ValueError(f"{file} has columns {reader.fieldnames}, expected {COLUMNS}")
                rows += list(reader)
    return rows


def ratios(rows: list[dict[str, str]], mode: str, lengths: str) -> list[tuple[dict[str, str], float, float]]:
    """(row, our ms, the baseline's ms) for each cell of a mode and kind of lengths that both have."""
    cells: dict[tuple, dict[str, dict[str, str]]] = {}
    for row in rows:
        if row["mode"] == mode and row["lengths"] == lengths and row["ms_p50"]:
            cells.setdefault(tuple(row[key] for key in KEYS), {})[row["provider"]] = row
    pairs = [cell for cell in cells.values() if OURS in cell and BASELINE in cell]
    return [(cell[OURS], float(cell[OURS]["ms_p50"]), float(cell[BASELINE]["ms_p50"])) for cell in pairs]


def geometric_mean(values: list[float]) -> float:
    """exp of the mean logarithm."""
    return math.exp(sum(map(math.log, values)) / len(values))


def report(rows: list[dict[str, str]]) -> str:
    """The page as Markdown."""
    first = rows[0]
    lines = [
        "# Results",
        "",
        f"{first['device']}; torch {first['torch']}; commit {first['commit']}; {first['date']}. float32, one layer. "
        "Medians of alternating runs in one process; training is forward and backward. A ratio above 1 means that "
        "grucore is faster. Made by `python -m benchmarks.report` from the CSV files beside it.",
    ]
    for mode, lengths in PARTS:
        cells = ratios(rows, mode, lengths)
        speedups = [theirs / ours for _, ours, theirs in cells]
        lines += ["", f"## CPU, {mode}, {LENGTHS[lengths]}", ""]
        lines += ["| T | B | I | H | nn.GRU ms | grucore ms | ratio |", "|--|--|--|--|--|--|--|"]
        for (row, ours, theirs), speedup in zip(cells, speedups, strict=True):
            shape = " | ".join(row[key] for key in "TBIH")
            lines.append(f"| {shape} | {theirs:.1f} | {ours:.1f} | {speedup:.2f} |")
        lines += ["", f"Geometric mean {geometric_mean(speedups):.2f}, worst {min(speedups):.2f}."]
    return "\n".join(lines) + "\n"


def cpu_summary(rows: list[dict[str, str]]) -> str:
    """The README's sentence and table of CPU speed."""
    lines = [
        f"On {rows[0]['device']}, float32, torch {rows[0]['torch']}, nn.GRU's time divided by grucore's:",
        "",
        "| | geometric mean | worst | best | shapes |",
        "| --- | --- | --- | --- | --- |",
    ]
    for mode, kind in PARTS:
        speedups = [theirs / ours for _, ours, theirs in ratios(rows, mode, kind)]
        mean, worst, best = geometric_mean(speedups), min(speedups), max(speedups)
        lines.append(f"| {mode}, {LENGTHS[kind]} | {mean:.2f} | {worst:.2f} | {best:.2f} | {len(speedups)} |")
    return "\n".join(lines)


def imdb_summary(folder: Path) -> str:
    """The README's table of IMDB runs, from the example's results."""
    lines = ["| preset | layer | test accuracy | from epoch | on | file |", "| --- | --- | --- | --- | --- | --- |"]
    for file in sorted(folder.glob("*.json")):
        run = json.loads(file.read_text())
        config, summary = run["config"], run["summary"]
        layer = {"grucore": "grucore.GRU", "torch": "torch.nn.GRU"}[config["gru"]]
        cells = [config["preset"], layer, f"{summary['test_accuracy']:.4f}"]
        cells += [f"{summary['best_epoch']} of {summary['epochs']}", summary["device"]]
        lines.append(f"| {' | '.join(cells)} | [{file.name}](examples/imdb/results/{file.name}) |")
    return "\n".join(lines)


def with_block(page: str, name: str, block: str) -> str:
    """The page with the text between a name's two marks replaced.

    Raises:
        ValueError: the page has no such marks.
    """
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(page):
        raise ValueError(f"the page must hold <!-- {name} --> and <!-- /{name} -->")
    return pattern.sub(lambda marks: f"{marks[1]}{block}\n{marks[2]}", page)


def readme(page: str, rows: list[dict[str, str]]) -> str:
    """The README with its tables made anew."""
    page = with_block(page, "cpu-speed", cpu_summary(rows))
    return with_block(page, "imdb-results", imdb_summary(ROOT / "examples" / "imdb" / "results"))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, default=[ROOT / "benchmarks" / "results"])
    parser.add_argument("--output", type=Path, help="write this page alone, not RESULTS.md and the README")
    options = parser.parse_args()
    try:
        rows = read(options.folders)
    except ValueError as error:
        sys.exit(f"error: {error}")
    pages = {options.output: report(rows)}
    if options.output is None:
        page = ROOT / "README.md"
        pages = {ROOT / "benchmarks" / "RESULTS.md": report(rows), page: readme(page.read_text(), rows)}
    for path, text in pages.items():
        path.write_text(text)
        print(path)


if __name__ == "__main__":
    main()
