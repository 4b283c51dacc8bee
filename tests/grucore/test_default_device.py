"""torch.set_default_device applies to new tensors and does not affect given ones."""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

from grucore import GRU, GRUCell, truncated_bptt

X, LENGTHS = torch.randn(5, 2, 3), torch.tensor([3, 5])
MASK, RESET = torch.ones(5, 2, dtype=torch.bool), torch.arange(10).reshape(5, 2) % 3 == 2
PACKED = pack_padded_sequence(X, LENGTHS, enforce_sorted=False)
LAYER, CELL, BOTH = GRU(3, 4), GRUCell(3, 4), GRU(3, 4, bidirectional=True, batch_first=True)
NOISY = GRU(3, 4, zoneout=0.1, recurrent_dropout=0.1)


def second_derivative():
    (first,) = torch.autograd.grad(LAYER(X, mask=MASK)[0].square().sum(), LAYER.weight_hh_l0, create_graph=True)
    return torch.autograd.grad(first.sum(), LAYER.weight_hh_l0)[0]


def gradient():
    return torch.autograd.grad(BOTH(X.transpose(0, 1), lengths=LENGTHS)[0].sum(), BOTH.weight_hh_l0)[0]


CALLS = {
    "dense": lambda: LAYER(X)[0],
    "list of lengths": lambda: LAYER(X, lengths=[3, 5])[0],
    "lengths": lambda: LAYER(X, lengths=LENGTHS)[0],
    "unbatched length": lambda: LAYER(X[:, 0], lengths=3)[0],
    "packed": lambda: LAYER(PACKED)[0].data,
    "mask": lambda: LAYER(X, mask=MASK)[0],
    "reset": lambda: LAYER(X, reset=RESET)[0],
    "reset_state": lambda: LAYER(X, reset=RESET, reset_state=torch.ones_like(X[:1, :, :1]).expand(1, 2, 4))[0],
    "gates": lambda: LAYER.trace(X, reset=RESET).gates.z,
    "gradient": gradient,
    "second derivative": second_derivative,
    "step": lambda: LAYER.step(X[0])[0],
    "cell": lambda: CELL(X[0]),
    "truncated_bptt": lambda: torch.cat([part.y for part in truncated_bptt(LAYER, X, steps=2, lengths=[3, 5])]),
    "variants": lambda: NOISY.eval()(X, lengths=[3, 5])[0],
    "to and from torch": lambda: GRU.from_torch(LAYER.to_torch())(X)[0],
    "fused": lambda: GRU.from_torch(LAYER.to_torch(), backend="triton")(X, lengths=[3, 5], reset=RESET)[0],
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_default_device_does_not_matter(call):
    want = call()
    with torch.device("meta"):  # like torch.set_default_device, temporarily
        got = call()
    assert got.device.type == "cpu" and torch.equal(got, want)


def test_noise_is_drawn_where_the_input_is():
    with torch.device("meta"):
        y, _ = NOISY.train()(X, lengths=LENGTHS)
    assert y.device.type == "cpu" and y.isfinite().all()


def test_a_dequantised_layer_is_on_the_cpu():
    quantized = GRU(3, 4).quantize("int8")
    with torch.device("meta"):
        layer = quantized.dequantize()
    assert {p.device.type for p in layer.parameters()} == {"cpu"}
