"""Parametrised and replaced weights: the oracle is torch.nn.GRU in float64, called with the resulting weights.

As everywhere (pyproject.toml), a warning fails a test. The fused kernels run natively on a GPU, else in Triton's
interpreter.
"""

import copy
import pickle

import pytest
import torch
from oracle import FUSED_LIMITS, LIMITS, assert_near
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize, prune

from grucore import GRU, gru_cell

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = {"eager": torch.float64, "triton": torch.float32}
NAMES = list(nn.GRU(3, 5, 2).state_dict())
each_backend = pytest.mark.parametrize("backend", DTYPES)

pytestmark = [pytest.mark.slow, *([pytest.mark.gpu] if DEVICE == "cuda" else [])]


def drop(weight, training):
    """Drops half of the elements in every training call; drawn on the CPU, so the same for every dtype and device."""
    return weight * (torch.rand(weight.shape) < 0.5).to(weight) * 2 if training else weight


class WeightDrop(nn.Module):
    """The weight drop of AWD-LSTM."""

    def forward(self, weight):
        return drop(weight, self.training)


def dropped(layer):
    parametrize.register_parametrization(layer, "weight_hh_l0", WeightDrop())


def replaced(layer):
    """Weight drop as in fastai: the parameter has another name, and its dropped values the original name."""
    layer.raw = nn.Parameter(layer.weight_hh_l0.detach().clone())
    del layer.weight_hh_l0

    def replace(layer, args):
        layer.weight_hh_l0 = drop(layer.raw, layer.training)

    layer.register_forward_pre_hook(replace)


def weight_norm(layer):
    for name in ("weight_ih_l0", "weight_hh_l1"):
        parametrizations.weight_norm(layer, name)


def spectral_norm(layer):
    parametrizations.spectral_norm(layer, "weight_hh_l0", n_power_iterations=2)


def orthogonal(layer):
    parametrizations.orthogonal(layer, "weight_hh_l0")


def pruned(layer):
    prune.random_unstructured(layer, "weight_hh_l0", 0.4)
    prune.random_structured(layer, "weight_ih_l1", 2, dim=1)


def tied(layer):
    layer.weight_hh_l1 = layer.weight_hh_l0
    layer.bias_hh_l1 = layer.bias_ih_l1 = layer.bias_hh_l0


def frozen(layer):
    layer.weight_hh_l0.requires_grad_(False)


CHANGES = {f.__name__: f for f in (weight_norm, spectral_norm, orthogonal, pruned, dropped, replaced, tied, frozen)}


def layer_for(backend):
    return GRU(3, 5, 2, device=DEVICE, dtype=DTYPES[backend], precision="ieee", backend=backend)


def inputs(layer):
    options = {"device": DEVICE, "dtype": next(layer.parameters()).dtype}
    return torch.randn(4, 2, 3, **options), torch.randn(2, 2, 5, **options)


def changed(backend, change):
    """A layer changed after a call, and a float64 twin with the same values, for the oracle."""
    layer = layer_for(backend)
    layer(*inputs(layer))
    twin = copy.deepcopy(layer).double()
    for each in (layer, twin):
        change(each)
    twin.load_state_dict(layer.state_dict())
    return layer, twin


def weights_of(twin):
    for hook in twin._forward_pre_hooks.values():  # of `pruned` and `replaced`
        hook(twin, ())
    return {name: getattr(twin, name) for name in NAMES}


def nn_gru(weights, *args):
    """torch.nn.GRU in float64, called with these weights."""
    oracle = nn.GRU(3, 5, 2, device=DEVICE, dtype=torch.float64)
    with torch.backends.cudnn.flags(enabled=False):
        return functional_call(oracle, weights, tuple(t.double() for t in args))


