"""What is held for backward is bounded, and calls of changing shapes leave no memory behind."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from grucore import GRU
from grucore.kernels.native import layer as native
from grucore.kernels.native import library

pytestmark = pytest.mark.skipif(library.UNAVAILABLE is not None, reason=str(library.UNAVAILABLE))

SCRIPT = Path(__file__).parent / "memory_growth.py"
LIMIT = 8  # MiB; measured 0.5


@pytest.mark.parametrize("lengths", [None, [3000, 2500, 3000, 10]], ids=["dense", "lengths"])
def test_what_backward_holds(lengths):
    """Both directions together: KEPT_BYTES beyond what is there anyway, of three times as much that could be kept."""
    layer, x = GRU(16, 200, bidirectional=True, backend="native"), torch.randn(3000, 4, 16, requires_grad=True)
    held = {}

    def hold(t):
        held[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda t: t):
        y, h_n = layer(x, lengths=lengths)
    for there in (x, y, h_n, *layer.parameters()):
        held.pop(there.untyped_storage().data_ptr(), None)
    extra = sum(held.values()) - native.KEPT_BYTES
    assert native.KEPT_BYTES == 32 << 20 and -(1 << 20) < extra < 1 << 20  # h0 and the flags of steps


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["inference", "training", "step"])
def test_changing_shapes(kind):
    environment = {"PYTHONPATH": str(SCRIPT.parents[3]), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, SCRIPT, kind], capture_output=True, text=True, env=environment, check=True, timeout=240
    )
    assert float(result.stdout) < LIMIT
