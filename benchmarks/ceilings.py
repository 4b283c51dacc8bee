"""What a machine can do at most, measured: matrix products, memory, and one dependent step on chip.

    python -m benchmarks.ceilings --device cpu --out FOLDER

writes FOLDER/ceilings/DEVICE.csv. `floor_ms` makes of these the time below which no layer of a size can run there.
"""

from __future__ import annotations

import argparse
import csv
import functools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from grucore.kernels.gemm import Weight

from benchmarks.cases import Case
from benchmarks.environment import environment
from benchmarks.timing import timed
from grucore import GRU

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def best_ms(run: Callable[[], object], device: str) -> float:
    """The best of fifteen runs: a ceiling is what can be reached."""
    return min(timed({0: run}, 15, device)[0])


def matrix_rate(device: str, dtype: torch.dtype, precision: str) -> float:
    """Floating-point operations a second of a large product, in units of 10^12."""
    n = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        products = [lambda: torch.mm(a, b), functools.partial(Weight(b.t(), n).apply, a, None)]  # MKL's, oneDNN's
        return 2 * n**3 / min(best_ms(product, device) for product in products) / 1e9
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


def bandwidth(device: str) -> float:
    """Bytes a second that a copy of more than any cache reads and writes, in units of 10^9."""
    source = torch.ones(2**32 if device == "cuda" else 2**29, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / best_ms(lambda: target.copy_(source), device) / 1e6


def step_latency(device: str, dtype: torch.dtype) -> float:
    """Microseconds of a step of the smallest layer, which has next to nothing to compute: what T more steps cost."""
    layer = GRU(16, 16, device=device, dtype=dtype)
    xs = {steps: torch.randn(steps, 1, 16, device=device, dtype=dtype) for steps in (1024, 3072)}
    runs = {steps: torch.inference_mode()(functools.partial(layer, x)) for steps, x in xs.items()}
    times = {steps: min(samples) for steps, samples in timed(runs, 15, device).items()}
    return (times[3072] - times[1024]) * 1e3 / 2048


def measured(device: str) -> dict[str, tuple[float, str]]:
    """Each ceiling and its unit. On a CPU the products are float32; 16-bit ones are no faster there."""
    half = [("bfloat16", torch.bfloat16, "ieee"), ("float16", torch.float16, "ieee")] if device == "cuda" else []
    tf32 = [("tf32", torch.float32, "tf32")] if device == "cuda" else []
    kinds = [("float32", torch.float32, "ieee"), *tf32, *half]
    found = {f"products {name}": (matrix_rate(device, dtype, p), "TFLOP/s") for name, dtype, p in kinds}
    found["copy"] = (bandwidth(device), "GB/s")
    found["step"] = (step_latency(device, torch.bfloat16 if device == "cuda" else torch.float32), "us")
    return found


def work(case: Case, mode: str) -> tuple[float, float]:
    """Floating-point operations, and the fewest bytes of input, output, weights and gradients."""
    lengths = case.row_lengths()
    rows = case.T * case.B if lengths is None else int(lengths.sum())
    directions = 2 if case.bidirectional else 1
    widths = [case.I] + [directions * case.H] * (case.layers - 1)
    weights = sum(directions * 3 * case.H * (width + case.H) for width in widths)
    passes = 3 if mode == "training" else 1  # forward; the gradients of x and h; those of the weights
    values = rows * (case.I + directions * case.H) * (2 if mode == "training" else 1)
    return 2.0 * rows * weights * passes, float(BYTES[case.dtype] * (values + weights * (2 if passes == 3 else 1)))


def floor_ms(case: Case, mode: str, precision: str, ceilings: Mapping[str, float]) -> float:
    """The longest of three times, none of which a layer can undercut: its products, its bytes, its steps in a row."""
    operations, size = work(case, mode)
    rate = ceilings["products tf32" if precision == "tf32" else f"products {case.dtype}"]
    steps = case.T * (2 if mode == "training" else 1) * ceilings["step"]
    return max(operations / rate / 1e9, size / ceilings["copy"] / 1e6, steps / 1e3)


def read(folder: Path) -> dict[str, dict[str, float]]:
    """The ceilings of each device that the files of a folder name."""
    found: dict[str, dict[str, float]] = {}
    for file in sorted(folder.glob("*.csv")):
        with file.open(newline="") as stream:
            for row in csv.DictReader(stream):
                found.setdefault(row["device"], {})[row["what"]] = float(row["value"])
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: --device cuda: no GPU that PyTorch can use")
    target = options.out / "ceilings" / f"{options.device}.csv"
    if target.exists():
        sys.exit(f"error: {target} exists: results are never overwritten; give another --out or move it away")
    rows = [
        {"what": what, "value": f"{value:.4g}", "unit": unit} | environment(options.device)
        for what, (value, unit) in measured(options.device).items()
    ]
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("x", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(f"{row['what']:20} {row['value']:>8} {row['unit']}")
    print(target)


if __name__ == "__main__":
    main()
