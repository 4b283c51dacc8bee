"""Builds the core with g++ if its source changed, into build/ptxrun of the repository, and loads it."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import shutil
import subprocess
from pathlib import Path

CORE = Path(__file__).parent / "core"
FOLDER = Path(__file__).parents[3] / "build" / "ptxrun"
FLAGS = ["-std=c++20", "-O2", "-march=native", "-ffp-contract=off", "-shared", "-fPIC"]
UNAVAILABLE = None if shutil.which("g++") else "the executor is C++, and there is no g++"


@functools.cache
def library() -> ctypes.CDLL:
    """The core; the first of several processes builds it, the others wait."""
    sources = sorted(CORE.glob("*.cpp"))
    contents = [path.read_bytes() for path in sorted(CORE.iterdir())]
    key = hashlib.sha256(b"\0".join([*contents, " ".join(FLAGS).encode()])).hexdigest()[:16]
    target = FOLDER / f"{key}.so"
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            for stale in FOLDER.glob("*.so"):
                stale.unlink()
            partial = target.with_suffix(".partial")
            includes = "".join(f'#include "{path}"\n' for path in sources)  # as one file it is built in half the time
            command = ["g++", *FLAGS, "-o", str(partial), "-x", "c++", "-"]
            subprocess.run(command, input=includes, text=True, check=True)
            partial.replace(target)
    return ctypes.CDLL(str(target))
