"""Writes `benchmarks/RESULTS.md` from committed CSV files: every figure in it, and in the README, is one of theirs."""

from __future__ import annotations

import argparse
import csv
import math
import sys
from pathlib import Path

from benchmarks.run import COLUMNS

KEYS = ("mode", "T", "B", "I", "H", "layers", "bidirectional", "lengths", "dtype", "precision")
OURS, BASELINE = "grucore-reference", "torch"


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


def ratios(rows: list[dict[str, str]], mode: str) -> list[tuple[dict[str, str], float, float]]:
    """(row, our ms, the baseline's ms) for each cell of a mode that both have."""
    cells: dict[tuple, dict[str, dict[str, str]]] = {}
    for row in rows:
        if row["mode"] == mode and row["ms_p50"]:
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
    for mode in ("training", "inference"):
        cells = ratios(rows, mode)
        speedups = [theirs / ours for _, ours, theirs in cells]
        lines += [
            "",
            f"## CPU, {mode}",
            "",
            "| T | B | I | H | nn.GRU ms | grucore ms | ratio |",
            "|--|--|--|--|--|--|--|",
        ]
        for (row, ours, theirs), speedup in zip(cells, speedups, strict=True):
            shape = " | ".join(row[key] for key in "TBIH")
            lines.append(f"| {shape} | {theirs:.1f} | {ours:.1f} | {speedup:.2f} |")
        lines += ["", f"Geometric mean {geometric_mean(speedups):.2f}, worst {min(speedups):.2f}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "RESULTS.md")
    options = parser.parse_args()
    try:
        options.output.write_text(report(read(options.folders)))
    except ValueError as error:
        sys.exit(str(error))
    print(options.output)


if __name__ == "__main__":
    main()
