"""Times every provider on the same weights and inputs, side by side in one process, and writes one CSV.

Each provider's result is checked against float64 first; one that is wrong gets no speed. Runs of the providers
alternate, so that what else the machine does falls on all of them alike.
"""

from __future__ import annotations

import argparse
import copy
import csv
import datetime
import importlib.metadata
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from benchmarks.providers import PROVIDERS, error_rms, outputs

COLUMNS = [
    # what was measured
    "provider",
    "mode",
    "T",
    "B",
    "I",
    "H",
    "layers",
    "bidirectional",
    "lengths",
    "dtype",
    "precision",
    # what came out
    "ms_p50",
    "ms_p20",
    "ms_p80",
    "us_per_step",
    "peak_mib",
    "error_rms",
    # under what
    "device",
    "torch",
    "triton",
    "cudnn",
    "commit",
    "date",
    "note",
]

# (T, B, I, H, lengths): every row T long, or lengths drawn evenly from 1 to T
SUITES = {
    "quick": [
        (250, 64, 128, 256, "full"),
        (100, 1, 128, 256, "full"),
        (250, 16, 64, 128, "full"),
        (100, 32, 512, 512, "full"),
        (500, 128, 128, 128, "full"),
        (1000, 1, 16, 16, "full"),
        (50, 256, 64, 64, "full"),
        (250, 64, 128, 256, "uniform"),
        (250, 16, 64, 128, "uniform"),
    ],
}
MAX_ERROR = 1e-4  # float32; a provider above it computes something else


def timed(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each run in each round, after two rounds of warming up."""
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + 2):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            if i >= 2:
                samples[name].append((time.perf_counter() - begin) * 1e3)
    return samples


def measure(shape: tuple[int, int, int, int, str], mode: str, providers: list[str], rounds: int) -> list[dict]:
    """A row for each provider on one shape."""
    steps, batch, input_size, hidden_size, kind = shape
    torch.manual_seed(0)
    oracle = nn.GRU(input_size, hidden_size)
    x = torch.randn(steps, batch, input_size, requires_grad=mode == "training")
    dy = torch.randn(steps, batch, hidden_size)
    lengths = torch.randint(1, steps + 1, (batch,)) if kind == "uniform" else None
    layers = {name: PROVIDERS[name](copy.deepcopy(oracle)) for name in providers}
    oracle = oracle.double()
    errors = {name: error_rms(layer, oracle, x, lengths, mode == "training") for name, layer in layers.items()}

    def run(layer: nn.Module) -> None:
        if mode == "inference":
            with torch.inference_mode():
                outputs(layer, x, lengths)
        else:
            torch.autograd.grad(outputs(layer, x, lengths)[0], [x, *layer.parameters()], dy)

    right = {name: lambda layer=layer: run(layer) for name, layer in layers.items() if errors[name] <= MAX_ERROR}
    samples = timed(right, rounds)
    rows = []
    for name in providers:
        row = dict.fromkeys(COLUMNS, "") | environment()
        row |= {"provider": name, "mode": mode, "T": steps, "B": batch, "I": input_size, "H": hidden_size}
        row |= {"layers": 1, "bidirectional": False, "lengths": kind, "dtype": "float32", "precision": "ieee"}
        row["error_rms"] = f"{errors[name]:.2e}"
        if name in samples:
            p20, p50, p80 = (statistics.quantiles(samples[name], n=10, method="inclusive")[i] for i in (1, 4, 7))
            row |= {"ms_p20": f"{p20:.4g}", "ms_p50": f"{p50:.4g}", "ms_p80": f"{p80:.4g}"}
            row["us_per_step"] = f"{p50 * 1e3 / steps:.4g}"
        else:
            row["note"] = f"error over {MAX_ERROR:.0e}: not timed"
        rows.append(row)
    return rows


def environment() -> dict[str, str]:
    """What the figures depend on."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = ""
    return {
        "device": f"{cpu_name()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "triton": triton,
        "commit": commit,
        "date": datetime.date.today().isoformat(),
    }


def cpu_name() -> str:
    """The processor's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu"], default="cpu")
    parser.add_argument("--suite", choices=list(SUITES), default="quick")
    parser.add_argument("--providers", nargs="+", choices=list(PROVIDERS), default=list(PROVIDERS))
    parser.add_argument("--rounds", type=int, default=15, help="timed runs of each provider and shape")
    parser.add_argument("--out", type=Path, required=True, help="a folder; RUN.csv is written there")
    options = parser.parse_args()

    target = options.out / f"{options.device}-{options.suite}.csv"
    if target.exists():
        sys.exit(f"{target} exists: results are never overwritten; give another --out or move it away")
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for mode in ("inference", "training"):
        for shape in SUITES[options.suite]:
            new = measure(shape, mode, options.providers, options.rounds)
            rows += new
            print(mode, shape, *(f"{row['provider']} {row['ms_p50'] or row['note']} ms" for row in new), flush=True)
    partial = target.with_suffix(".csv.partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(target)
    print(target)


if __name__ == "__main__":
    main()
