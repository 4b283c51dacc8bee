"""Where oneDNN's product overtakes PyTorch's own on this CPU: what `kernels/eager/gemm.py` chooses by.

    python -m benchmarks.tuning.gemm --out benchmarks/results/gemm

One row for each (rows, H): the hidden product of a step, (rows, H) times (H, 3H), in float32.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from functools import partial
from pathlib import Path

import torch

from benchmarks.measuring.ceilings import by_onednn
from benchmarks.measuring.environment import environment
from benchmarks.measuring.timing import timed
from benchmarks.results import new_file
from grucore.kernels.eager.gemm import ONEDNN_MIN_WORK

COLUMNS = ["rows", "H", "work", "chosen", "default_us", "onednn_us", "ratio"]
COLUMNS += ["device", "torch", "triton", "cudnn", "commit", "date"]


def main() -> None:
    """Measures both products over a grid of sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder; cpu.csv is written there")
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    with new_file(options.out / "cpu.csv", COLUMNS) as write:
        for count, size in itertools.product((1, 4, 16, 32, 64, 128), (64, 128, 256, 512)):
            x, w, b = torch.randn(count, size), torch.randn(3 * size, size), torch.randn(3 * size)
            runs = {"default": partial(torch.addmm, b, x, w.t()), "onednn": by_onednn(x, w, b)}
            with torch.inference_mode():
                samples = timed(runs, options.rounds)
            default, onednn = (statistics.median(samples[name]) * 1e3 for name in runs)
            work = count * w.numel()
            row = {"rows": count, "H": size, "work": work, "default_us": f"{default:.1f}", "onednn_us": f"{onednn:.1f}"}
            row |= {"chosen": "onednn" if work >= ONEDNN_MIN_WORK else "default", "ratio": f"{default / onednn:.2f}"}
            write(row | environment("cpu"))
            print(*(f"{key} {value}" for key, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
