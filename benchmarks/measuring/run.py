"""Times every provider on the same weights and inputs in one process, and writes a CSV.

    python -m benchmarks.measuring.run --suite quick --out FOLDER           on this CPU; or --device cuda
    python -m benchmarks.measuring.run --suite grid --out FOLDER            many shapes, on one thread and on all
    python -m benchmarks.measuring.run --suite grid --instruction-set avx2  the native kernels without AVX-512

The number of threads and the instruction set of the native kernels are fixed when a process starts, so each number of
threads has its own process and file.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.measuring.cases import DTYPES, Case, suite
from benchmarks.measuring.compare import fresh, measure
from benchmarks.measuring.environment import threads_in_words
from benchmarks.measuring.grid import grid
from benchmarks.providers import PROVIDERS
from benchmarks.results import new_file
from grucore.kernels.native.library import INSTRUCTION_SET

SUITES = ("smoke", "quick", "full", "grid", "grid-short")
DEFAULTS = {
    "cpu": ["grucore-auto", "grucore-eager", "torch", "torch-lstm", "products", "onnxruntime", "keras"],
    "cuda": ["grucore-triton", "torch", "torch-compile", "torch-lstm", "products", "flashrnn", "torchrl"],
    "grid": ["grucore-auto", "torch", "products", "onnxruntime", "openvino"],
}
WITH_LENGTHS = ["torch-padded"]  # without lengths it is nn.GRU again
STREAMING = ["grucore-packed"]
ONCE = {  # slow to compile, or built for GPUs: only in the first cell of each mode, except memory
    "cpu": ["openvino", "torch-compile", "flashrnn", "torchrl", "xma", "haste"],
    "cuda": ["xma", "haste"],
    "grid": ["torch-compile", "keras"],
    "grid-short": [],
}


def work(given: argparse.Namespace) -> list[tuple[str, Case, list[str]]]:
    """Returns each mode and case with the providers to try."""
    on_grid = given.suite.startswith("grid")
    measured = grid(short=given.suite == "grid-short") if on_grid else suite(given.suite, given.device)
    defaults = DEFAULTS["grid" if on_grid else given.device]
    seen: set[str] = set()
    found = []
    index, parts = given.part
    for mode, case in [cell for cell in measured if given.dtype in (None, cell[1].dtype)][index - 1 :: parts]:
        once = ONCE[given.suite if on_grid else given.device] if mode not in (*seen, "memory") else []
        seen.add(mode)
        names = defaults + WITH_LENGTHS * (case.lengths != "full") + STREAMING * (mode == "step" and on_grid) + once
        found.append((mode, case, given.providers or names))
    return found


def measure_all(given: argparse.Namespace, target: Path) -> None:
    """Measures a suite in this process."""
    with new_file(target) as write:
        for mode, case, names in work(given):
            if mode in ("first", "memory"):
                rows = fresh(mode, case, names, given.device)
            else:
                rows = measure(mode, case, names, given.rounds, given.device, given.seconds)
            for row in rows:
                write(row)
                result = f"{row.ms_p50:.4g} ms" if row.ms_p50 else f"{row.peak_mib or '-'} MiB {row.note}"
                print(mode, *case, row.provider, result, flush=True)
    print(target)


def part(text: str) -> tuple[int, int]:
    """Reads the text "2/5" as (2, 5)."""
    index, _, parts = text.partition("/")
    if not (index.isdigit() and parts.isdigit() and 1 <= int(index) <= int(parts)):
        raise argparse.ArgumentTypeError(f"must be i/n with 1 <= i <= n, got {text!r}")
    return int(index), int(parts)


def positive(text: str) -> int:
    """Reads a number of threads."""
    if not (text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {text!r}")
    return int(text)


def options() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--suite", choices=SUITES, default="quick")
    parser.add_argument("--dtype", choices=list(DTYPES), help="only the cases of one dtype")
    parser.add_argument("--providers", nargs="+", choices=list(PROVIDERS), help="default: all that may run there")
    parser.add_argument("--rounds", type=int, default=11, help="at most so many timed runs per provider and case")
    parser.add_argument("--seconds", type=float, help="for all runs of a case; at least three rounds are run")
    parser.add_argument("--part", type=part, default=(1, 1), help="i/n: the i-th of n parts of the suite")
    parser.add_argument("--threads", type=positive, nargs="+", help="default: all; for the grid: 1 and all")
    parser.add_argument("--instruction-set", choices=["avx2"], help="for the native kernels")
    parser.add_argument("--out", type=Path, required=True, help="a folder; DEVICE-SUITE.csv is written there")
    given = parser.parse_args()
    if given.device == "cuda" and (given.suite.startswith("grid") or given.threads or given.instruction_set):
        parser.error("the grid, --threads and --instruction-set are for --device cpu")
    return given


def file_name(given: argparse.Namespace, threads: int, says_threads: bool) -> str:
    """Returns the name of a file of results."""
    index, parts = given.part
    words = [given.device, given.suite, given.dtype, f"part{index}" * (parts > 1), given.instruction_set]
    words.append(threads_in_words(threads).replace(" ", "-") * says_threads)
    return "-".join(filter(None, words)) + ".csv"


def may_run_here(given: argparse.Namespace, threads: int) -> bool:
    """Whether this process started with the requested threads and instruction set."""
    has_threads = str(threads) == os.environ.get("OMP_NUM_THREADS") or threads == torch.get_num_threads()
    return has_threads and given.instruction_set in (None, os.environ.get("GRUCORE_NATIVE_SET"))


def main() -> None:
    """Measures a suite, here or in one process per number of threads."""
    given = options()
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: --device cuda: no GPU that PyTorch can use")
    on_all = torch.get_num_threads()
    counts = list(dict.fromkeys(given.threads or ([1, on_all] if given.suite.startswith("grid") else [on_all])))
    says_threads = given.suite.startswith("grid") or given.threads is not None
    targets = {n: given.out / file_name(given, n, says_threads) for n in counts}
    for target in targets.values():
        if target.exists():  # fail now rather than after measuring for other files
            sys.exit(f"error: {target} exists: results are never overwritten; give another --out or move it away")
    if len(counts) == 1 and may_run_here(given, counts[0]):
        if given.instruction_set not in (None, INSTRUCTION_SET):
            sys.exit(f"error: --instruction-set {given.instruction_set}: the native kernels take {INSTRUCTION_SET}")
        torch.set_num_threads(counts[0])
        measure_all(given, targets[counts[0]])
        return
    for n in counts:
        forced = {} if given.instruction_set is None else {"GRUCORE_NATIVE_SET": given.instruction_set}
        command = [sys.executable, "-m", "benchmarks.measuring.run", *sys.argv[1:], "--threads", str(n)]
        result = subprocess.run(command, env=os.environ | forced | {"OMP_NUM_THREADS": str(n)})
        if result.returncode:
            sys.exit(result.returncode)


if __name__ == "__main__":
    main()
