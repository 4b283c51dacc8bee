"""Loads and runs the examples that are one file each."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from imdb import ROOT, environment


def path_of(name: str) -> Path:
    return ROOT / "examples" / f"{name}.py"


def load(name: str) -> ModuleType:
    """The example as a module, its last part, which trains and compares, left out."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", path_of(name))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str, *arguments: object) -> subprocess.CompletedProcess:
    """Runs the example as a person does, and returns what it printed."""
    command = [sys.executable, str(path_of(name)), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=240)
