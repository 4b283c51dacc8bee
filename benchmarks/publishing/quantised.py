"""The section of quantised layers, from what `benchmarks.measuring.quantised` and `.quantised_imdb` wrote."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace as Row  # a line of the file, its columns as text
from typing import Any

from benchmarks.publishing.tables import figure, table

NAMES = {
    "grucore": "grucore float32",
    "grucore-packed": "the same, *packed*",
    "torch": "nn.GRU",
    "torch-int8": "torch.ao int8",
    "onnxruntime": "onnxruntime float32",
    "onnxruntime-int8": "onnxruntime int8",
    "onnxruntime-of-int8": "onnxruntime, our int8 file",
}
ERRORS = {"grucore-int8": "int8", "grucore-bf16": "bf16", "torch-int8": "torch.ao int8"}
TITLE = "## Quantised inference"


def read(folder: Path) -> tuple[list[Row], list[dict[str, Any]]]:
    """Reads the rows of every CSV of a folder, and its JSON files."""
    texts = [file.read_text().splitlines() for file in sorted(folder.glob("*.csv"))]
    rows = [Row(**row) for text in texts for row in csv.DictReader(text)]
    return rows, [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]


def section(rows: Sequence[Row], reviews: Sequence[dict[str, Any]]) -> list[str]:
    """Makes the section; nothing without rows."""
    if not rows:
        return []
    timed = {(row.provider, shape(row)): float(row.ms_cpu_p50) for row in rows if row.ms_cpu_p50}
    shapes = list(dict.fromkeys(shape(row) for row in rows))
    others = [name for name in NAMES if any((name, each) in timed for each in shapes)]
    header = ["T x B, I -> H", "int8 ms", *(f"{NAMES[name]} / int8" for name in others), "grucore float32 / bf16"]
    lines = []
    for each in shapes:
        ours, float32, bf16 = (timed.get((f"grucore{form}", each)) for form in ("-int8", "", "-bf16"))
        ratios = [_ratio(timed.get((name, each)), ours) for name in others]
        lines.append([each, figure(ours), *map(_marked, [*ratios, _ratio(float32, bf16)])])
    made = [
        "",
        TITLE,
        "",
        "How many times as long as `quantize('int8')` others take, by CPU time, medians of alternating runs: below 1, "
        "in bold, int8 is slower. *Packed* is inside `packed_weights()`. "
        f"{rows[0].device}, torch {rows[0].torch}. Made from `results/quantised`.",
        "",
        *table(header, lines, rows),
    ]
    if notes := dict.fromkeys(f"{NAMES.get(row.provider, row.provider)}: {row.note}." for row in rows if row.note):
        made += ["", "Without a figure: " + " ".join(notes)]
    made += ["", *_errors(rows)]
    for each in reviews:
        made += ["", *_reviews(each)]
    return made


def shape(row: Row) -> str:
    """Says a shape."""
    return f"{row.T} x {row.B}, {row.I} -> {row.H}"


def _errors(rows: Sequence[Row]) -> list[str]:
    """RMS errors, and in brackets those relative to the RMS of the outputs: the largest of all shapes."""
    lines = []
    for weights in dict.fromkeys(row.weights for row in rows):
        line = [weights]
        for provider in ERRORS:
            found = [row for row in rows if (row.provider, row.weights) == (provider, weights) and row.rms_error]
            pairs = [(float(row.rms_error), float(row.relative_error)) for row in found]
            line.append("{:.1e} ({:.2%})".format(*max(pairs)) if pairs else "-")
        lines.append(line)
    explained = (
        "RMS error of the outputs, which are from -1 to 1, against float64 of the layer before, and in brackets as a "
        "part of the outputs' own RMS; the largest of these shapes. Weights are those that a layer begins with, and "
        "two and four times those."
    )
    return [explained, "", *table(["weights", *ERRORS.values()], lines)]


def _reviews(each: dict[str, Any]) -> list[str]:
    """The accuracy of the shipped IMDB model."""
    lines = []
    for weights in ("float32", "int8", "bf16"):
        found = each[weights]
        numbers = f"{found['accuracy']:.4f}", str(found["labels_changed"])
        lines.append([weights, *numbers, f"{found['largest_change_of_probability']:.1e}"])
    header = ["weights of the GRU", "accuracy", "labels changed", "largest change of a probability"]
    explained = f"The shipped IMDB model (`examples/imdb/model`) on {each['reviews']:,} real test reviews:"
    return [explained, "", *table(header, lines, [Row(**each)])]


def _ratio(theirs: float | None, ours: float | None) -> float | None:
    return theirs / ours if theirs and ours else None


def _marked(ratio: float | None) -> str:
    return f"**{figure(ratio)}**" if ratio is not None and ratio < 1 else figure(ratio)
