"""Records the conditions of a measurement, per row and as a file: `python -m benchmarks.measuring.environment FILE`."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import json
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from grucore.kernels.native.library import INSTRUCTION_SET


def environment(device: str) -> dict[str, str]:
    """Returns the columns of a row that record the conditions of the measurement."""
    on_gpu = device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else f"{cpu_name()}, {threads_in_words()}",
        "torch": torch.__version__,
        "triton": version("triton"),
        "cudnn": str(torch.backends.cudnn.version()) if on_gpu else "",
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
    }


@functools.cache
def commit() -> str:
    """Returns the commit that the process started with: later checkouts do not affect it."""
    try:
        result = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True)
    except OSError:  # no git
        return ""
    return result.stdout.strip()


def threads_in_words(threads: int | None = None) -> str:
    """Writes a number of threads in words; by default PyTorch's."""
    threads = torch.get_num_threads() if threads is None else threads
    return f"{threads} thread{'s' * (threads != 1)}"


def on_cpu(device: str) -> dict[str, Any]:
    """Returns the columns of a row that only CPUs have, by which tables are chosen."""
    if device == "cuda":
        return {}
    return {"threads": torch.get_num_threads(), "instruction_set": INSTRUCTION_SET or ""}


def version(package: str) -> str:
    """Returns a package's version, "" if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def cpu_name() -> str:
    """Returns the processor's model name and its widest vectors, which distinguish generations with the same name."""
    if not (model := _cpu_facts().get("model name")):
        return platform.processor()
    vectors = {"avx512f": "AVX-512", "avx2": "AVX2"}
    found = [name for flag, name in vectors.items() if flag in cpu_flags()]
    return ", ".join([model, *found[:1]])


def cpu_flags() -> set[str]:
    """Returns the processor's features under Linux's names; empty if unknown."""
    return set(_cpu_facts().get("flags", "").split())


def _cpu_facts() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    return dict(re.findall(r"^(model name|flags)\s*: (.*)$", text, re.MULTILINE))


def main() -> None:
    """Writes the environment, and a GPU's limits, as JSON."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.measuring.environment FILE")
    facts: dict[str, object] = dict(environment("cuda" if torch.cuda.is_available() else "cpu"))
    facts |= {"python": platform.python_version(), "numpy": version("numpy"), "cuda": torch.version.cuda}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts["capability"] = f"{properties.major}.{properties.minor}"
        facts["processors"] = properties.multi_processor_count
        facts["allow_tf32_cudnn"] = torch.backends.cudnn.allow_tf32
    text = json.dumps(facts, indent=1)
    Path(sys.argv[1]).write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
