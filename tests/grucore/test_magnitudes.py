"""Inputs and weights of every magnitude: no digits are lost for small values or nearly open gates.

The limits are those of `oracle.py`. Large inputs are rounded before they reach a gate, which nothing can fix: there the
error may also be twice that of torch.nn.GRU in the same dtype, which depends on the order in which it adds the features
and units. So it is computed several times, in different orders.
"""

import copy

import pytest
import torch
from oracle import LIMITS, quantity, rms_error
from torch import nn

from grucore import GRU, GRUCell

MAGNITUDES = [1e-8, 1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4]
CASES = [(dtype, s) for dtype in (torch.float64, torch.float32, torch.bfloat16) for s in MAGNITUDES]
CASES += [(torch.float16, s) for s in (1e-2, 1.0, 1e2)]  # whose own range is small
BIASES = ["absent", "zero", "drawn"]


def with_biases(kind, biases, **options):
    """A layer or cell of 8 features and 64 units with drawn, zero or absent biases."""
    layer = kind(8, 64, bias=biases != "absent", **options)
    for name, parameter in layer.named_parameters():
        if "bias" in name and biases == "zero":
            nn.init.zeros_(parameter)
    return layer


def results(module, x, hx, units=slice(None), **call):
    """y, h_n and all gradients, for a weighted sum of the outputs as loss, in that order of units."""
    x, hx = x.detach().requires_grad_(), hx.detach().requires_grad_()
    outputs = module(x, hx, **call)
    outputs = dict(zip(("y", "h_n"), [outputs] if isinstance(outputs, torch.Tensor) else outputs, strict=False))
    weights = torch.Generator().manual_seed(1)
    weigh = [torch.randn(y.shape, generator=weights).to(y.dtype)[..., units] for y in outputs.values()]
    inputs = {"dx": x, "dh0": hx, **dict(module.named_parameters())}
    return outputs | dict(zip(inputs, torch.autograd.grad([*outputs.values()], [*inputs.values()], weigh), strict=True))


def reordered(module, x, hx):
    """The outputs and gradients of `results`, with features and units internally in random order."""
    features, units = torch.randperm(x.shape[-1]), torch.randperm(hx.shape[-1])
    gates = torch.cat([units + gate * len(units) for gate in range(3)])
    orders = {"ih": (gates, features), "hh": (gates, units)}  # of a weight's dimensions, or of a bias
    there = copy.deepcopy(module)
    for name, parameter in there.named_parameters():
        rows, columns = orders["ih" if "ih" in name else "hh"]
        parameter.data = parameter.data[rows][:, columns] if parameter.dim() == 2 else parameter.data[rows]
    back = results(there, x[..., features], hx[..., units], units)
    for name, value in back.items():
        if name in ("y", "h_n", "dx", "dh0"):
            back[name] = value[..., (features if name == "dx" else units).argsort()]
        else:
            rows, columns = orders["ih" if "ih" in name else "hh"]
            back[name] = value[rows.argsort()] if value.dim() == 1 else value[rows.argsort()][:, columns.argsort()]
    return back


def own_errors(module, x, hx, want):
    """The largest RMS error of each result of `module` in six orders."""
    runs = [reordered(module, x, hx) for _ in range(6)]
    return {name: max(rms_error(run[name], want[name]) for run in runs) for name in want}


def assert_all_near(got, want, dtype, theirs=None):
    for name, value in got.items():
        kind = {"y": "output", "h_n": "output", "dx": "dx", "dh0": "dh0"}.get(name) or quantity(name)
        error, limit = rms_error(value, want[name]), LIMITS[dtype][kind]
        limit = limit if theirs is None else max(limit, 2 * theirs[name])
        assert error <= limit, f"{name}: RMS error {error:.1e}, the limit is {limit:.1e}"


@pytest.mark.parametrize("biases", BIASES)
@pytest.mark.parametrize("dtype, magnitude", CASES, ids=str)
def test_layer(dtype, magnitude, biases):
    layer = with_biases(GRU, biases, dtype=dtype)
    x, hx = ((magnitude * torch.randn(shape)).to(dtype) for shape in ((6, 64, 8), (1, 64, 64)))
    want = results(layer.to_torch().double(), x.double(), hx.double())
    theirs = own_errors(layer.to_torch(), x, hx, want) if magnitude > 1 else None
    assert_all_near(results(layer, x, hx), want, dtype, theirs)


@pytest.mark.parametrize("biases", BIASES)
@pytest.mark.parametrize("magnitude", MAGNITUDES)
def test_cell_and_step(magnitude, biases):
    """With and without gradients, which run different operators."""
    cell = with_biases(GRUCell, biases)
    oracle = cell.to_torch().double()
    x, hx = magnitude * torch.randn(64, 8), magnitude * torch.randn(64, 64)
    want = results(oracle, x.double(), hx.double())
    theirs = own_errors(cell.to_torch(), x, hx, want) if magnitude > 1 else None
    assert_all_near(results(cell, x, hx), want, torch.float32, theirs)
    layer = with_biases(GRU, biases)
    layer.load_state_dict({f"{name}_l0": value for name, value in cell.state_dict().items()})
    with torch.no_grad():
        for got in (cell(x, hx), layer.step(x, hx[None])[0]):
            assert rms_error(got, want["y"]) <= LIMITS[torch.float32]["output"]


PATHS = {
    "two directions": ({"bidirectional": True}, {}),
    "two layers": ({"num_layers": 2}, {}),
    "packed": ({}, {"lengths": torch.arange(64) % 7}),
    "reset before": ({"reset_after": False}, {}),
    "reset before, packed": ({"reset_after": False}, {"lengths": torch.arange(64) % 7}),
}


@pytest.mark.parametrize("options, call", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("magnitude", [s for s in MAGNITUDES if s <= 1])
def test_other_paths(magnitude, options, call):
    """Against the same layer in float64, which other tests compare with torch.nn.GRU."""
    layer = with_biases(GRU, "absent", **options)
    x = magnitude * torch.randn(6, 64, 8)
    hx = magnitude * torch.randn(layer.num_layers * layer.num_directions, 64, 64)
    got = results(layer, x, hx, **call)
    assert_all_near(got, results(layer.double(), x.double(), hx.double(), **call), torch.float32)


@pytest.mark.parametrize("magnitude", [s for s in MAGNITUDES if s <= 1])
def test_autocast(magnitude):
    layer = with_biases(GRU, "absent", dtype=torch.bfloat16).float()  # so that the cast changes nothing
    x, hx = (magnitude * torch.randn(shape).bfloat16().float() for shape in ((6, 64, 8), (1, 64, 64)))
    want = results(layer.to_torch().double(), x.double(), hx.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_all_near(results(layer, x, hx), want, torch.bfloat16)


@pytest.mark.parametrize("reset_after", [True, False], ids=["reset-after", "reset-before"])
@pytest.mark.parametrize("bias", [5.0, 10.0, 15.0])
def test_gates_that_are_nearly_open(bias, reset_after):
    """A long memory: 1 - z is 3e-7 at a bias of 15, where torch.nn.GRU's outputs are off by a tenth."""
    layer = GRU(8, 64, reset_after=reset_after)
    with torch.no_grad():
        layer.bias_hh_l0[:128] += bias
        layer.bias_hh_l0[128:] += bias / 2  # n is nearly 1 as well
    x, hx = torch.randn(6, 64, 8), torch.zeros(1, 64, 64)
    got = results(layer, x, hx)
    assert_all_near(got, results(layer.double(), x.double(), hx.double()), torch.float32)
