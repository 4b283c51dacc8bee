"""Formats tables as Markdown, and providers, shapes and numbers as text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from benchmarks.measuring.cases import Case
from benchmarks.results import Cell, Row

PACKED, PADDED = "torch", "torch-padded"
LENGTHS = {"full": "all rows of one length", "uniform": "lengths from 1 to T", "imdb": "IMDB's lengths"}
TIMED = ("training", "inference", "step")
NAMES = {PACKED: "nn.GRU", PADDED: "nn.GRU padded", "torch-lstm": "nn.LSTM", "torch-compile": "torch.compile"}
NAMES |= {"products": "products only", "openvino": "OpenVINO"}


def table(header: list[str], lines: Iterable[list[str]], rows: Iterable[Row] = ()) -> list[str]:
    """Makes a Markdown table, followed by the commit and the date of its rows."""
    made = [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *lines)]
    if rows := list(rows):
        commits, dates = (", ".join(sorted({getattr(row, name) for row in rows})) for name in ("commit", "date"))
        made += ["", f"Commit {commits}, measured {dates}."]
    return made


def name(provider: str) -> str:
    """Returns a provider's name on the page."""
    return "grucore" if provider.startswith("grucore") else NAMES.get(provider, provider)


def shape(case: Case) -> str:
    """Describes a case in a few words."""
    stack = f", {case.layers} layers" * (case.layers > 1) + ", both ways" * case.bidirectional
    return f"{case.T} x {case.B}, {case.I} -> {case.H}{stack}"


def figure(value: float | None) -> str:
    """Shortens a number; "-" for none."""
    return "-" if value is None else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def rows_of(group: Iterable[Cell]) -> list[Row]:
    """Lists all rows of some cells."""
    return [row for cell in group for row in cell.rows.values()]


def geometric_mean(values: list[float]) -> float:
    """Returns exp of the mean logarithm."""
    return math.exp(sum(map(math.log, values)) / len(values))


def reached(limits: Mapping[str, float]) -> list[str]:
    """Describes the rates that a machine reached in large products and a large copy."""
    most = [f"{k} {figure(v)} {'GB/s' if k == 'copy' else 'TFLOP/s'}" for k, v in limits.items() if "one core" not in k]
    return ["", f"Large matrix products and a large copy reached {', '.join(most)}."] if most else []
