"""Runs the native kernels under the compiler's sanitizers and valgrind: `python sanitize.py [CHECK ...]`.

Without arguments it runs all except `few`, which is for the test suite, and `plain`, which has no sanitizer and is for
emulators. Everything is built in a temporary folder. `fuzz` takes MINUTES of random calls.
SET=avx512 uses the AVX-512 kernels, if the processor has them; valgrind does not support them. Another processor's run
in an emulator, such as those of 64-bit ARM:

    SET=neon CXX="aarch64-linux-gnu-g++ -static" UNDER=qemu-aarch64-static python sanitize.py plain
"""

import functools
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
NATIVE, PROGRAM = ROOT / "kernels/native", Path(__file__).with_suffix(".cpp")
SETS = {
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mfma"],
    "neon": [],
}
SOURCES = f'-DGRU_SOURCES="{runpy.run_path(str(NATIVE / "sources.py"))["digest"](NATIVE)}"'
SET = os.environ.get("SET", "avx2")
FLAGS = ["-std=gnu++17", "-g", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fno-exceptions"]
FUNCTIONS = ("packed_bytes", "pack", "forward", "backward", "step")
FUNCTIONS += ("quantised_bytes", "quantised_pack", "forward_int8", "forward_bf16")
CXX = os.environ.get("CXX", "c++").split()
UNDER = tuple(os.environ.get("UNDER", "").split())

# AddressSanitizer does not see a masked move: without the compiler's __AVX2__, the ends of rows are copied by bytes.
STRICT = ["-fno-sanitize-recover=all", "-U__AVX2__"]
MEMORY = ["-fsanitize=address,undefined", *STRICT, "-O1"]
FEW = ["-fsanitize=address,bounds,shift,signed-integer-overflow", *STRICT, "-O0", "-g0"]
# Fresh memory is filled with NaN, so that unwritten elements show in the results.
OPTIONS = {"ASAN_OPTIONS": "detect_leaks=0:max_malloc_fill_size=1000000000:malloc_fill_byte=255"}


@functools.cache
def objects(folder: Path, flags: tuple[str, ...], cxx: tuple[str, ...] = tuple(CXX)) -> list[str]:
    """The library's sources, compiled for one instruction set, which also replaces the processor's other."""
    folder.mkdir(exist_ok=True)
    other = {"avx2": "avx512", "avx512": "avx2"}.get(SET)
    names = [f"-Dgru_{name}_{other}=gru_{name}_{SET}" for name in FUNCTIONS] if other else []
    command = [*cxx, *FLAGS, *SETS[SET], *flags]

    def compiled(job: tuple[str, list[str]]) -> str:
        output = str(folder / f"{job[0]}.o")
        subprocess.run([*command, *job[1], "-c", NATIVE / f"{job[0]}.cpp", "-o", output], check=True)
        return output

    jobs = [(name, [f"-DINSTRUCTION_SET={SET}"]) for name in ("backward", "forward", "quantised", "step")]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compiled, [*jobs, ("library", [*names, SOURCES]), ("segments", [])]))


def run_program(folder: Path, flags: list[str], sizes: str, under: tuple[str, ...] = ()) -> None:
    """Builds sanitize.cpp with the library's sources, and runs it."""
    program = folder / "sanitize"
    built = objects(folder, tuple(flags))
    subprocess.run([*CXX, *FLAGS, *flags, f"-I{NATIVE}", PROGRAM, *built, "-o", program, "-pthread"], check=True)
    subprocess.run([*under, program, sizes], check=True, env={**os.environ, **OPTIONS})


def run_python(folder: Path, flags: list[str], command: list[str], paths: tuple[str, ...] = ()) -> None:
    """Runs a command of Python on a copy of the sources, with a library that is built with the sanitizers."""
    copy = folder / "copy"
    if not copy.exists():
        make_copy(folder, copy, flags)
    runtimes = [
        subprocess.run([*CXX, f"-print-file-name={name}"], check=True, capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so.6")
    ]
    environment = {**os.environ, **OPTIONS, "LD_PRELOAD": " ".join(runtimes)}
    environment["PYTHONPATH"] = ":".join(str(copy / path) for path in ("", *paths))
    subprocess.run([sys.executable, *command], check=True, cwd=copy, env=environment)


def make_copy(folder: Path, copy: Path, flags: list[str]) -> None:
    """Copies the sources, and builds the library there."""
    for name in ("grucore", "kernels", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", copy)
    library = copy / "kernels/native/libgrucore.so"
    subprocess.run([*CXX, *flags, "-shared", *objects(folder, tuple(flags)), "-o", library], check=True)


TESTS = ["tests/kernels/native", "tests/kernels/test_contract.py", "-k", "native and not sanitize", "-m", "not slow"]
PYTEST = ["-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", *TESTS]
FUZZING = ["-m", "fuzzing", "kernels", "modules", "--backend", "native", "--minutes", os.environ.get("MINUTES", "2")]


def main(checks: list[str]) -> None:
    """Runs the given checks."""
    known = {
        "few": lambda folder: run_program(folder / "few", FEW, "few"),
        "memory": lambda folder: run_program(folder / "memory", MEMORY, "all"),
        "python": lambda folder: run_python(folder / "memory", MEMORY, PYTEST),
        "fuzz": lambda folder: run_python(folder / "memory", MEMORY, FUZZING, ("tests/support", "tests/fuzzing")),
        "plain": lambda folder: run_program(folder / "plain", ["-O2"], "all", UNDER),
        "threads": lambda folder: run_program(folder / "threads", ["-fsanitize=thread", "-O1"], "all"),
        "valgrind": lambda folder: run_program(
            folder / "valgrind", ["-O1"], "few", ("valgrind", "-q", "--error-exitcode=1", "--fair-sched=yes")
        ),
    }
    with tempfile.TemporaryDirectory() as folder:
        for check in checks or [name for name in known if name not in ("few", "plain")]:
            if check == "valgrind" and not shutil.which("valgrind"):
                print("valgrind: not installed")
                continue
            print(f"{check}:", flush=True)
            known[check](Path(folder))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except subprocess.CalledProcessError as error:
        sys.exit(str(error))
