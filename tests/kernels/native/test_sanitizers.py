"""A part of what `make sanitize` runs, with the sanitizers for addresses and for undefined behaviour."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "sanitize.py"
CXX = os.environ.get("CXX", "c++").split()


def obstacle(folder):
    """The reason why nothing can be checked here, or None."""
    if platform.machine() != "x86_64" or not shutil.which(CXX[0]):
        return "no C++ compiler for x86-64"
    if " avx2 " not in Path("/proc/cpuinfo").read_text():
        return "the processor has no AVX2"
    flags = ["-fsanitize=address,undefined", "-x", "c++", "-", "-o", str(folder / "program")]
    built = subprocess.run([*CXX, *flags], input="int main() {}", text=True, capture_output=True)
    if built.returncode or subprocess.run([folder / "program"], capture_output=True).returncode:
        return "the compiler has no sanitizers"
    return None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_kernels_stay_in_their_memory(tmp_path):
    if reason := obstacle(tmp_path):
        pytest.skip(reason)
    result = subprocess.run([sys.executable, SCRIPT, "few"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
