"""torch.jit.trace: the same values and gradients as the module, also where it was traced without gradients."""

import pytest
import torch
from torch import nn

from grucore import GRU, GRUCell
from grucore.kernels.native.library import UNAVAILABLE


class Call(nn.Module):
    """A module whose forward is a function of a layer and tensors."""

    def __init__(self, layer, function):
        super().__init__()
        self.layer, self.function = layer, function

    def forward(self, *tensors):
        return self.function(self.layer, *tensors)


def unrolled(cell, x, h):
    for x_t in x.unbind():
        h = cell(x_t, h)
    return h


def sequence(steps=5, batch=2):
    return torch.randn(steps, batch, 3)


LENGTHS = lambda layer, x, lengths: layer(x, lengths=lengths)[0]  # noqa: E731
CASES = {  # a layer, what is called, tensors to trace with, and others to compare with
    "cell": (GRUCell(3, 4), lambda m, x, h: m(x, h), (torch.randn(2, 3), torch.randn(2, 4)), None),
    "cell, no state": (GRUCell(3, 4, bias=False), lambda m, x: m(x), (torch.randn(2, 3),), None),
    "cell, reset before": (GRUCell(3, 4, reset_after=False), lambda m, x: m(x), (torch.randn(2, 3),), None),
    "loop over a cell": (GRUCell(3, 4), unrolled, (sequence(), torch.randn(2, 4)), None),
    "step": (GRU(3, 4, 2), lambda m, x, h: m.step(x, h)[0], (torch.randn(2, 3), torch.randn(2, 2, 4)), None),
    "dense": (GRU(3, 4, 2, bidirectional=True), lambda m, x: m(x)[0], (sequence(),), (sequence(9, 3),)),
    "final state": (
        GRU(3, 4, 2, bidirectional=True),
        lambda m, x, lengths: m.final_state(m(x, lengths=lengths)[1]),
        (sequence(), torch.tensor([5, 2])),
        (sequence(9, 3), torch.tensor([0, 9, 4])),
    ),
    "lengths": (
        GRU(3, 4, 2, bidirectional=True),
        LENGTHS,
        (sequence(), torch.tensor([5, 2])),
        (sequence(9, 3), torch.tensor([0, 9, 4])),
    ),
    "unbatched": (
        GRU(3, 4),
        LENGTHS,
        (torch.randn(5, 3), torch.tensor(4)),
        (torch.randn(9, 3), torch.tensor(2)),
    ),
    "mask": (
        GRU(3, 4, batch_first=True),
        lambda m, x, mask: m(x, mask=mask)[0],
        (sequence(), torch.ones(5, 2, dtype=torch.bool)),
        (sequence(9, 3), torch.arange(27).reshape(9, 3) % 4 > 0),
    ),
    "options": (
        GRU(3, 4, 2, bidirectional=True, layer_norm=True, zoneout=0.1, activation="relu").eval(),
        LENGTHS,
        (sequence(), torch.tensor([5, 2])),
        None if UNAVAILABLE else (sequence(9, 3), torch.tensor([0, 9, 4])),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("gradients", [True, False], ids=["with gradients", "no_grad"])
@pytest.mark.parametrize("layer, function, example, other", CASES.values(), ids=CASES)
def test_a_trace_computes_and_trains_as_its_module(layer, function, example, other, gradients):
    module = Call(layer, function)
    with torch.set_grad_enabled(gradients):
        traced = torch.jit.trace(module, example)
    tensors = [2 * t if t.is_floating_point() else t for t in example] if other is None else other
    parameters = list(module.parameters())
    want, got = module(*tensors), traced(*tensors)
    torch.testing.assert_close(got, want)
    for g, w in zip(*(torch.autograd.grad(y.square().sum(), parameters) for y in (got, want)), strict=True):
        torch.testing.assert_close(g, w)
    with torch.no_grad():
        torch.testing.assert_close(traced(*tensors), want)


TRACED = torch.randn(5, 2, 3), torch.randn(1, 2, 4), torch.tensor([5, 2])
WRONG = {
    "features": (torch.randn(5, 2, 7), *TRACED[1:]),
    "dtype": (TRACED[0].double(), *TRACED[1:]),
    "rows of hx": (TRACED[0], torch.randn(1, 8, 4), TRACED[2]),
    "units of hx": (TRACED[0], torch.randn(1, 2, 5), TRACED[2]),
    "layers of hx": (TRACED[0], torch.randn(3, 2, 4), TRACED[2]),
    "one length": (*TRACED[:2], torch.tensor([5])),
    "too many lengths": (*TRACED[:2], torch.randint(0, 6, (4000,))),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("layer", [GRU(3, 4), GRU(3, 4).quantize("int8")], ids=["float", "quantised"])
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
@torch.no_grad()
def test_a_trace_refuses_sizes_that_do_not_fit(layer, wrong):
    """It runs without the checks of a call, and the kernels trust sizes."""
    call = Call(layer, lambda m, x, hx, lengths: m(x, hx, lengths=lengths)[0])
    traced = torch.jit.trace(call, TRACED, check_trace=False)  # of float32, for the quantised one
    torch.testing.assert_close(traced(*TRACED), call(*TRACED), atol=1e-2, rtol=0)
    with pytest.raises(RuntimeError, match=r"a layer that reads .* needs .* got|split_with_sizes"):
        traced(*wrong)
    with pytest.raises(RuntimeError):
        torch.jit.trace(call, wrong, check_trace=False)
