"""Where oneDNN's product overtakes PyTorch's own on this CPU: what `kernels/gemm.py` chooses by.

    python -m benchmarks.gemm --out benchmarks/results/gemm

One row for each (rows, H): the hidden product of a step, (rows, H) times (H, 3H), in float32.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
import sys
from functools import partial
from pathlib import Path

import torch
from grucore.kernels.gemm import ONEDNN_MIN_WORK, Weight

from benchmarks.environment import environment
from benchmarks.timing import timed


def forced(w: torch.Tensor, rows: int, onednn: bool) -> Weight:
    """A weight on the path that is asked for, whatever its size."""
    weight = Weight(w, rows)
    weight.onednn = onednn
    if onednn:
        weight.w = torch.ops.mkldnn._reorder_linear_weight(w, rows)
    return weight


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder; cpu.csv is written there")
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    target = options.out / "cpu.csv"
    if target.exists():
        sys.exit(f"{target} exists: results are never overwritten; give another --out or move it away")
    rows = []
    for count, hidden_size in itertools.product((1, 4, 16, 32, 64, 128), (64, 128, 256, 512)):
        x, w, b = (
            torch.randn(count, hidden_size),
            torch.randn(3 * hidden_size, hidden_size),
            torch.randn(3 * hidden_size),
        )
        weights = {name: forced(w, count, name == "onednn") for name in ("default", "onednn")}
        with torch.inference_mode():
            runs = {name: partial(weight.apply, x, b) for name, weight in weights.items()}
            samples = {name: statistics.median(times) * 1e3 for name, times in timed(runs, options.rounds).items()}
        work = count * w.numel()
        row = {
            "rows": count,
            "H": hidden_size,
            "work": work,
            "chosen": "onednn" if work >= ONEDNN_MIN_WORK else "default",
        }
        row |= {f"{name}_us": f"{microseconds:.1f}" for name, microseconds in samples.items()}
        row |= {"ratio": f"{samples['default'] / samples['onednn']:.2f}"} | environment("cpu")
        rows.append(row)
        print(*(f"{key} {row[key]}" for key in ("rows", "H", "default_us", "onednn_us", "ratio", "chosen")), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    with target.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
