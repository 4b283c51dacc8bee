"""The memory kept for backward is bounded."""

import pytest
import torch

from grucore import GRU
from grucore.kernels.native import layer as native
from grucore.kernels.native import library

pytestmark = pytest.mark.skipif(library.UNAVAILABLE is not None, reason=str(library.UNAVAILABLE))


@pytest.mark.parametrize("lengths", [None, [3000, 2500, 3000, 10]], ids=["dense", "lengths"])
def test_what_backward_holds(lengths):
    """Both directions together keep KEPT_BYTES extra, though three times as much could be kept."""
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
