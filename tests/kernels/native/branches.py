"""Counts the branches of the native library that its tests take: `python branches.py`.

The library is built for gcov in a copy of the sources, for AVX2 (SET=avx512 for the other), and gcovr reads the counts.
Compilers add branches to floating-point code, so it is compiled without optimisation.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from sanitize import NATIVE, PYTEST, run_python

FLAGS = ["--coverage", "-O0", "-fprofile-update=atomic", "-fprofile-abs-path"]
REPORT = [
    "--txt-metric",
    "branch",
    "--exclude-throw-branches",
    "--exclude-unreachable-branches",
    "--fail-under-branch",
    "95",
]


def main() -> None:
    """Runs the tests, and prints the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run_python(folder / "gcov", FLAGS, PYTEST)
        gcovr = [sys.executable, "-m", "gcovr", "--root", str(NATIVE), *REPORT, str(folder)]
        sys.exit(subprocess.run(gcovr).returncode)


if __name__ == "__main__":
    main()
