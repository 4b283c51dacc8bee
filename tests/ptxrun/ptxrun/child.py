"""Separate processes in which Triton compiles, since it interprets in that of the tests."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import triton

from . import build

ROOT = Path(__file__).parents[3]
KNOWN = "3.7"  # the Triton whose PTX the executor knows
UNAVAILABLE = build.UNAVAILABLE
if not find_spec("triton.backends.nvidia"):
    UNAVAILABLE = "this Triton compiles for no NVIDIA GPU"
elif not triton.__version__.startswith(KNOWN):
    UNAVAILABLE = f"the executor knows what Triton {KNOWN} compiles to, not {triton.__version__}"


def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
    """Runs Python on one core, with the executor on its path."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(["", "tests/support", "tests/ptxrun"])}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=290)
