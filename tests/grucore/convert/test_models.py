"""Whole models: torch.nn's layers are replaced by ours in place, and back."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import grucore
from grucore import GRU, GRUCell
from grucore.convert import replace_torch, restore_torch

TORCH = {"gru": nn.GRU, "cell": nn.GRUCell}


class Model(nn.Module):
    """A shared layer, a cell, a layer in a container, and layers that are left unchanged."""

    def __init__(self):
        super().__init__()
        self.first = TORCH["gru"](3, 4, num_layers=2, bidirectional=True)
        self.again = self.first
        self.cell = TORCH["cell"](8, 3)
        self.head = nn.Sequential(nn.Linear(3, 3), TORCH["gru"](3, 3, bias=False, batch_first=True))
        self.lstm = nn.LSTM(3, 3)

    def forward(self, x):
        y, _ = self.first(x)
        return self.lstm(self.head(self.cell(y[-1])[None])[0])[0]


@pytest.fixture
def x():
    return torch.randn(5, 2, 3)


@pytest.fixture
def model():
    return Model().eval()


def gradients(model, x):
    return torch.autograd.grad(model(x).square().sum(), list(model.parameters()), materialize_grads=True)


def assert_same(got, want):
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w)


def test_there_and_back(model, x):
    """The same layers, parameters, results and gradients, and in the end the original types and attributes."""
    layers, parameters, want = dict(model.named_modules()), list(model.parameters()), model(x)
    attributes = {name: set(vars(layer)) for name, layer in layers.items()}
    want_gradients = gradients(model, x)
    assert replace_torch(model) == ["first", "cell", "head.1"]
    assert type(model.first) is type(model.head[1]) is GRU and type(model.cell) is GRUCell
    assert type(model.lstm) is nn.LSTM and not model.first.training
    assert all(model.get_submodule(name) is layer for name, layer in layers.items()) and model.again is model.first
    assert all(p is q for p, q in zip(model.parameters(), parameters, strict=True))
    torch.testing.assert_close(model(x), want)
    assert_same(gradients(model, x), want_gradients)
    assert repr(model.first) == "GRU(3, 4, num_layers=2, bidirectional=True)"
    assert set(vars(model.first)) == set(vars(GRU(3, 4)))

    assert restore_torch(model) == ["first", "cell", "head.1"]
    assert type(model.first) is nn.GRU and type(model.cell) is nn.GRUCell
    assert {name: set(vars(layer)) for name, layer in model.named_modules()} == attributes
    torch.testing.assert_close(model(x), want)
    assert_same(gradients(model, x), want_gradients)


def test_hooks_and_their_handles_go_on(model, x):
    calls = []
    handle = model.first.register_forward_hook(lambda *_: calls.append("forward"))
    model.cell.register_full_backward_hook(lambda *_: calls.append("backward"))
    replace_torch(model)
    model(x).sum().backward()
    assert calls == ["forward", "backward"]
    handle.remove()
    model(x)
    assert calls == ["forward", "backward"]


def test_an_optimizer_goes_on(model, x):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    replace_torch(model)
    before = model.first.weight_hh_l0.detach().clone()
    model(x).sum().backward()
    optimizer.step()
    assert not torch.equal(model.first.weight_hh_l0, before)


def test_copies_pickles_and_state_dicts(model, x):
    state = model.state_dict()
    replace_torch(model)
    assert list(model.state_dict()) == list(state)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other.first) is GRU and torch.equal(other(x), model(x))
    restore_torch(model)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))


def test_a_layer_itself(x):
    layer = nn.GRU(3, 4)
    assert replace_torch(layer, backend="eager") == [""]
    assert type(layer) is GRU and layer.backend == "eager"
    assert restore_torch(layer) == [""] and type(layer) is nn.GRU


WEIGHTS = {
    "weight_norm": lambda layer: parametrizations.weight_norm(layer, "weight_hh_l0"),
    "orthogonal": lambda layer: parametrizations.orthogonal(layer, "weight_hh_l0"),
    "pruned": lambda layer: prune.random_unstructured(layer, "weight_hh_l0", 0.5),
}


@pytest.mark.parametrize("change", WEIGHTS.values(), ids=WEIGHTS)
def test_weights_made_of_others(change, x):
    layer = nn.GRU(3, 4)
    change(layer)
    model, want = nn.Sequential(layer), layer(x)[0]
    for function in (replace_torch, restore_torch):
        assert function(model) == ["0"]
        torch.testing.assert_close(layer(x)[0], want)
        layer.zero_grad()
        layer(x)[0].sum().backward()
        assert all(p.grad is not None for p in layer.parameters())


def test_subclasses_are_left():
    class Own(nn.GRU):
        pass

    model = nn.ModuleList([Own(3, 4), nn.GRU(3, 4)])
    assert replace_torch(model) == ["1"] and type(model[0]) is Own


def test_an_option_that_torch_lacks_is_named_before_anything_changes():
    model = nn.ModuleDict({"plain": GRU(3, 4), "own": GRU(3, 4, zoneout=0.1)})
    with pytest.raises(ValueError, match=r"torch.nn.GRU has no zoneout=0.1, so 'own' cannot be converted"):
        restore_torch(model)
    assert type(model["plain"]) is GRU
    with pytest.raises(ValueError, match=r"torch.nn.GRUCell has no reset_after=False, so the model cannot"):
        restore_torch(GRUCell(3, 4, reset_after=False))


def test_a_layer_that_cannot_be_ours_is_named_before_anything_changes():
    model = nn.Sequential(nn.GRU(3, 4), nn.GRU(4, 4))
    model[1].hidden_size = -1
    with pytest.raises(ValueError, match="hidden_size"):
        replace_torch(model)
    assert type(model[0]) is nn.GRU


def test_flags_that_are_integers(x):
    """torch.nn.GRU is made with 1 for True, though it cannot be called."""
    model = nn.Sequential(nn.GRU(3, 4), nn.GRU(3, 4, bidirectional=1))
    assert replace_torch(model) == ["0", "1"] and model[1].bidirectional is True
    assert model[1](x)[0].shape == (5, 2, 8)


@pytest.mark.parametrize("there", [GRU.from_torch, GRU.to_torch], ids=["from_torch", "to_torch"])
def test_tied_weights_stay_tied_in_a_copy(there, x):
    layer = nn.GRU(3, 4, bidirectional=True) if there == GRU.from_torch else GRU(3, 4, bidirectional=True)
    layer.weight_hh_l0_reverse = layer.weight_hh_l0
    copied = there(layer)
    assert copied.weight_hh_l0_reverse is copied.weight_hh_l0 and copied.weight_hh_l0 is not layer.weight_hh_l0
    torch.testing.assert_close(copied(x)[0], layer(x)[0])


def test_tied_weights_stay_tied_without_heads(x):
    layer = GRU(3, 4, bidirectional=True, heads=2)
    layer.weight_hh_l0_reverse = layer.weight_hh_l0
    dense = layer.to_dense()
    assert dense.weight_hh_l0_reverse is dense.weight_hh_l0
    torch.testing.assert_close(dense(x)[0], layer(x)[0])


class WithMore(GRU):
    """A layer with parameters of its own, and a parametrised one."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.more = nn.Linear(2, 2)
        nn.utils.parametrizations.weight_norm(self, "weight_ih_l0")


