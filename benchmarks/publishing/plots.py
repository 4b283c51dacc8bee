"""Draws the pictures of RESULTS.md, each from the cells of one run; skips those without data."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.measuring import ceilings
from benchmarks.results import Cell, Run

matplotlib.use("Agg")
from matplotlib import pyplot as plt

STYLE = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "svg.hashsalt": "grucore"}
OURS, THEIRS = "#0072b2", "#888888"
COLORS = {"nn.GRU": THEIRS, "nn.LSTM": "#c9a227", "torch.compile": "#8a5a9e", "grucore": OURS}
PROVIDERS = {"nn.LSTM": "torch-lstm", "torch.compile": "torch-compile"}
SPEED_UP = "grucore: times as fast as nn.GRU"


def ratios(cells: list[Cell], axes: Any) -> bool:
    """Draws our speed-up over nn.GRU, one bar per cell."""
    cells = [cell for cell in cells if cell.ratio(cell.baseline)]
    labels = [f"{c.mode}  {c.case.T} x {c.case.B}, {c.case.I} -> {c.case.H}, {c.case.lengths}" for c in cells]
    values = [cell.ratio(cell.baseline) for cell in cells]
    axes.barh(range(len(cells)), values, color=[OURS if (v or 0) >= 1 else "#d55e00" for v in values])
    axes.set_yticks(range(len(cells)), labels, fontsize=7)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel(SPEED_UP)
    axes.figure.set_size_inches(7, 1 + 0.18 * len(cells))
    return bool(cells)


def heat(cells: list[Cell], axes: Any) -> bool:
    """Draws our speed-up over nn.GRU against B and H, in training on one length: the mean over T and dtypes."""
    found: dict[tuple[int, int], list[float]] = {}
    for cell in cells:
        ratio = cell.ratio(cell.baseline)
        if ratio and cell.mode == "training" and cell.case.lengths == "full" and cell.case.I == cell.case.H:
            found.setdefault((cell.case.B, cell.case.H), []).append(ratio)
    batches, hidden = (sorted({key[i] for key in found}) for i in (0, 1))
    if min(len(batches), len(hidden)) < 2 or len(found) < 0.7 * len(batches) * len(hidden):
        return False  # too few cells to show a surface
    means = [[sum(v) / len(v) if (v := found.get((b, h))) else float("nan") for h in hidden] for b in batches]
    axes.imshow(means, cmap="viridis", aspect="auto")
    for i, row in enumerate(means):
        for j, value in enumerate(row):
            axes.text(j, i, f"{value:.1f}" if value == value else "-", ha="center", va="center", color="white")
    axes.set_xticks(range(len(hidden)), hidden)
    axes.set_yticks(range(len(batches)), batches)
    axes.set_xlabel("H")
    axes.set_ylabel("B")
    axes.set_title(f"{SPEED_UP}, training")
    return True


def steps(cells: list[Cell], axes: Any) -> bool:
    """Draws microseconds per step against H, in training on one length."""
    cells = [c for c in cells if c.mode == "training" and c.case.lengths == "full" and not c.case.bidirectional]
    axes.set_xlabel("H")
    axes.set_ylabel("us per step, training")
    axes.set_xscale("log", base=2)
    return _scatter(axes, {name: [(c.case.H, _value(c, name, "us_per_step")) for c in cells] for name in COLORS})


def memory(cells: list[Cell], axes: Any) -> bool:
    """Draws peak memory of a training step against the size of y."""
    cells = [c for c in cells if c.mode == "training" and c.case.lengths == "full"]
    axes.set_xlabel("T x B x H")
    axes.set_ylabel("MiB at most, training")
    axes.set_xscale("log")
    points = {
        name: [(c.case.T * c.case.B * c.case.H, _value(c, name, "peak_mib")) for c in cells]
        for name in ("nn.GRU", "grucore")
    }
    return _scatter(axes, points)


def _value(cell: Cell, name: str, column: str) -> float | None:
    provider = {"nn.GRU": cell.baseline, "grucore": cell.ours}.get(name) or PROVIDERS[name]
    return cell.value(provider, column)


def _scatter(axes: Any, points: Mapping[str, list[tuple[float, float | None]]]) -> bool:
    """Draws the points of each name that have a value; returns whether there are any."""
    axes.set_yscale("log")
    for name, pairs in points.items():
        drawn = [pair for pair in pairs if pair[1]]
        if drawn:
            axes.scatter(*zip(*drawn, strict=True), s=22, color=COLORS[name], alpha=0.8, label=name)
    if axes.collections:
        axes.legend()
    return bool(axes.collections)


def roofline(cells: list[Cell], axes: Any, limits: Mapping[str, float]) -> bool:
    """Draws operations per second against operations per byte, below the limits of large products and a large copy."""
    rate, copy = max(v for k, v in limits.items() if k.startswith("products")), limits["copy"] / 1e3
    points: dict[str, list[tuple[float, float | None]]] = {"nn.GRU": [], "grucore": []}
    for c in cells:
        if c.mode in ("training", "inference"):
            operations, size = ceilings.work(c.case, c.mode)
            for name, pairs in points.items():
                ms = _value(c, name, "ms_p50")
                pairs.append((operations / size, operations / ms / 1e9 if ms else None))
    if not _scatter(axes, points):
        return False
    widest = 2 * max(x for pairs in points.values() for x, _ in pairs)
    axes.plot([rate / copy / 64, rate / copy, max(widest, rate / copy)], [rate / 64, rate, rate], color="black")
    axes.set_xscale("log")
    axes.set_xlabel("operations per byte")
    axes.set_ylabel("10^12 operations/s")
    return True


def save(cells: list[Cell], limits: Mapping[Run, Mapping[str, float]], folder: Path) -> list[Path]:
    """Writes a PNG per kind of picture and run into the folder, and returns their paths."""
    made = []
    for run in dict.fromkeys(cell.run for cell in cells):
        of_run = [cell for cell in cells if cell.run == run]
        kinds: dict[str, Callable[..., bool]] = {"speed-up": ratios, "speed-up-over-B-and-H": heat}
        kinds |= {"us-per-step": steps, "memory": memory}
        measured = run._replace(instruction_set="")  # a file of limits names no set
        if measured in limits:
            kinds["roofline"] = lambda c, axes, limits=limits[measured]: roofline(c, axes, limits)
        for title, draw in kinds.items():
            with plt.rc_context(STYLE):
                picture, axes = plt.subplots(figsize=(6, 4), layout="constrained")
                if draw(of_run, axes):
                    kernels = f", native {run.instruction_set}" * bool(run.instruction_set)
                    where = f"{run.device}{kernels}, commit {run.commit}"
                    picture.suptitle(where, fontsize=9)
                    folder.mkdir(parents=True, exist_ok=True)
                    path = folder / f"{'-'.join(re.findall(r'[A-Za-z0-9]+', where)).lower()}-{title}.png"
                    picture.savefig(path, dpi=120, metadata={"Software": None})
                    made.append(path)
                plt.close(picture)
    return made
