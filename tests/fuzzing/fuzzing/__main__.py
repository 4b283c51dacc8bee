"""Runs random calls for some minutes and prints each failure with its seed.

    PYTHONPATH=.:tests/support:tests/fuzzing:tests/kernels/native python -m fuzzing [KIND ...] --minutes N

modules    programs against torch.nn.GRU: the same results, or the same class of error; --backend auto eager
options    options that torch.nn.GRU lacks: only clear errors, and no argument is changed
quantised  quantised layers against float ones, and what they refuse
kernels    cases of the contract against torch.nn.GRU in float64
library    the native library's C interface under sanitizers, with libFuzzer if a clang++ has it
files      damaged ONNX and Keras files: only clear errors, in time

They alternate. `python -c "from fuzzing import modules; print(modules.one(SEED, BACKEND))"` repeats one. Exits
with 1 if there was a failure.
"""

from __future__ import annotations

import argparse
import faulthandler
import itertools
import os
import random
import shutil
import sys
import time
from collections import Counter

import torch

WHAT = ("modules", "options", "quantised", "kernels", "library", "files")


def main() -> None:
    """Runs until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help=f"{', '.join(WHAT)}; all of them if none is named")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, help="where it begins; random if not given")
    parser.add_argument("--backend", nargs="+", default=["auto", "eager"], help="of modules")
    given = parser.parse_args()
    if unknown := set(given.what) - set(WHAT):
        parser.error(f"{', '.join(unknown)}: expected {', '.join(WHAT)}")
    faulthandler.enable()
    torch.set_num_threads(1)
    first = random.SystemRandom().randrange(10**6) * 1000 if given.seed is None else given.seed
    end, calls, failures = time.monotonic() + 60 * given.minutes, Counter[str](), Counter[str]()
    kinds = {
        name: function for name, function in runners(given.backend).items() if not given.what or name in given.what
    }
    if "library" in kinds and not shutil.which(os.environ.get("CXX", "c++").split()[0]):
        del kinds["library"]
        print("library: left out, there is no C++ compiler")
    print(f"from seed {first}", flush=True)
    for seed in itertools.count(first):
        if time.monotonic() > end:
            break
        for name, function in kinds.items():
            calls[name] += 1
            for failure in function(seed):
                kind = failure.split(":")[0]
                failures[kind] += 1
                if failures[kind] <= 3:
                    print(f"\n{name}: {failure}", flush=True)
    print(", ".join(f"{count} of {name}" for name, count in calls.items()), flush=True)
    for kind, count in failures.most_common():
        print(f"{count} times {kind}")
    sys.exit(bool(failures))


def runners(backends: list[str]) -> dict:
    """The function of a seed for each kind; its imports are done on demand."""

    def modules(seed: int) -> list[str]:
        from . import modules

        return [failure for backend in backends for failure in modules.one(seed, backend)]

    def options(seed: int) -> list[str]:
        from . import options

        return options.one(seed)

    def quantised(seed: int) -> list[str]:
        from . import quantised

        return quantised.one(seed)

    def kernels(seed: int) -> list[str]:
        from . import kernels

        return kernels.one(seed)

    def library(seed: int) -> list[str]:
        from . import library

        return library.one(seed)

    paths: list = []

    def files(seed: int) -> list[str]:
        from . import files

        paths[:] = paths or files.write_all(files.folder())
        return files.one(seed, paths)

    return {each.__name__: each for each in (modules, options, quantised, kernels, library, files)}


if __name__ == "__main__":
    main()
