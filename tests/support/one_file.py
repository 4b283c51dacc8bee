"""Loads and runs the examples that are one file each."""

import contextlib
import importlib.util
import io
import runpy
import subprocess
from pathlib import Path
from types import ModuleType
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]


def path_of(name: str) -> Path:
    return ROOT / "examples" / f"{name}.py"


def load(name: str) -> ModuleType:
    """Loads the example as a module, without its last part, which trains and compares."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", path_of(name))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str, *arguments: object) -> subprocess.CompletedProcess:
    """Runs the example as a program, in this process, which saves seconds of imports, and returns what it printed."""
    command, out, errors, code = [str(path_of(name)), *map(str, arguments)], io.StringIO(), io.StringIO(), 0
    with mock.patch("sys.argv", command), contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            runpy.run_path(command[0], run_name="__main__")
        except SystemExit as end:
            code = end.code
    return subprocess.CompletedProcess(command, code, out.getvalue(), errors.getvalue())
