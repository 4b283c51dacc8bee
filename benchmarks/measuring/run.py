"""Times every provider on the same weights and inputs, side by side in one process, and writes one CSV.

    python -m benchmarks.measuring.run --device cpu --suite quick --out FOLDER

Each provider's result is compared with float64 first; one that is wrong gets no speed, and one that cannot run is
written down with its reason.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.measuring.cases import DTYPES, SUITES, Case, suite
from benchmarks.measuring.environment import environment
from benchmarks.measuring.problem import Problem
from benchmarks.measuring.timing import peak_mib, replayed, spread, timed
from benchmarks.providers import PROVIDERS
from benchmarks.providers.base import Provider, Unavailable
from benchmarks.results import Row, new_file

# The largest error of outputs and gradients; a provider above it computes something else. TF32 keeps ten bits.
MAX_ERROR = {"float32": 1e-4, "tf32": 4e-3, "float16": 4e-3, "bfloat16": 3e-2}
DEFAULTS = {
    "cpu": ["grucore-auto", "grucore-eager", "torch", "torch-lstm", "products", "onnxruntime", "keras"],
    "cuda": ["grucore-triton", "torch", "torch-compile", "torch-lstm", "products", "flashrnn", "torchrl"],
}
WITH_LENGTHS = ["torch-padded"]  # which without lengths is nn.GRU again
ONCE = {  # what is at home elsewhere, or takes long to compile: in the first cell of each mode but memory
    "cpu": ["torch-compile", "flashrnn", "torchrl", "xma", "haste"],
    "cuda": ["xma", "haste"],
}


def limit(problem: Problem) -> float:
    """Returns the largest error that is allowed there."""
    return MAX_ERROR["tf32" if problem.precision == "tf32" else problem.case.dtype]


def measure(mode: str, case: Case, names: list[str], rounds: int, device: str) -> Iterator[Row]:
    """Yields a row for each provider on one case; those with threads of their own come after the others."""
    problem = Problem(case, mode, device)
    apart = [name for name in names if PROVIDERS[name].own_threads]
    for group in ([name for name in names if name not in apart], apart):
        yield from _measure(problem, group, rounds, device)


def _measure(problem: Problem, names: list[str], rounds: int, device: str) -> Iterator[Row]:
    rows, runs = {}, {}
    for name in names:
        row = Row(name, problem.mode, precision=problem.precision, **problem.case._asdict(), **environment(device))
        rows[name] = row
        try:
            runs[name] = _checked(PROVIDERS[name](copy.deepcopy(problem.layer)), problem, row, device)
        except torch.OutOfMemoryError:
            row.note = "out of memory"
        except Unavailable as reason:
            row.note = _line(reason)
        except Exception as fault:  # a provider may fail in any way: the result says how, and the run goes on
            row.note = f"{type(fault).__name__}: {_line(fault)}"
    for name, samples in timed(runs, rounds, device).items():
        row = rows[name]
        row.ms_p20, row.ms_p50, row.ms_p80 = spread(samples)
        row.us_per_step = statistics.median(samples) * 1e3 / problem.case.T
        if device == "cuda":
            try:
                row.ms_graph = replayed(runs[name], rounds)
            except RuntimeError as fault:
                row.note = f"no CUDA graph: {_line(fault)}"
    yield from rows.values()


def _checked(provider: Provider, problem: Problem, row: Row, device: str) -> Callable[[], object]:
    """Makes the call to be timed, which has run once and is right."""
    if provider.exact:
        row.error_rms = problem.error(provider)
        if not row.error_rms <= limit(problem):
            raise Unavailable(f"error over {limit(problem):.0e}: not timed")
    run = problem.run(provider)
    run()
    if device == "cuda":
        row.peak_mib = peak_mib(run)
    return run


def fresh(mode: str, case: Case, names: list[str], device: str) -> Iterator[Row]:
    """Yields a row for each provider: what a process of its own shows, nothing compiled before (`fresh.py`)."""
    for name in names:
        row = Row(name, mode, **case._asdict(), **environment(device))
        with tempfile.TemporaryDirectory() as cache:
            caches = dict.fromkeys(("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"), cache)
            command = [sys.executable, "-m", "benchmarks.measuring.fresh", mode, name, device, *map(str, case)]
            result = subprocess.run(command, capture_output=True, text=True, env=os.environ | caches)
        if result.returncode == 0:
            setattr(row, "ms_p50" if mode == "first" else "peak_mib", float(result.stdout.split()[-1]))
        else:
            row.note = _line((result.stderr.strip().splitlines() or ["failed"])[-1])
        yield row


def _line(message: object) -> str:
    return " ".join(str(message).split())[:200]


def part(text: str) -> tuple[int, int]:
    """Reads the text "2/5" as (2, 5)."""
    index, _, parts = text.partition("/")
    if not (index.isdigit() and parts.isdigit() and 1 <= int(index) <= int(parts)):
        raise argparse.ArgumentTypeError(f"must be i/n with 1 <= i <= n, got {text!r}")
    return int(index), int(parts)


def options() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--suite", choices=SUITES, default="quick")
    parser.add_argument("--dtype", choices=list(DTYPES), help="the cases of one dtype only")
    parser.add_argument("--providers", nargs="+", choices=list(PROVIDERS), help="default: all that may run there")
    parser.add_argument("--rounds", type=int, default=11, help="most timed runs of each provider and case")
    parser.add_argument("--part", type=part, default=(1, 1), help="i/n: the i-th of n parts of the suite")
    parser.add_argument("--out", type=Path, required=True, help="a folder; DEVICE-SUITE.csv is written there")
    return parser.parse_args()


def main() -> None:
    """Measures a suite."""
    given = options()
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: --device cuda: no GPU that PyTorch can use")
    index, parts = given.part
    name = "-".join([given.device, given.suite, *filter(None, [given.dtype, f"part{index}" * (parts > 1)])])
    target = given.out / f"{name}.csv"
    work = [(mode, case) for mode, case in suite(given.suite, given.device) if given.dtype in (None, case.dtype)]
    seen: set[str] = set()
    with new_file(target) as write:
        for mode, case in work[index - 1 :: parts]:
            once = ONCE[given.device] if mode not in (*seen, "memory") else []
            names = DEFAULTS[given.device] + WITH_LENGTHS * (case.lengths != "full") + once
            seen.add(mode)
            if mode in ("first", "memory"):
                rows = fresh(mode, case, given.providers or names, given.device)
            else:
                rows = measure(mode, case, given.providers or names, given.rounds, given.device)
            for row in rows:
                write(row)
                result = f"{row.ms_p50:.4g} ms" if row.ms_p50 else f"{row.peak_mib or '-'} MiB {row.note}"
                print(mode, *case, row.provider, result, flush=True)
    print(target)


if __name__ == "__main__":
    main()
