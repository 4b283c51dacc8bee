"""The torch.library operators: contract, gradients of gradients, torch.compile."""

import subprocess
import sys

import pytest
import torch
from contract import DEVICE
from oracle import to_oracle
from torch._dynamo import compiled_autograd
from torch._dynamo.testing import CompileCounterWithBackend

from grucore import GRU, ops
from grucore.kernels.native.library import UNAVAILABLE
from grucore.kernels.regularised import Variant

FLAGS = ["dense", "lengths", "mask and reset"]


def arguments(backend, flags, directions, reset_after, bias=True, heads=1, variant=None, T=4, B=3, I=2, H=3):  # noqa: E741
    def tensor(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    real = start = None
    if flags == "lengths":
        real = torch.arange(T).unsqueeze(1) < torch.tensor([T, 0, 2])
    if flags == "mask and reset":
        real, start = torch.rand(T, B) < 0.7, torch.rand(T, B) < 0.4
    D = directions * heads
    h_reset = tensor(D, B, H) if start is not None and bias else None
    weights = (
        tensor(D, 3 * H, I),
        tensor(D, 3 * H, H),
        *((tensor(D, 3 * H), tensor(D, 3 * H)) if bias else (None, None)),
    )
    variant = variant or Variant()
    gains = (tensor(D, 3 * H), tensor(D, 3 * H)) if variant.layer_norm else (None, None)
    inputs = tensor(T, B, I), tensor(D, B, H), h_reset, *weights, *gains
    options = (torch.tensor(5) if variant.training else None, reset_after, "ieee", heads, *ops.options_of(variant))
    return *inputs, real, start, *options, backend, False


NEEDS_NATIVE = pytest.mark.skipif(UNAVAILABLE is not None, reason=UNAVAILABLE or "")
BACKENDS = ["eager", *([] if UNAVAILABLE else ["native"])]
CASES = [
    ("dense", 1, True, True),
    ("dense", 2, False, False),
    ("lengths", 2, True, True),
    ("mask and reset", 2, True, True),
    ("mask and reset", 1, False, False),
    ("mask and reset", 2, True, True, 3),
]
VARIANTS = [
    Variant(0.3, 0.2, True, "softsign", "hard_sigmoid", training=True),
    Variant(0.0, 0.2),
    Variant(layer_norm=True),
    Variant(activation="hard_tanh"),
]
GIVEN = [(backend, case) for backend in BACKENDS for case in CASES]
GIVEN += [("native", ("mask and reset", 2, True, True, 1, variant)) for variant in VARIANTS if "native" in BACKENDS]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # opcheck's own
@pytest.mark.parametrize("backend, case", GIVEN, ids=str)
def test_operator_contract(backend, case):
    given = arguments(backend, *case)
    torch.library.opcheck(torch.ops.grucore.gru_layer.default, given)


@pytest.mark.slow
@pytest.mark.parametrize("backend, case", GIVEN, ids=str)
def test_first_and_second_derivatives(backend, case):
    args = arguments(backend, *case)
    tensors, fixed = [t for t in args[:9] if t is not None], (*args[9:-1], True)

    def layer(*tensors):
        given = iter(tensors)
        return torch.ops.grucore.gru_layer(*(None if t is None else next(given) for t in args[:9]), *fixed)[:2]

    assert torch.autograd.gradcheck(layer, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(layer, tensors, fast_mode=True)


def test_third_derivative_and_inputs_that_depend_on_one_another():
    """hx is computed from x; a gradient must not count that path twice. The oracle is nn.GRU on CPU, to third order."""
    layer = GRU(2, 3, dtype=torch.float64)
    oracle = to_oracle(layer)
    x = torch.randn(3, 2, 2, dtype=torch.float64)

    def third(module):
        x_ = x.clone().requires_grad_()
        value = module(x_, x_.sum(-1, keepdim=True)[:1].expand(1, 2, 3).sin().contiguous())[0].sin().sum()
        for _ in range(3):
            (grad,) = torch.autograd.grad(value, x_, create_graph=True)
            value = grad.sin().sum()
        return grad

    torch.testing.assert_close(third(layer), third(oracle))


def test_second_derivatives_of_the_fused_layer():
    layer = GRU(2, 3, device=DEVICE, precision="ieee", backend="triton")
    oracle = to_oracle(layer)
    x = torch.randn(4, 2, 2, device=DEVICE)
    results = []
    for module, dtype in ((layer, torch.float32), (oracle, torch.float64)):
        x_ = x.to(dtype).requires_grad_()
        with torch.backends.cudnn.flags(enabled=False):
            (dx,) = torch.autograd.grad(module(x_)[0].sin().sum(), x_, create_graph=True)
        results.append(torch.autograd.grad(dx.square().sum(), [x_, *module.parameters()]))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)


def test_gradient_penalty_step():
    """WGAN-GP: the gradient of a gradient's norm reaches the weights."""
    layer = GRU(4, 8, num_layers=2, bidirectional=True, dtype=torch.float64)
    oracle = to_oracle(layer)
    x = torch.randn(6, 3, 4, dtype=torch.float64)
    penalties = []
    for module in (layer, oracle):
        x_ = x.clone().requires_grad_()
        (dx,) = torch.autograd.grad(module(x_)[0].sum(), x_, create_graph=True)
        ((dx.norm(2, dim=(0, 2)) - 1) ** 2).mean().backward()
        penalties.append([p.grad for p in module.parameters()])
    for got, want in zip(*penalties, strict=True):
        torch.testing.assert_close(got, want)


def test_gradients_in_eval_mode():
    layer, x = GRU(3, 4, num_layers=2, dropout=0.5).eval(), torch.randn(5, 2, 3, requires_grad=True)
    layer(x)[0].sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"backend": "eager"},
        {"backend": "eager", "bias": False},
        {"backend": "triton"},
        {"backend": "triton", "zoneout": 0.2, "recurrent_dropout": 0.3},
        pytest.param({"layer_norm": True, "zoneout": 0.2, "activation": "relu"}, marks=NEEDS_NATIVE),
        pytest.param({"recurrent_dropout": 0.3, "recurrent_activation": "hard_sigmoid"}, marks=NEEDS_NATIVE),
    ],
    ids=str,
)
def test_compiles_whole_and_once_for_all_lengths(options):
    """No graph break, and no recompilation when T or B changes."""
    torch._dynamo.reset()
    device = DEVICE if "backend" in options else "cpu"
    layer = GRU(3, 4, num_layers=2, bidirectional=True, **options, device=device)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    graphs = None
    for T, B in ((7, 11), (12, 5), (6, 9)):
        x = torch.randn(T, B, 3, device=device, requires_grad=True)
        lengths = torch.arange(B, device=device) % (T + 1)
        grads = []
        for module in (compiled, layer):
            torch.manual_seed(0)
            y, h_n = module(x, lengths=lengths)
            grads.append((y, *torch.autograd.grad(y.sum() + h_n.sum(), [x, *layer.parameters()])))
        torch.testing.assert_close(*grads)
        graphs = graphs or counter.frame_count
        assert counter.frame_count == graphs


