"""Measures the peak floating-point rate of one core, to compare layers with it.

The peak is that of fused multiply-adds in registers (`peak.cpp`), compiled when it is measured. Without a compiler it
is replaced by a product of matrices that stay in the L2 cache, which has its own name, since it is lower.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.measuring.environment import cpu_flags
from benchmarks.measuring.timing import sampled

SOURCE = Path(__file__).with_name("peak.cpp")
SETS = {  # of the native kernels: required features of the processor, compiler flags, floats per vector
    "avx2": (("avx2", "fma"), ["-mavx2", "-mfma"], 8),
    "avx512": (("avx512f",), ["-mavx512f", "-mprefer-vector-width=512"], 16),
}
CHAINS = 12  # of peak.cpp
PEAK, PRODUCTS = "one core fma", "one core products"  # names of the rows; the first is followed by the set


def peaks() -> Iterator[tuple[str, float]]:
    """Yields each set's name and the peak of one core in float32, in units of 10^12 per second."""
    found = False
    for name, (flags, options, lanes) in SETS.items():
        if set(flags) <= cpu_flags() and (rate := _peak(options, lanes)):
            found = True
            yield f"{PEAK} {name}", rate
    if not found:
        yield PRODUCTS, _products()


def peak_of(limits: dict[str, float], instruction_set: str) -> tuple[str, float] | None:
    """Returns the name and value of one core's peak for an instruction set, or None if it was not measured."""
    names = (f"{PEAK} {instruction_set}", PRODUCTS)
    return next(((name, limits[name]) for name in names if name in limits), None)


def _peak(options: list[str], lanes: int) -> float | None:
    """Measures one set's peak; None if it cannot be compiled."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "peak.so"
        compiler = [*os.environ.get("CXX", "c++").split(), "-O3", "-ffp-contract=fast", "-shared", "-fPIC"]
        command = [*compiler, *options, f"-DLANES={lanes}", str(SOURCE), "-o", str(library)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        run = ctypes.CDLL(str(library)).multiply_add
    run.argtypes, run.restype = (ctypes.c_long, ctypes.c_float, ctypes.c_float), ctypes.c_float
    rounds = 1_000_000
    return _rate(lambda: run(rounds, 0.5, 1.0), 2 * CHAINS * lanes * rounds)


def _products() -> float:
    """Measures products of 128 x 128 on one thread."""
    n, threads = 128, torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        a, b = torch.randn(n, n), torch.randn(n, n)
        return _rate(lambda: torch.mm(a, b), 2 * n**3)
    finally:
        torch.set_num_threads(threads)


def _rate(run: Callable[[], object], operations: int) -> float:
    """Returns the best rate by CPU time, which excludes other processes."""
    samples = sampled({0: run}, 15, clock=time.thread_time)[0]
    return operations / min(sample.ms_cpu or sample.ms for sample in samples) / 1e9