def assert_equals_nn_gru(layer, twin):
    """Compares the layer with nn.GRU, called with the weights of the float64 twin."""
    x, hx = inputs(layer)
    d_outputs, results = (torch.randn(4, 2, 5).to(x), torch.randn_like(hx)), []
    for module, dtype in ((layer, x.dtype), (twin, torch.float64)):
        args = [t.detach().to(dtype).requires_grad_() for t in (x, hx)]
        torch.manual_seed(5)  # for random numbers in the call
        y, h_n = layer(*args) if module is layer else nn_gru(weights_of(twin), *args)
        trained = [p for p in module.parameters() if p.requires_grad]
        grads = torch.autograd.grad([y, h_n], [*args, *trained], [d.to(dtype) for d in d_outputs])
        results.append((y, h_n, *grads))
    limits = FUSED_LIMITS if layer.backend == "triton" else LIMITS
    for i, (got, want) in enumerate(zip(*results, strict=True)):
        assert_near("output" if i < 2 else "dw", got, want, limits)


@each_backend
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_weights(change, training, backend):
    layer, twin = changed(backend, change)
    assert_equals_nn_gru(layer.train(training), twin.train(training))


def old_weight_norm(layer):
    nn.utils.weight_norm(layer, "weight_hh_l0")


def old_spectral_norm(layer):
    nn.utils.spectral_norm(layer, "weight_ih_l1")


@each_backend
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("change", [pruned, old_weight_norm, old_spectral_norm, weight_norm])
def test_step_and_trace_read_weights_that_hooks_recompute(change, backend):
    layer = layer_for("auto" if backend == "reference" else backend).eval()
    change(layer)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(1.5)
    x, hx = inputs(layer)
    stepped = layer.step(x[0], hx)
    traced = layer.trace(x[:1], hx) if layer.backend == "auto" else None
    y, h_n = layer(x[:1], hx)
    torch.testing.assert_close(stepped, (y[0], h_n))
    assert traced is None or torch.allclose(traced.y, y, atol=1e-6)


def in_place(layer):
    torch.optim.SGD(layer.parameters(), lr=0.5).step()


def data(layer):
    layer.weight_hh_l1.data = torch.randn_like(layer.weight_hh_l1)


def data_of_another_layout(layer):
    layer.weight_hh_l1.data = torch.randn_like(layer.weight_hh_l1).t().contiguous().t()


def parameter(layer):
    for name in ("weight_ih_l0", "bias_hh_l1"):
        setattr(layer, name, nn.Parameter(torch.randn_like(getattr(layer, name))))


def loaded(layer):
    layer.load_state_dict(layer_for(layer.backend).state_dict())


def assigned(layer):
    layer.load_state_dict(layer_for(layer.backend).state_dict(), assign=True)


def to_dtype(layer):
    """To another dtype, with a call there, and back: the weights are rounded."""
    layer.to({"eager": torch.float32, "triton": torch.float16}[layer.backend])
    layer(*inputs(layer))
    layer.to(DTYPES[layer.backend])


SWAPS = {f.__name__: f for f in (in_place, data, data_of_another_layout, parameter, loaded, assigned, to_dtype)}


@each_backend
@pytest.mark.parametrize("swap", SWAPS.values(), ids=SWAPS)
def test_swapped_after_a_call(swap, backend):
    """Nothing of the first call's weights is kept."""
    layer = layer_for(backend)
    y, _ = layer(*inputs(layer))
    y.sum().backward()
    swap(layer)
    assert_equals_nn_gru(layer, copy.deepcopy(layer).double())


def test_a_call_reads_each_weight_once():
    """spectral_norm's vectors change on each reading."""
    layer, twin = changed("eager", spectral_norm)
    layer(*inputs(layer))
    once, twice = (weights_of(twin) and [b.clone() for b in twin.buffers()] for _ in range(2))
    for got, want, other in zip(layer.buffers(), once, twice, strict=True):
        torch.testing.assert_close(got, want)
        assert not torch.equal(want, other)