@pytest.mark.slow
def test_a_first_call_does_not_import_the_compiler():
    """Importing torch._dynamo takes a second or two; without compiling nobody should wait for it."""
    code = "import sys, torch, grucore; grucore.GRU(2, 3)(torch.ones(4, 1, 2))[0].sum().backward()"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'torch._dynamo' not in sys.modules"], check=True)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # PyTorch's own
@pytest.mark.parametrize(
    "options",
    [{}, {"backend": "eager"}, pytest.param({"layer_norm": True, "zoneout": 0.1, "device": "cpu"}, marks=NEEDS_NATIVE)],
    ids=str,
)
def test_compiled_autograd_traces_the_backward_pass(options):
    """Without breaks of the graph, and with the gradients of a backward pass that nobody traces."""
    layer = GRU(3, 4, **{"device": DEVICE, **options}).eval()
    for steps in (5, 7, 9):
        x = torch.randn(steps, 2, 3, device=options.get("device", DEVICE))
        expected = torch.autograd.grad(layer(x)[0].square().sum(), list(layer.parameters()))
        layer.zero_grad()
        loss = layer(x)[0].square().sum()
        with compiled_autograd._enable(torch.compile(backend="aot_eager", fullgraph=True)):
            loss.backward()
        for parameter, gradient in zip(layer.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)


def test_a_program_needs_the_kernels_that_it_was_saved_with(monkeypatch):
    monkeypatch.setattr(ops, "UNAVAILABLE", "there is no compiler")
    with pytest.raises(RuntimeError, match=r"a program that was saved .* cannot run here: there is no compiler"):
        torch.ops.grucore.gru_layer(*arguments("native", *CASES[0]))
