"""The tables of accuracy, from files of `benchmarks.measuring.accuracy`."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace as Row  # a line of the file, its columns as text

from benchmarks.publishing.tables import table

NAMES = {"torch": "nn.GRU", "reference": "reference", "eager": "eager", "native": "native"}
GRADIENTS = ("dx", "dh0", "dw_ih", "dw_hh")
CASES = {
    "open": "update gates nearly open, 1 - z = 3e-7",
    "shut": "update gates nearly shut, z = 3e-7",
    "large": "inputs of 1e4: every gate saturated",
    "denormal": "inputs of 1e-40 (1e-7 in float16), no biases",
    "steep": "a loss 1e20 times as steep (1e3 in float16)",
    "flat": "a loss 1e20 times as flat (1e3 in float16)",
}


def read(folder: Path) -> list[Row]:
    """Reads the rows of every file of a folder."""
    files = sorted(folder.glob("*.csv"))
    return [Row(**row) for file in files for row in csv.DictReader(file.read_text().splitlines())]


def summary(rows: Sequence[Row]) -> str:
    """Makes the README's table: the error of y and the worst of the gradients, as T grows, of ours and of nn.GRU."""
    lengths = sorted({int(row.T) for row in rows if row.case == "plain"})
    ours = "native" if any(row.provider == "native" for row in rows) else "eager"
    lines = []
    for dtype in dict.fromkeys(row.dtype for row in rows):
        for words, quantities in (("y", ("y",)), ("gradients", GRADIENTS)):
            cells = [f"{_pair(rows, ours, 'plain', dtype, T, quantities)}" for T in lengths]
            lines.append([dtype, words, *cells])
    return "\n".join(table(["dtype", "error of", *(f"T = {T:,}" for T in lengths)], lines, rows))


def section(rows: Sequence[Row]) -> list[str]:
    """Makes the page's section: every implementation, as T grows and in each of the other cases."""
    if not rows:
        return []
    explained = (
        "RMS(got - want) / RMS(want), where want is computed in float64 from the same rounded inputs. Gradients: the "
        f"worst of {', '.join(GRADIENTS)}. {rows[0].device}, torch {rows[0].torch}. Made from `results/accuracy`."
    )
    lines = ["", "## Accuracy", "", explained]
    providers = list(dict.fromkeys(row.provider for row in rows))
    header = ["dtype", "error of", *(NAMES[p] for p in providers)]
    plain = [("plain", T, f"T = {T:,}") for T in sorted({int(row.T) for row in rows if row.case == "plain"})]
    others = [(case, 100, words) for case, words in CASES.items()]
    for case, T, title in [*plain, *others]:
        of_case = []
        for dtype in dict.fromkeys(row.dtype for row in rows):
            for words, quantities in (("y", ("y",)), ("gradients", GRADIENTS)):
                cells = [_figure(_worst(rows, p, case, dtype, T, quantities)) for p in providers]
                of_case.append([dtype, words, *cells])
        lines += ["", f"### {title}", "", *table(header, of_case)]
    lines += ["", "### Numbers in other rows that are changed by a NaN or an infinity in one row", ""]
    counts = []
    for value in ("nan", "inf"):
        worst = [max(float(r.error) for r in rows if (r.case, r.provider) == (value, p)) for p in providers]
        counts.append([value, *(f"{count:.0f}" for count in worst)])
    return lines + table(["", *(NAMES[p] for p in providers)], counts, rows)


def _worst(rows: Sequence[Row], provider: str, case: str, dtype: str, T: int, quantities: Iterable[str]) -> float:
    wanted = (provider, case, dtype, str(T))
    of_case = (r for r in rows if (r.provider, r.case, r.dtype, r.T) == wanted)
    return max(float(r.error) for r in of_case if r.quantity in quantities)


def _pair(rows: Sequence[Row], ours: str, case: str, dtype: str, T: int, quantities: tuple[str, ...]) -> str:
    """Ours, and nn.GRU's in brackets."""
    mine, theirs = (_worst(rows, p, case, dtype, T, quantities) for p in (ours, "torch"))
    return f"{_figure(mine)} ({_figure(theirs)})"


def _figure(error: float) -> str:
    return "not finite" if error == float("inf") else f"{error:.1e}"
