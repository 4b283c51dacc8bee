"""The packages, and the native kernels: a plain shared library, left out where it cannot be built.

`grucore/kernels` is a link to `kernels/`. All else is in pyproject.toml.
"""

import os
import platform
import runpy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

NATIVE = Path("grucore/kernels/native")  # by the link, so that a source distribution has one copy of each file
DIGEST = runpy.run_path(str(NATIVE / "sources.py"))["digest"](NATIVE)
X86 = {
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mfma", "-mprefer-vector-width=512"],
}
ARM: dict[str, list[str]] = {"neon": []}
SETS = {"x86_64": X86, "AMD64": X86, "aarch64": ARM, "arm64": ARM}  # of instructions, by platform.machine()
FLAGS = [
    "-std=gnu++17",
    "-O3",
    "-fPIC",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-exceptions",
    "-fno-rtti",
]
# macOS refuses undefined symbols, as those of the OpenMP runtime are, unless it is told that the process has them.
LINKED = ["-shared", *(["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else [])]


class BuildNative(build_ext):
    """Compiles the kernels for each instruction set; ctypes loads the result."""

    def get_ext_filename(self, name):
        """The path without a Python version's tag, since the library does not depend on one."""
        return os.path.join(*name.split(".")) + ".so"

    def build_extension(self, ext):
        """Builds next to the target and renames, so that a process that has mapped the old file keeps it."""
        if (sets := SETS.get(platform.machine())) is None:
            expected = f"they need x86-64 or 64-bit ARM, not {platform.machine()}"
            raise CompileError(f"grucore is built without native kernels: {expected}")
        folder, target = Path(self.build_temp), Path(self.get_ext_fullpath(ext.name))
        folder.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # of an earlier build, which must not survive if this one fails
        jobs = [("library", "library", [f'-DGRU_SOURCES="{DIGEST}"']), ("segments", "segments", [])]
        jobs += [
            (file, f"{file}-{s}", [f"-DINSTRUCTION_SET={s}", *sets[s]])
            for file in ("forward", "backward", "step", "quantised")
            for s in sets
        ]
        cxx = os.environ.get("CXX", "c++").split()
        objects = [str(folder / f"{output}.o") for _, output, _ in jobs]

        def compile_file(job, output):
            subprocess.run([*cxx, *FLAGS, *job[2], "-c", str(NATIVE / f"{job[0]}.cpp"), "-o", output], check=True)

        try:
            with ThreadPoolExecutor() as pool:
                list(pool.map(compile_file, jobs, objects))
            partial = target.with_suffix(".partial")
            subprocess.run([*cxx, *LINKED, *objects, "-o", str(partial)], check=True)
            partial.replace(target)
        except (OSError, subprocess.CalledProcessError) as error:
            raise CompileError(f"grucore is built without native kernels: {error}") from error


class Wheel(bdist_wheel):
    """A wheel for any Python 3, and for one platform if it contains the library."""

    def get_tag(self):
        """The tag, which depends on whether the library was built."""
        built = list(Path(self.bdist_dir).rglob("libgrucore.so"))
        return "py3", "none", super().get_tag()[2] if built else "any"


sources = sorted(str(path) for path in NATIVE.glob("*.cpp"))
headers = sorted(str(path) for path in NATIVE.glob("*.h"))
DATA = {"grucore": ["py.typed"], "grucore.kernels.triton": ["*.json"], "grucore.kernels.native": ["*.h", "*.cpp"]}

setup(
    packages=find_packages(include=["grucore", "grucore.*"]),
    package_data=DATA,
    ext_modules=[Extension("grucore.kernels.native.libgrucore", sources, depends=headers, optional=True)],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": Wheel},
)
