"""Times every provider on the same weights and inputs, side by side in one process, and writes one CSV.

Each provider's result is checked against float64 first; one that is wrong gets no speed. Runs of the providers
alternate, so that what else the machine does falls on all of them alike.
"""

from __future__ import annotations

import argparse
import copy
import csv
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from benchmarks.environment import environment
from benchmarks.providers import DEFAULTS, PROVIDERS, error_rms, outputs

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
SUITES["smoke"] = [(5, 2, 8, 16, "full"), (5, 3, 8, 16, "uniform")]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# A provider above it computes something else. float32 on a GPU: TF32 keeps ten bits.
MAX_ERROR = {"float32": 1e-4, "tf32": 4e-3, "float16": 4e-3, "bfloat16": 3e-2}


def timed(runs: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, list[float]]:
    """Milliseconds of each run in each round, after two rounds of warming up."""
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + 2):
        for name, run in runs.items():
            elapsed = (_milliseconds_on_gpu if device == "cuda" else _milliseconds)(run)
            if i >= 2:
                samples[name].append(elapsed)
    return samples


def _milliseconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return (time.perf_counter() - begin) * 1e3


def _milliseconds_on_gpu(run: Callable[[], object]) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def measure(
    shape: tuple[int, int, int, int, str], mode: str, providers: list[str], rounds: int, device: str, dtype: str
) -> list[dict]:
    """A row for each provider on one shape."""
    steps, batch, input_size, hidden_size, kind = shape
    torch.manual_seed(0)
    kwargs = {"device": device, "dtype": DTYPES[dtype]}
    oracle = nn.GRU(input_size, hidden_size, **kwargs)
    x = torch.randn(steps, batch, input_size, **kwargs, requires_grad=mode == "training")
    dy = torch.randn(steps, batch, hidden_size, **kwargs)
    lengths = torch.randint(1, steps + 1, (batch,)) if kind == "uniform" else None
    precision = "ieee"
    if device == "cuda" and dtype == "float32" and torch.backends.cudnn.allow_tf32:
        precision = "tf32"
    limit = MAX_ERROR["tf32" if precision == "tf32" else dtype]
    layers = {name: PROVIDERS[name](copy.deepcopy(oracle)) for name in providers}
    oracle = oracle.double()
    errors = {name: error_rms(layer, oracle, x, lengths, mode == "training") for name, layer in layers.items()}

    def run(layer: nn.Module) -> None:
        if mode == "inference":
            with torch.inference_mode():
                outputs(layer, x, lengths)
        else:
            torch.autograd.grad(outputs(layer, x, lengths)[0], [x, *layer.parameters()], dy)

    right = {name: lambda layer=layer: run(layer) for name, layer in layers.items() if errors[name] <= limit}
    samples = timed(right, rounds, device)
    rows = []
    for name in providers:
        row = dict.fromkeys(COLUMNS, "") | environment(device)
        row |= {"provider": name, "mode": mode, "T": steps, "B": batch, "I": input_size, "H": hidden_size}
        row |= {"layers": 1, "bidirectional": False, "lengths": kind, "dtype": dtype, "precision": precision}
        row["error_rms"] = f"{errors[name]:.2e}"
        if name in samples:
            p20, p50, p80 = (statistics.quantiles(samples[name], n=10, method="inclusive")[i] for i in (1, 4, 7))
            row |= {"ms_p20": f"{p20:.4g}", "ms_p50": f"{p50:.4g}", "ms_p80": f"{p80:.4g}"}
            row["us_per_step"] = f"{p50 * 1e3 / steps:.4g}"
        else:
            row["note"] = f"error over {limit:.0e}: not timed"
        rows.append(row)
    return rows


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    parser.add_argument("--suite", choices=list(SUITES), default="quick")
    parser.add_argument("--providers", nargs="+", choices=list(PROVIDERS))
    parser.add_argument("--rounds", type=int, default=15, help="timed runs of each provider and shape")
    parser.add_argument("--out", type=Path, required=True, help="a folder; RUN.csv is written there")
    options = parser.parse_args()

    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: no GPU that PyTorch can use")
    suffix = "" if options.dtype == "float32" else f"-{options.dtype}"
    target = options.out / f"{options.device}-{options.suite}{suffix}.csv"
    if target.exists():
        sys.exit(f"{target} exists: results are never overwritten; give another --out or move it away")
    options.out.mkdir(parents=True, exist_ok=True)
    providers = options.providers or DEFAULTS[options.device]
    rows = []
    for mode in ("inference", "training"):
        for shape in SUITES[options.suite]:
            new = measure(shape, mode, providers, options.rounds, options.device, options.dtype)
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