def test_a_subclass_may_have_more(x):
    theirs = nn.GRU(3, 4)
    ours = WithMore.from_torch(theirs)
    assert type(ours.more) is nn.Linear
    for copied in (ours, ours.to_torch(), WithMore(3, 4, heads=2).to_dense()):
        assert isinstance(copied(x)[0], torch.Tensor)
    torch.testing.assert_close(ours(x)[0], theirs(x)[0])
    torch.testing.assert_close(ours.to_torch()(x)[0], theirs(x)[0])


@pytest.mark.parametrize("function", [replace_torch, restore_torch])
def test_what_is_not_a_module(function):
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module, got list"):
        function([nn.GRU(3, 4)])
    model = nn.Sequential(nn.GRU(3, 4))
    with pytest.raises(ValueError, match="backend must be one of"):
        replace_torch(model, backend="fast")
    assert type(model[0]) is nn.GRU


def test_a_program_that_put_ours_in_the_place_of_torchs(monkeypatch, x):
    """Like the migration in one line: torch.nn.GRU = grucore.GRU."""
    theirs, cell = nn.GRU(3, 4), nn.GRUCell(3, 4)
    monkeypatch.setattr(torch.nn, "GRU", grucore.GRU)
    monkeypatch.setattr(torch.nn, "GRUCell", grucore.GRUCell)
    layer = GRU.from_torch(theirs)
    torch.testing.assert_close(layer(x)[0], theirs(x)[0])
    assert type(layer.to_torch()) is TORCH["gru"]
    assert type(GRUCell.from_torch(cell).to_torch()) is TORCH["cell"]
    model = Model()
    assert replace_torch(model) == restore_torch(model) == ["first", "cell", "head.1"]


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"dtype": torch.float64}], ids=str)
def test_cells_are_copied_exactly(options):
    cell = nn.GRUCell(3, 4, **options).eval()
    ours = GRUCell.from_torch(cell, backend="eager")
    assert not ours.training and ours.backend == "eager"
    back = ours.to_torch()
    for name, value in cell.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value) and torch.equal(back.state_dict()[name], value)
    with pytest.raises(TypeError, match=r"from_torch needs a torch.nn.GRUCell, got GRU"):
        GRUCell.from_torch(nn.GRU(3, 4))
    with pytest.raises(ValueError, match="reset_after=False"):
        GRUCell(3, 4, reset_after=False).to_torch()


TOOLS = {
    "jit.script": lambda model: torch.jit.script(model),
    "fx": lambda model: torch.fx.symbolic_trace(model),
    "quantize_dynamic": lambda model: torch.ao.quantization.quantize_dynamic(model, {nn.GRU}),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*quantized tensor creation:UserWarning")
@pytest.mark.parametrize("tool", TOOLS.values(), ids=TOOLS)
def test_tools_that_know_torchs_layers_only(tool, x):
    model = nn.Sequential(GRU(3, 4)).eval()
    restore_torch(model)
    torch.testing.assert_close(tool(model)(x)[0], model(x)[0], atol=0.1, rtol=0)
