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


def test_a_counter_made_at_any_time():
    """A counter has its own list of operators, made when the counter was: before, after or without a call."""
    code = f"""
import os, sys, torch, grucore
layer, x = grucore.GRU(3, 4), torch.randn(5, 2, 3)
assert "torch.utils.flop_counter" not in sys.modules  # it would import Triton, which takes a quarter of a second
for before in ("layer(x); {MAKE}", "{MAKE}", "{MAKE}; layer(x)"):
    if os.fork():
        assert os.wait()[1] == 0, before
    else:
        exec(before)
        with counter:
            layer(x)
        assert counter.get_total_flops() == 2 * 10 * 12 * 7
        os._exit(0)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_steps_cost_nothing():
    layer, x = GRU(3, 4), torch.randn(0, 2, 3)
    with FlopCounterMode(display=False) as counter:
        y, h_n = layer(x)
        (y.sum() + h_n.sum()).backward()
    assert counter.get_total_flops() == 0
