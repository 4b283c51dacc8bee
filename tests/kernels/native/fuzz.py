"""Fuzzes the native library's C interface under sanitizers: `python fuzz.py SECONDS [FILE ...]`.

Builds fuzz.cpp with the library's sources, with libFuzzer if a clang++ has it, else with random bytes. FILEs are inputs
that failed before, which run instead.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from sanitize import CXX, FLAGS, MEMORY, NATIVE, OPTIONS, objects

HERE = Path(__file__).parent
LIBFUZZER = "-fsanitize=fuzzer"


class Target(NamedTuple):
    """The built program, and whether coverage guides it."""

    program: Path
    is_guided: bool


def _has_libfuzzer(compiler: str, folder: Path) -> bool:
    text = 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }'
    command = [compiler, LIBFUZZER, "-x", "c++", "-", "-o", str(folder / "probe")]
    try:
        return subprocess.run(command, input=text, text=True, capture_output=True).returncode == 0
    except OSError:
        return False


def clang(folder: Path) -> str | None:
    """A clang++ of the search path that links libFuzzer."""
    places = [Path(place) for place in os.environ.get("PATH", "").split(os.pathsep)]
    found = [str(path) for place in places for path in (*place.glob("clang++"), *place.glob("clang++-[0-9]*"))]
    return next((compiler for compiler in found if _has_libfuzzer(compiler, folder)), None)


def build(folder: Path) -> Target:
    """Builds the target in a folder."""
    compiler = clang(folder)
    cxx, flags, own = (
        ((compiler,), [*MEMORY, f"{LIBFUZZER}-no-link"], [LIBFUZZER])
        if compiler
        else (tuple(CXX), MEMORY, [HERE / "random_bytes.cpp"])
    )
    built, program = objects(folder / "fuzz", tuple(flags), cxx), folder / "fuzz" / "fuzz"
    command = [*cxx, *FLAGS, *flags, f"-I{NATIVE}", HERE / "fuzz.cpp", *own, *built, "-o", program, "-pthread"]
    subprocess.run(command, check=True)
    return Target(program, compiler is not None)


def run(target: Target, seconds: int, seed: int = 1) -> subprocess.CompletedProcess:
    """Runs the target for some seconds; inputs that reach new code, and a failing one, stay next to it."""
    folder = target.program.parent
    (folder / "corpus").mkdir(exist_ok=True)
    command = [target.program, f"-max_total_time={seconds}", f"-seed={seed}", f"-artifact_prefix={folder}/"]
    command += ["-print_final_stats=1", "-verbosity=0", "-max_len=300", folder / "corpus"] if target.is_guided else []
    return subprocess.run(command, env={**os.environ, **OPTIONS}, capture_output=True, text=True)


def main() -> None:
    """Builds the target, and runs it."""
    with tempfile.TemporaryDirectory() as folder:
        target = build(Path(folder))
        if files := sys.argv[2:]:
            sys.exit(subprocess.run([target.program, *files], env={**os.environ, **OPTIONS}).returncode)
        result = run(target, int(sys.argv[1]))
        print(result.stderr[-5000:])
        sys.exit(result.returncode)


if __name__ == "__main__":
    main()
