"""Measures the limits of a machine: large matrix products and a large copy by PyTorch, and the peak of one core.

    python -m benchmarks.measuring.ceilings --device cpu --out FOLDER

writes FOLDER/ceilings/DEVICE.csv. `work` computes how many operations and bytes a case needs.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measuring import peak
from benchmarks.measuring.cases import DTYPES, Case
from benchmarks.measuring.environment import environment
from benchmarks.measuring.timing import timed
from benchmarks.results import Run, new_file

COLUMNS = ["what", "value", "unit", "device", "torch", "triton", "cudnn", "commit", "date"]


def best_ms(run: Callable[[], object], device: str) -> float:
    """Returns the best of fifteen runs, since a limit is what can be reached."""
    return min(timed({0: run}, 15, device)[0])


def by_onednn(x: Tensor, w: Tensor, b: Tensor | None = None) -> Callable[[], Tensor]:
    """Makes the call of oneDNN for x @ w.T + b in float32 on a CPU, with w packed in advance."""
    laid_out = torch.ops.mkldnn._reorder_linear_weight(w, len(x))
    return lambda: torch.ops.mkldnn._linear_pointwise(x, laid_out, b, "none", [], "")


def matrix_rate(device: str, dtype: torch.dtype, precision: str) -> float:
    """Returns the floating-point operations per second of a large product, in units of 10^12."""
    n = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        products: list[Callable[[], object]] = [lambda: torch.mm(a, b)]
        if device == "cpu" and torch.backends.mkldnn.is_available():
            products.append(by_onednn(a, b))
        return 2 * n**3 / min(best_ms(product, device) for product in products) / 1e9
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


def bandwidth(device: str) -> float:
    """Returns the bytes per second that a copy larger than any cache reads and writes, in units of 10^9."""
    source = torch.ones(2**32 if device == "cuda" else 2**29, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / best_ms(lambda: target.copy_(source), device) / 1e6


def measured(device: str) -> Iterator[tuple[str, float, str]]:
    """Yields each ceiling and its unit. On a CPU the products are float32; 16-bit ones are no faster there."""
    yield "products float32", matrix_rate(device, torch.float32, "ieee"), "TFLOP/s"
    if device == "cuda":
        yield "products tf32", matrix_rate(device, torch.float32, "tf32"), "TFLOP/s"
        for name in ("bfloat16", "float16"):
            yield f"products {name}", matrix_rate(device, DTYPES[name], "ieee"), "TFLOP/s"
    yield "copy", bandwidth(device), "GB/s"
    if device == "cpu":
        yield from ((what, rate, "TFLOP/s") for what, rate in peak.peaks())


def work(case: Case, mode: str) -> tuple[float, float]:
    """Returns the floating-point operations, and the fewest bytes of input, output, weights and gradients."""
    lengths = case.row_lengths()
    rows = case.T * case.B if lengths is None else int(lengths.sum())
    directions = 2 if case.bidirectional else 1
    widths = [case.I] + [directions * case.H] * (case.layers - 1)
    weights = sum(directions * 3 * case.H * (width + case.H) for width in widths)
    passes = 3 if mode == "training" else 1  # forward; the gradients of x and h; those of the weights
    values = rows * (case.I + directions * case.H) * (2 if mode == "training" else 1)
    size = DTYPES[case.dtype].itemsize * (values + weights * (2 if mode == "training" else 1))
    return 2.0 * rows * weights * passes, float(size)


def read(folder: Path) -> dict[Run, dict[str, float]]:
    """Reads the limits of each run in a folder: "copy" in GB/s, the others in TFLOP/s."""
    found: dict[Run, dict[str, float]] = {}
    for file in sorted(folder.glob("*.csv")):
        with file.open(newline="") as stream:
            for row in csv.DictReader(stream):
                if row["what"] != "step":  # in older files: a step of grucore itself, which is not a limit
                    run = Run(*(row.get(name, "") for name in Run._fields))
                    found.setdefault(run, {})[row["what"]] = float(row["value"])
    return found


def main() -> None:
    """Measures the limits of this machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: --device cuda: no GPU that PyTorch can use")
    target = options.out / "ceilings" / f"{options.device}.csv"
    with new_file(target, COLUMNS) as write:
        for what, value, unit in measured(options.device):
            write({"what": what, "value": value, "unit": unit} | environment(options.device))
            print(f"{what:20} {value:>8.4g} {unit}", flush=True)
    print(target)


if __name__ == "__main__":
    main()
