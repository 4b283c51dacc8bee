"""In 16 bits the state is float32 wherever a call runs, in many steps and under autocast: torch.nn in float64."""

import copy

import pytest
import torch
from oracle import assert_near, compare, quantity, to_oracle
from torch.utils._python_dispatch import TorchDispatchMode

from grucore import GRU

DTYPES = [torch.bfloat16, torch.float16]
T = 500  # a state in 16 bits made y wrong by 4.7e-3 and 5.6e-4


class Watched(TorchDispatchMode):
    """Sees every operator, so that the kernels leave the call to PyTorch's."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def watched(layer, x, hx):
    with Watched():
        return layer(x, hx)


PATHS = {
    "trace": lambda layer, x, hx: layer.trace(x, hx)[:2],
    "vmap": lambda layer, x, hx: torch.func.vmap(layer, (1, 1), (1, 1))(x, hx),
    "dispatch mode": watched,
    "reference": lambda layer, x, hx: layer(x, hx),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_call_left_to_pytorch(dtype, path):
    layer = GRU(6, 8, backend="reference" if path == "reference" else "auto").to(dtype)
    x, hx = torch.randn(T, 3, 6, dtype=dtype), torch.randn(1, 3, 8, dtype=dtype)
    compare(layer, to_oracle(layer), x, hx, call=PATHS[path], call_oracle=lambda m, x, h: m(x, h))


@pytest.mark.parametrize("options", [{}, {"layer_norm": True}, {"activation": "relu"}, {"zoneout": 0.1}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_gradient_with_a_graph(dtype, options):
    layer = GRU(6, 8, **options).to(dtype).eval()
    exact = copy.deepcopy(layer).double()
    x = torch.randn(T, 3, 6, dtype=dtype)
    weights = torch.randn(T, 3, 8, dtype=dtype)

    def gradients(layer, x):
        x = x.clone().requires_grad_()
        y, _ = layer(x)
        return torch.autograd.grad(y, [x, *layer.parameters()], weights.to(x.dtype), create_graph=True)

    names = ["dx", *(quantity(name) for name, _ in layer.named_parameters())]
    for name, got, want in zip(names, gradients(layer, x), gradients(exact, x.double()), strict=True):
        assert_near(name, got, want)


@pytest.mark.parametrize("options", [{}, {"layer_norm": True}, {"zoneout": 0.1}], ids=str)
def test_autocast_reaches_no_gradient(options):
    layer = GRU(6, 8, **options).eval()
    exact = copy.deepcopy(layer).double()
    x = torch.randn(20, 3, 6)

    def gradients(layer, x, is_autocast):
        x = x.clone().requires_grad_()
        y, _ = layer(x)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
            (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return first, *torch.autograd.grad(first.square().sum(), [x, *layer.parameters()])

    names = ["dx", "dx", *(quantity(name) for name, _ in layer.named_parameters())]
    got, want = gradients(layer, x, True), gradients(exact, x.double(), False)
    for name, each, exactly in zip(names, got, want, strict=True):
        assert_near(name, each, exactly)