@each_backend
def test_functional_call(backend):
    """With computed weights, to which gradients flow back."""
    layer = layer_for(backend)
    given, (x, hx) = {name: torch.randn_like(p) for name, p in layer.named_parameters()}, inputs(layer)
    results = []
    for call, dtype in ((lambda w, *args: functional_call(layer, w, args), x.dtype), (nn_gru, torch.float64)):
        scale = torch.tensor(0.5, device=DEVICE, dtype=dtype, requires_grad=True)
        y, h_n = call({name: value.to(dtype) * scale for name, value in given.items()}, x, hx)
        results.append((y, h_n, *torch.autograd.grad(y.square().sum(), scale)))
    limits = FUSED_LIMITS if backend == "triton" else LIMITS
    for got, want in zip(*results, strict=True):
        assert_near("output", got, want, limits)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda layer: pickle.loads(pickle.dumps(layer))}


@pytest.mark.parametrize("how", COPIES.values(), ids=COPIES)
def test_copies_stay_tied(how):
    layer = layer_for("eager")
    tied(layer)
    twin = how(layer)
    assert twin.weight_hh_l1 is twin.weight_hh_l0 and twin.weight_hh_l0 is not layer.weight_hh_l0
    before = layer.weight_hh_l0.clone()
    with torch.no_grad():
        twin.weight_hh_l0.mul_(2)
    assert torch.equal(layer.weight_hh_l0, before)
    assert_equals_nn_gru(twin, copy.deepcopy(twin).double())


def test_a_deep_copy_of_a_normalised_layer():
    layer, twin = changed("eager", weight_norm)
    layer = copy.deepcopy(layer)
    assert_equals_nn_gru(layer, twin)


def test_steps_read_changed_weights():
    layer, twin = changed("eager", weight_norm)
    x, h = inputs(layer)
    want, h_want = nn_gru(weights_of(twin), x, h)
    for x_t, y_want in zip(x, want, strict=True):
        y, h = layer.step(x_t, h)
        assert_near("output", y, y_want)
    assert_near("output", h, h_want)


@pytest.mark.parametrize("change", [weight_norm, pruned, tied, frozen], ids=lambda f: f.__name__)
def test_to_torch_takes_the_weights_as_they_are(change):
    layer, twin = changed("eager", change)
    copied = layer.to_torch()
    assert list(copied.state_dict()) == NAMES and copied.weight_hh_l0.requires_grad is (change is not frozen)
    for name, value in weights_of(twin).items():
        torch.testing.assert_close(getattr(copied, name), value, rtol=0, atol=1e-15)
    back = GRU.from_torch(copied)
    assert all(torch.equal(getattr(back, name), getattr(copied, name)) for name in NAMES)


def cast_inside(layer):
    return layer.double().float()


def loaded_inside(layer):
    layer.load_state_dict({name: value.clone() for name, value in layer.state_dict().items()}, assign=True)
    return layer


MADE = {"copied": copy.deepcopy, "cast": cast_inside, "loaded": loaded_inside, "made": lambda _: GRU(3, 4)}
CALLS = {
    "dense": lambda layer, x: layer(x),
    "lengths": lambda layer, x: layer(x, lengths=[5, 2]),
    "gates": lambda layer, x: layer.trace(x),
    "step": lambda layer, x: layer.step(x[0]),
    "cell": lambda layer, x: gru_cell(x[0], x.new_zeros(2, 4), *layer.all_weights[0]),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_training_what_was_made_in_inference_mode_raises_as_nn_gru_does(make, call):
    """Operators do not see such tensors, so their gradients would silently be missing."""
    layer = GRU(3, 4)
    with torch.inference_mode():
        layer = make(layer)
    x = torch.randn(5, 2, 3)
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        call(layer, x)
    with torch.no_grad():
        call(layer, x)
    with torch.inference_mode():
        call(layer, x)
    call(copy.deepcopy(layer), x)  # outside, a copy behaves like any other layer
    call(layer.requires_grad_(False), x)
