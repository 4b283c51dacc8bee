"""Times every provider on the same weights and inputs, side by side in one process, and writes one CSV.

    python -m benchmarks.run --device cpu --suite quick --out FOLDER

Each provider's result is checked against float64 first; one that is wrong gets no speed, and one that cannot run is
written down with its reason. Rows go to the file as they come: what is measured stays when the rest fails.
"""

from __future__ import annotations

import argparse
import copy
import csv
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import DTYPES, SUITES, Case, suite
from benchmarks.environment import environment
from benchmarks.problem import Problem
from benchmarks.providers import PROVIDERS, Floor, Unavailable
from benchmarks.timing import peak_mib, quantiles, replayed, timed

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
    "ms_graph",
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
# The largest error of outputs and gradients; a provider above it computes something else. TF32 keeps ten bits.
MAX_ERROR = {"float32": 1e-4, "tf32": 4e-3, "float16": 4e-3, "bfloat16": 3e-2}
DEFAULTS = {
    "cpu": ["grucore-reference", "torch", "torch-lstm", "products", "onnxruntime", "keras"],
    "cuda": ["grucore-triton", "torch", "torch-compile", "torch-lstm", "products", "flashrnn", "torchrl"],
}
OWN_THREADS = ("onnxruntime", "keras")
ONCE = {  # what is at home elsewhere, or takes long to compile: in the first cell of each mode but memory
    "cpu": ["torch-compile", "flashrnn", "torchrl", "xma", "haste"],
    "cuda": ["xma", "haste"],
}


class Refused(Exception):
    """A command line that cannot be carried out; nothing was measured."""


def measure(mode: str, case: Case, names: list[str], rounds: int, device: str) -> Iterator[dict[str, Any]]:
    """A row for each provider on one case; those with threads of their own, which spin, are made and run after."""
    problem = Problem(case, mode, device)
    apart = [name for name in names if name in OWN_THREADS]
    for group in ([name for name in names if name not in apart], apart):
        yield from _measure(problem, group, rounds, device)


def _measure(problem: Problem, names: list[str], rounds: int, device: str) -> Iterator[dict[str, Any]]:
    case, mode = problem.case, problem.mode
    rows, runs = {}, {}
    limit = MAX_ERROR["tf32" if problem.precision == "tf32" else case.dtype]
    for name in names:
        rows[name] = row = dict.fromkeys(COLUMNS, "") | environment(device) | case._asdict()
        row |= {"provider": name, "mode": mode, "precision": problem.precision}
        try:
            provider = PROVIDERS[name](copy.deepcopy(problem.layer))
            if mode == "training" and not (provider.trains or isinstance(provider, Floor)):
                raise Unavailable("inference alone")
            if isinstance(provider, Floor) and mode == "step":
                raise Unavailable("sequences alone")
            if provider.exact:
                error = problem.error(provider)
                row["error_rms"] = f"{error:.2e}"
                if not error <= limit:
                    raise Unavailable(f"error over {limit:.0e}: not timed")
            runs[name] = problem.run(provider)
            runs[name]()
            if device == "cuda":
                row["peak_mib"] = f"{peak_mib(runs[name]):.1f}"
        except torch.OutOfMemoryError:
            row["note"] = "out of memory"
            runs.pop(name, None)
        except Unavailable as reason:
            row["note"] = _line(reason)
        except Exception as fault:  # a rival may fail in any way: the result says how, and the run goes on
            row["note"] = f"{type(fault).__name__}: {_line(fault)}"
            runs.pop(name, None)
    for name, samples in timed(runs, rounds, device).items():
        row = rows[name]
        row |= quantiles(samples)
        row["us_per_step"] = f"{statistics.median(samples) * 1e3 / case.T:.4g}"
        if device == "cuda":
            try:
                row["ms_graph"] = f"{replayed(runs[name], rounds):.4g}"
            except RuntimeError as fault:
                row["note"] = f"no CUDA graph: {_line(fault)}"
    yield from rows.values()


def fresh(mode: str, case: Case, names: list[str], device: str) -> Iterator[dict[str, Any]]:
    """A row for each provider: what a process of its own shows, nothing compiled before (`fresh.py`)."""
    for name in names:
        row = dict.fromkeys(COLUMNS, "") | environment(device) | case._asdict() | {"provider": name, "mode": mode}
        with tempfile.TemporaryDirectory() as cache:
            caches = dict.fromkeys(("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"), cache)
            command = [sys.executable, "-m", "benchmarks.fresh", mode, name, device, *(str(v) for v in case)]
            result = subprocess.run(command, capture_output=True, text=True, env=os.environ | caches)
        if result.returncode == 0:
            row["ms_p50" if mode == "first" else "peak_mib"] = result.stdout.split()[-1]
        else:
            row["note"] = _line((result.stderr.strip().splitlines() or ["failed"])[-1])
        yield row


def _line(message: object) -> str:
    return " ".join(str(message).split())[:200]


def part(text: str) -> tuple[int, int]:
    """The text "2/5" as (2, 5)."""
    index, _, parts = text.partition("/")
    if not (index.isdigit() and parts.isdigit() and 1 <= int(index) <= int(parts)):
        raise argparse.ArgumentTypeError(f"must be i/n with 1 <= i <= n, got {text!r}")
    return int(index), int(parts)


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--suite", choices=SUITES, default="quick")
    parser.add_argument("--dtype", choices=list(DTYPES), help="the cases of one dtype alone")
    parser.add_argument("--providers", nargs="+", choices=list(PROVIDERS), help="default: all that may run there")
    parser.add_argument("--rounds", type=int, default=11, help="most timed runs of each provider and case")
    parser.add_argument("--part", type=part, default=(1, 1), help="i/n: the i-th of n parts of the suite")
    parser.add_argument("--out", type=Path, required=True, help="a folder; DEVICE-SUITE.csv is written there")
    return parser.parse_args()


def main() -> None:
    """Measures a suite."""
    given = options()
    if given.device == "cuda" and not torch.cuda.is_available():
        raise Refused("--device cuda: no GPU that PyTorch can use")
    index, parts = given.part
    name = "-".join([given.device, given.suite, *filter(None, [given.dtype, f"part{index}" * (parts > 1)])])
    target = given.out / f"{name}.csv"
    if target.exists():
        raise Refused(f"{target} exists: results are never overwritten; give another --out or move it away")
    work = [(mode, case) for mode, case in suite(given.suite, given.device) if given.dtype in (None, case.dtype)]
    given.out.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    with target.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for mode, case in work[index - 1 :: parts]:
            once = ONCE[given.device] if mode not in (*seen, "memory") else []
            names = given.providers or DEFAULTS[given.device] + once
            seen.add(mode)
            if mode in ("first", "memory"):
                rows = fresh(mode, case, names, given.device)
            else:
                rows = measure(mode, case, names, given.rounds, given.device)
            for row in rows:
                writer.writerow(row)
                file.flush()
                result = f"{row['ms_p50']} ms" if row["ms_p50"] else f"{row['peak_mib']} MiB {row['note']}"
                print(mode, *case, row["provider"], result, flush=True)
    print(target)


if __name__ == "__main__":
    try:
        main()
    except Refused as reason:
        sys.exit(f"error: {reason}")
