"""The resources of a process are bounded, even if shapes change from call to call; and an import loads little."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from grucore.kernels.native.library import UNAVAILABLE

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).parent / "growth.py"
BACKENDS = ["reference", "eager", *([] if UNAVAILABLE else ["native"])]
LIMIT = 12  # MiB; measured 3.0, and 32 with every output kept


def python(*arguments):
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1800)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "backend, calls",
    [
        pytest.param(backend, calls, marks=[pytest.mark.exhaustive] * (calls > 400 or backend == "reference"))
        for backend in BACKENDS
        for calls in (400, 10_000)
    ],
)
def test_nothing_grows(backend, calls):
    for kind, gained in python(SCRIPT, backend, calls).items():
        assert gained.pop("MiB") < LIMIT, kind
        assert gained == {"threads": 0, "files": 0, "processes": 0}, kind


AFTER_AN_IMPORT = """
import json, sys, threading, torch
before, threads = set(sys.modules), threading.active_count()
import grucore
print(json.dumps([sorted(set(sys.modules) - before), threading.active_count() - threads]))
"""
# Modules of torch that it imports only on use; each takes about a second.
SLOW = (
    "torch._dynamo",
    "torch._inductor",
    "torch.onnx",
    "torch.fx.experimental.symbolic_shapes",
    "triton",
    "numpy.testing",
)
LAZY = ("grucore.convert", "grucore.integrations", "grucore.selftest", "grucore.kernels.triton.layer")


def test_an_import_brings_little():
    """A module takes a millisecond or two: few are imported; no compiler, converter, GPU kernel or thread."""
    modules, threads = python("-c", AFTER_AN_IMPORT)
    assert not [name for name in modules if name.startswith((*SLOW, *LAZY))]
    assert len(modules) < 60 and threads == 0  # 41
