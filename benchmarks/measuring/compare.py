"""Measures one case: every provider on the same weights and inputs, in one process.

Each provider's result is compared with float64 first. A wrong one is not timed, and for one that cannot run the reason
is recorded.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import torch

from benchmarks.measuring.cases import Case
from benchmarks.measuring.environment import environment, on_cpu
from benchmarks.measuring.problem import Problem
from benchmarks.measuring.timing import peak_mib, replayed, sampled, spread
from benchmarks.providers import PROVIDERS
from benchmarks.providers.base import Provider, Unavailable
from benchmarks.results import Row

# The largest error of outputs and gradients; above it a provider computes something else. TF32 keeps ten bits.
MAX_ERROR = {"float32": 1e-4, "tf32": 4e-3, "float16": 4e-3, "bfloat16": 3e-2}


def new_row(provider: str, mode: str, case: Case, device: str) -> Row:
    """Makes a row without figures, which records the conditions of the measurement."""
    return Row(provider, mode, **case._asdict(), **environment(device), **on_cpu(device))


def limit(problem: Problem) -> float:
    """Returns the largest error allowed in a problem."""
    return MAX_ERROR["tf32" if problem.precision == "tf32" else problem.case.dtype]


def measure(
    mode: str, case: Case, names: list[str], rounds: int, device: str, seconds: float | None = None
) -> Iterator[Row]:
    """Yields a row per provider on one case; those with threads of their own are built and timed last, one by one."""
    problem = Problem(case, mode, device)
    apart = [name for name in names if _has_own_threads(name)]
    yield from _measure(problem, [name for name in names if name not in apart], rounds, device, seconds)
    for name in apart:
        yield from _measure(problem, [name], rounds, device, seconds)


def _has_own_threads(name: str) -> bool:
    own = PROVIDERS[name].own_threads
    return own == "always" or (own == "of several" and torch.get_num_threads() > 1)


def _measure(problem: Problem, names: list[str], rounds: int, device: str, seconds: float | None) -> Iterator[Row]:
    rows, runs, alone = {}, {}, torch.get_num_threads() == 1
    for name in names:
        rows[name] = row = new_row(name, problem.mode, problem.case, device)
        row.precision = problem.precision
        alone &= not _has_own_threads(name)
        try:
            runs[name] = _checked(PROVIDERS[name](copy.deepcopy(problem.layer)), problem, row, device)
        except torch.OutOfMemoryError:
            row.note = "out of memory"
        except Unavailable as reason:
            row.note = _line(reason)
        except Exception as fault:  # a provider may fail in any way: the row records it, and the run continues
            row.note = f"{type(fault).__name__}: {_line(fault)}"
    clock = time.thread_time if alone else time.process_time
    for name, samples in sampled(runs, rounds, device, seconds, clock).items():
        row = rows[name]
        row.ms_p20, row.ms_p50, row.ms_p80 = spread([sample.ms for sample in samples])
        row.us_per_step = row.ms_p50 * 1e3 / problem.case.T
        if device == "cpu":
            row.ms_cpu_p20, row.ms_cpu_p50, row.ms_cpu_p80 = spread([sample.ms_cpu or 0.0 for sample in samples])
        else:
            try:
                row.ms_graph = replayed(runs[name], rounds)
            except RuntimeError as fault:
                row.note = f"no CUDA graph: {_line(fault)}"
    yield from rows.values()


def _checked(provider: Provider, problem: Problem, row: Row, device: str) -> Callable[[], object]:
    """Makes the call to be timed, after running it once and checking its result."""
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
    """Yields a row per provider, measured in a fresh process where nothing is compiled yet (`fresh.py`)."""
    for name in names:
        row = new_row(name, mode, case, device)
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
