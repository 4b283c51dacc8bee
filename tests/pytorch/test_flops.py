"""torch.utils.flop_counter counts the same for our layers as for torch.nn.GRU."""

import subprocess
import sys

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

from grucore import GRU

pytestmark = pytest.mark.slow


def flops(module, *inputs, backward=True, **call):
    with FlopCounterMode(display=False) as counter:
        y, _ = module(*inputs, **call)
        if backward:
            (y if isinstance(y, torch.Tensor) else y.data).sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}, {"bias": False}], ids=str)
@pytest.mark.parametrize("trains", ["weights", "weights and x", "everything"])
def test_dense(options, trains):
    layer = GRU(3, 4, **options)
    x = torch.randn(5, 2, 3, requires_grad=trains != "weights")
    hx = torch.randn(layer.num_layers * layer.num_directions, 2, 4, requires_grad=trains == "everything")
    for inputs in ((x,), (x, hx)):
        assert flops(layer, *inputs) == flops(layer.to_torch(), *inputs) > 0
        assert flops(layer, *inputs, backward=False) == flops(layer.to_torch(), *inputs, backward=False) > 0


def test_padding_is_not_counted():
    layer, x, lengths = GRU(3, 4), torch.randn(5, 3, 3), torch.tensor([5, 3, 3])
    packed = pack_padded_sequence(x, lengths)
    want = flops(layer.to_torch(), packed)
    assert flops(layer, packed) == flops(layer, x, lengths=lengths) == want


MAKE = "from torch.utils.flop_counter import FlopCounterMode; counter = FlopCounterMode(display=False)"


@pytest.mark.parametrize("before", [f"layer(x); {MAKE}", MAKE, f"{MAKE}; layer(x)"], ids=["after a call", "", "before"])
def test_a_counter_made_at_any_time(before):
    """A counter has its own list of operators from when it was created."""
    code = f"""
import torch, grucore
layer, x = grucore.GRU(3, 4), torch.randn(5, 2, 3)
assert "torch.utils.flop_counter" not in __import__("sys").modules  # it would bring Triton, in a quarter of a second
{before}
with counter:
    layer(x)
print(counter.get_total_flops())
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(result.stdout) == 2 * 10 * 12 * 7
