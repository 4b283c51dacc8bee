"""What a result was made with: versions, device, commit, command."""

from __future__ import annotations

import importlib.metadata
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import grucore


def commit() -> str | None:
    """The checkout's commit, None outside one."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


COMMIT = commit()  # of the code that runs, whatever is committed while it does


def version(package: str) -> str | None:
    """A package's version, None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def provenance(device: torch.device) -> dict[str, Any]:
    """For a summary."""
    on_gpu = device.type == "cuda"
    return {
        "versions": {"grucore": grucore.__version__}
        | {name: version(name) for name in ("torch", "numpy", "triton", "tokenizers")},
        "python": sys.version.split()[0],
        "device": torch.cuda.get_device_name() if on_gpu else f"cpu, {torch.get_num_threads()} threads",
        "commit": COMMIT,
        "command": shlex.join(["python", *sys.argv]),
    }
