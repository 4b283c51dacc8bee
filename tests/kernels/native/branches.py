"""Counts the branches of the native library's sources that its tests take: `python branches.py`.

Needs clang++, llvm-profdata and llvm-cov of one version in the search path, perhaps with a suffix as in clang++-14. A
branch counts once, whichever instance of a template takes it: those for tile sizes are many, and the tests choose sizes
of which each occurs in some. Both outcomes of a condition are branches. For AVX2; SET=avx512 for the other.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TOOLS = ("clang++", "llvm-profdata", "llvm-cov")
SUFFIXES = ["", *(f"-{version}" for version in range(30, 11, -1))]
FLAGS = ["-fprofile-instr-generate", "-fcoverage-mapping", "-O0"]
LEAST = 95  # percent


def main() -> None:
    """Runs the tests, and prints the table."""
    suffix = next((suffix for suffix in SUFFIXES if all(shutil.which(tool + suffix) for tool in TOOLS)), None)
    if suffix is None:
        sys.exit(f"no {', '.join(TOOLS)} of one version in the search path")
    compiler, merge, show = (tool + suffix for tool in TOOLS)
    os.environ["CXX"] = compiler  # before sanitize is imported, which reads it
    from sanitize import PYTEST, run_python

    with tempfile.TemporaryDirectory() as name:
        folder, counts = Path(name), Path(name) / "all.profdata"
        os.environ["LLVM_PROFILE_FILE"] = f"{folder}/%p.profraw"
        run_python(folder / "built", FLAGS, PYTEST)
        subprocess.run([merge, "merge", "-sparse", *folder.glob("*.profraw"), "-o", counts], check=True)
        counted = [folder / "built/copy/kernels/native/libgrucore.so", f"-instr-profile={counts}"]
        subprocess.run([show, "report", *counted], check=True)
        summary = subprocess.run([show, "export", "-summary-only", *counted], check=True, capture_output=True)
        percent = json.loads(summary.stdout)["data"][0]["totals"]["branches"]["percent"]
        if percent < LEAST:
            sys.exit(f"{percent:.1f} % of the branches, less than {LEAST} %")


if __name__ == "__main__":
    main()
