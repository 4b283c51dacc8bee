"""GRU and GRUCell as drop-in replacements: everything about torch.nn.GRU except its arithmetic."""

import copy
import inspect
import io
import pickle
import warnings

import numpy as np
import pytest
import torch
from oracle import assert_near
from torch import nn
from torch.nn.utils import parametrize

from grucore import GRU, GRUCell, InputError, gru, gru_cell

CONFIGURATIONS = [
    {},
    {"num_layers": 3, "bias": False},
    {"num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": 0.25},
]


def readable(options):
    return "-".join(f"{name}={value}" for name, value in options.items()) or "default"


@pytest.fixture(params=CONFIGURATIONS, ids=readable)
def pair(request):
    """The same layer, made by both libraries from the same seed."""
    layers = []
    for kind in (GRU, nn.GRU):
        torch.manual_seed(3)
        layers.append(kind(4, 5, **request.param))
    return layers


def test_same_seed_gives_the_same_parameters(pair):
    ours, theirs = (dict(layer.named_parameters()) for layer in pair)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_same_representation(pair):
    assert repr(pair[0]) == repr(pair[1])


def test_representation_shows_what_nn_gru_lacks():
    assert repr(GRU(3, 4, reset_after=False, backend="eager")) == "GRU(3, 4, reset_after=False, backend='eager')"
    assert repr(GRUCell(3, 4, bias=False, reset_after=False)) == "GRUCell(3, 4, bias=False, reset_after=False)"


def test_same_all_weights(pair):
    for ours, theirs in zip(pair[0].all_weights, pair[1].all_weights, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_same_arguments_in_the_same_order():
    documented = ["input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional"]
    documented += ["device", "dtype"]
    parameters = inspect.signature(GRU).parameters
    assert list(parameters)[: len(documented)] == documented
    assert all(parameters[name].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for name in documented)
    layer = GRU(4, 5, 2, False, True, 0.1, True, "cpu", torch.float64)
    assert repr(layer) == repr(nn.GRU(4, 5, 2, False, True, 0.1, True))
    assert layer.weight_ih_l0.dtype is torch.float64


def test_state_dict_loads_both_ways(pair):
    ours, theirs = pair
    with torch.no_grad():
        ours.weight_hh_l0.add_(1)
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(theirs.weight_hh_l0, ours.weight_hh_l0)
    with torch.no_grad():
        theirs.weight_ih_l0.add_(1)
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(theirs.weight_ih_l0, ours.weight_ih_l0)


def test_from_and_to_torch_are_exact(pair):
    theirs = pair[1].double().eval()
    theirs.weight_hh_l0.requires_grad_(False)
    ours = GRU.from_torch(theirs)
    back = ours.to_torch()
    for layer in (ours, back):
        assert repr(layer) == repr(theirs)
        assert not layer.training and not layer.weight_hh_l0.requires_grad and layer.weight_ih_l0.requires_grad
        for name, value in theirs.state_dict().items():
            assert torch.equal(layer.state_dict()[name], value)
            assert layer.state_dict()[name].data_ptr() != value.data_ptr()


def test_conversion_refuses_what_has_no_equal():
    with pytest.raises(TypeError, match=r"needs a torch.nn.GRU, got LSTM"):
        GRU.from_torch(nn.LSTM(3, 4))
    with pytest.raises(ValueError, match="no reset_after=False"):
        GRU(3, 4, reset_after=False).to_torch()


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_independent_and_equal(pair, how):
    layer, x = pair[0].eval(), torch.randn(3, 3, 4)
    if how == "deepcopy":
        twin = copy.deepcopy(layer)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(layer))
    else:
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    assert all(torch.equal(a, b) for a, b in zip(layer(x), twin(x), strict=True))
    with torch.no_grad():
        twin.weight_hh_l0.zero_()
    assert layer.weight_hh_l0.count_nonzero() > 0


@pytest.mark.parametrize("layer", [GRU(4, 5), GRUCell(4, 5)], ids=["GRU", "GRUCell"])
def test_a_pickle_of_before_an_option_was_there(layer):
    state = layer.__getstate__()
    for name in ("heads", "zoneout", "activation"):
        del state[name]
    twin = type(layer).__new__(type(layer))
    twin.__setstate__(state)
    assert repr(twin) == repr(layer)
    x = torch.randn(3, 2, 4) if type(layer) is GRU else torch.randn(2, 4)
    torch.testing.assert_close(twin(x), layer(x))


def test_to_dtype_and_meta_device():
    layer = GRU(4, 5, device="meta")
    y, h_n = layer(torch.empty(3, 2, 4, device="meta"))
    assert y.shape == (3, 2, 5) and h_n.shape == (1, 2, 5) and y.device.type == "meta"
    real = layer.to_empty(device="cpu").double()
    real.reset_parameters()
    assert real(torch.randn(3, 2, 4, dtype=torch.float64))[0].dtype is torch.float64


@pytest.mark.parametrize("of", [GRU, GRUCell])
def test_parametrised_parameters_are_drawn_like_the_others(of):
    layer = of(16, 64, heads=16, layer_norm=True, **({"learn_initial_state": True} if of is GRU else {}))
    for name in [name for name, _ in layer.named_parameters()]:
        parametrize.register_parametrization(layer, name, nn.Identity())
    for parameter in layer.parameters():
        nn.init.constant_(parameter, 7.0)
    layer.reset_parameters()
    for name, _ in (
        of(16, 64, layer_norm=True, **({"learn_initial_state": True} if of is GRU else {}))
    ).named_parameters():
        value = getattr(layer, name)
        if name.startswith("layer_norm") or name == "initial_state":
            assert (value == name.startswith("layer_norm")).all()
        else:
            bound = 0.5 if name.startswith("weight_hh") else 0.125
            assert 0.9 * bound < value.abs().max() <= bound


def test_groups_with_and_without_biases_are_refused():
    weights = [[torch.randn(12, 3), torch.randn(12, 4), *torch.randn(2, 12)], [torch.randn(12, 3), torch.randn(12, 4)]]
    with pytest.raises(InputError, match=r"either all groups of weights have biases or none, got \[4, 2\]"):
        gru(torch.randn(5, 2, 3), None, weights, bidirectional=True)


def test_a_reset_state_that_is_no_tensor_is_named():
    with pytest.raises(TypeError, match="reset_state"):
        GRU(3, 4)(torch.randn(5, 3), reset=torch.zeros(5, dtype=torch.bool), reset_state=[0.0])


def test_dropout_acts_between_layers_in_training_alone():
    layer = GRU(4, 50, num_layers=2, dropout=0.5)
    oracle, x = layer.to_torch(), torch.randn(3, 2, 4)
    torch.manual_seed(1)
    trained = layer(x)[0]
    torch.manual_seed(1)
    torch.testing.assert_close(trained, oracle(x)[0])  # the same draws: nn.GRU's dropout on a time-major output
    assert not torch.equal(trained, layer(x)[0])
    layer.eval()
    oracle.eval()
    torch.testing.assert_close(layer(x)[0], oracle(x)[0])
    full = GRU(4, 50, num_layers=2, dropout=1.0)
    _, h_n = full(x)
    assert h_n.isfinite().all()


def test_dropout_warning_is_nn_grus():
    messages = []
    for kind in (GRU, nn.GRU):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            kind(3, 4, dropout=0.5)
        messages.append([(w.category, str(w.message), w.filename) for w in caught])
    assert messages[0][0][:2] == messages[1][0][:2] and len(messages[0]) == 1
    assert messages[0][0][2] == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GRU.from_torch(GRU(3, 4).to_torch())


def test_unbatched(pair):
    ours, theirs = (layer.eval() for layer in pair)
    x = torch.randn(6, 4)
    for hx in (None, torch.randn(theirs.num_layers * (1 + theirs.bidirectional), 5)):
        for got, want in zip(ours(x, hx), theirs(x, hx), strict=True):
            torch.testing.assert_close(got, want)


def test_gates_are_those_of_the_equations():
    layer = GRU(3, 4, num_layers=2, bidirectional=True, dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    y, h_n, (r, z, n), _ = layer.trace(x)
    assert r.shape == z.shape == n.shape == (4, 5, 2, 4)
    assert torch.equal(layer(x)[1].round(decimals=12), h_n.round(decimals=12))
    states = y[..., :4]  # of the last layer's forward direction
    before = torch.cat([torch.zeros(1, 2, 4, dtype=torch.float64), states[:-1]])
    torch.testing.assert_close((1 - z[2]) * n[2] + z[2] * before, states)
    unbatched = layer.trace(x[:, 0]).gates
    assert unbatched.r.shape == (4, 5, 4)
    torch.testing.assert_close(unbatched.n, n[:, :, 0])
    padded = layer.trace(x, lengths=[5, 2]).gates
    assert all(gate[:, 2:, 1].count_nonzero() == 0 for gate in padded)


def test_outputs_of_all_layers_are_those_of_shorter_stacks():
    layer = GRU(3, 4, num_layers=3, bidirectional=True, batch_first=True, dtype=torch.float64)
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    y, _, _, outputs = layer.trace(x)
    assert outputs.shape == (3, *y.shape) and torch.equal(outputs[2], y)
    for k in (1, 2, 3):
        shorter = nn.GRU(3, 4, num_layers=k, bidirectional=True, batch_first=True, dtype=torch.float64)
        shorter.load_state_dict({name: layer.get_parameter(name) for name in shorter.state_dict()})
        assert_near("output", outputs[k - 1], shorter(x)[0])
    assert_near("output", layer.trace(x[0]).layers, outputs[:, 0])
    assert layer.trace(x, lengths=[5, 2]).layers[:, 1, 2:].count_nonzero() == 0


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one-way", "two-way"])
def test_final_state_is_what_nn_gru_ends_a_packed_sequence_with(bidirectional):
    layer = GRU(3, 4, num_layers=2, bidirectional=bidirectional, dtype=torch.float64)
    x, lengths = torch.randn(5, 3, 3, dtype=torch.float64), [5, 2, 4]
    y, h_n = layer.to_torch()(nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False))
    rows = nn.utils.rnn.unpack_sequence(y)
    want = torch.stack([torch.cat([row[-1, :4], row[0, 4:]]) for row in rows])
    got = layer.final_state(layer(x, lengths=lengths)[1])
    assert_near("output", got, want)
    assert torch.equal(layer.final_state(h_n[:, 0]), layer.final_state(h_n)[0])
    with pytest.raises(InputError, match=r"h_n must be \(.*, B, 4\), got \(7, 3, 4\)"):
        layer.final_state(torch.zeros(7, 3, 4))
    with pytest.raises(TypeError, match="h_n must be a Tensor, got tuple"):
        layer.final_state(layer(x))


def test_chunks_of_time_equal_the_whole_sequence():
    layer, x = GRU(3, 4, num_layers=2), torch.randn(20, 2, 3)
    whole, h_n = layer(x)
    first, h = layer(x[:13])
    second, h = layer(x[13:], h)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close(h, h_n)


def test_functional_forms_are_the_layers():
    layer, x = GRU(3, 4, num_layers=2, bidirectional=True), torch.randn(5, 2, 3)
    assert torch.equal(gru(x, None, layer.all_weights, bidirectional=True)[0], layer(x)[0])
    cell, h = GRUCell(3, 4), torch.randn(2, 4)
    assert torch.equal(gru_cell(x[0], h, *cell.parameters()), cell(x[0], h))


def test_weights_of_two_dtypes_or_devices_are_refused():
    for change in ({"dtype": torch.float64}, {"device": "meta"}):
        layer = GRU(3, 4)
        layer.weight_hh_l0 = torch.nn.Parameter(layer.weight_hh_l0.to(**change))
        with pytest.raises(InputError, match="all weights must have one dtype and be on one device: w_ih is"):
            layer(torch.randn(2, 1, 3))


BAD_ARGUMENTS = {
    "input_size 0": (ValueError, "input_size must be greater than zero, got 0", (0, 4), {}),
    "hidden_size -1": (ValueError, "hidden_size must be greater than zero, got -1", (3, -1), {}),
    "num_layers 0": (ValueError, "num_layers must be greater than zero, got 0", (3, 4, 0), {}),
    "hidden_size float": (TypeError, "hidden_size should be of type int, got: float", (3, 4.0), {}),
    "bidirectional text": (
        TypeError,
        "bidirectional should be of type bool, got: str",
        (3, 4),
        {"bidirectional": "no"},
    ),
    "bidirectional int": (TypeError, "bidirectional should be of type bool, got: int", (3, 4), {"bidirectional": 1}),
    "bidirectional NumPy": (TypeError, "bool, got: numpy.bool", (3, 4), {"bidirectional": np.True_}),
    "reset_after": (TypeError, "reset_after should be of type bool", (3, 4), {"reset_after": None}),
    "zoneout": (ValueError, "probability of a unit keeping its state in a step, got 2", (3, 4), {"zoneout": 2}),
    "bias int": (TypeError, "bias should be of type bool, got: int", (3, 4), {"bias": 1}),
    "batch_first int": (TypeError, "batch_first should be of type bool, got: int", (3, 4), {"batch_first": 1}),
    "dropout 2": (ValueError, r"dropout should be a number in range \[0, 1\]", (3, 4), {"dropout": 2}),
    "dropout True": (ValueError, "dropout should be a number", (3, 4), {"dropout": True}),
    "dropout text": (ValueError, "dropout should be a number", (3, 4), {"dropout": "a"}),
    "backend": (
        ValueError,
        "'triton', 'reference', got 'cudnn'",
        (3, 4),
        {"backend": "cudnn"},
    ),
    "precision": (ValueError, "'ieee', 'tf32', None, got 'half'", (3, 4), {"precision": "half"}),
    "proj_size": (ValueError, "proj_size is for torch.nn.LSTM only", (3, 4), {"proj_size": 2}),
}


@pytest.mark.parametrize("error, message, args, options", BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_bad_arguments(error, message, args, options):
    with pytest.raises(error, match=message):
        GRU(*args, **options)


@pytest.mark.parametrize("flag", ["bidirectional", "training", "reset_after"])
def test_flags_of_the_function_are_bools(flag):
    x, weights = torch.ones(5, 2, 3), [(torch.ones(12, 3), torch.ones(12, 4))]
    with pytest.raises(TypeError, match=f"{flag} should be of type bool, got: str"):
        gru(x, None, weights, **{flag: "no"})


def test_sizes_are_integers_of_any_library():
    layer = GRU(np.int64(3), np.int32(4), num_layers=np.uint8(2))
    assert repr(layer) == "GRU(3, 4, num_layers=2)" and type(layer.hidden_size) is int
    assert GRU(3, 4, proj_size=0).proj_size == 0  # as in a program that also makes LSTMs


@pytest.mark.parametrize("input", [None, [1.0], np.ones((5, 2, 3))], ids=["None", "list", "ndarray"])
def test_input_that_is_not_a_tensor(input):
    layer, kind = GRU(3, 4), type(input).__name__
    with pytest.raises(TypeError, match=f"input must be a Tensor or a PackedSequence, got {kind}"):
        layer(input)
    for call in (layer.step, GRUCell(3, 4), lambda x: gru(x, None, layer.all_weights)):
        with pytest.raises(TypeError, match=f"input must be a Tensor, got {kind}"):
            call(input)
    for call in (layer, GRUCell(3, 4), layer.step):
        with pytest.raises(TypeError, match="hx must be a Tensor, got int"):
            call(torch.randn(2, 3), 0)


BAD_CALLS = {
    "function rank": (
        r"input must have 3 dimensions \(T, B, I\), got 2",
        lambda m: gru(torch.randn(5, 3), None, [(torch.randn(12, 3), torch.randn(12, 4))]),
    ),
    "1-D": ("Expected input to be 2D or 3D, got 1D", lambda m: m(torch.randn(3))),
    "4-D": ("Expected input to be 2D or 3D, got 4D", lambda m: m(torch.randn(1, 1, 1, 3))),
    "features": ("Expected 3, got 5", lambda m: m(torch.randn(4, 2, 5))),
    "hx batch": (
        r"Expected hidden size \(1, 2, 4\), got \[1, 3, 4\]",
        lambda m: m(torch.randn(5, 2, 3), torch.zeros(1, 3, 4)),
    ),
    "hx 2-D": (
        "For batched 3-D input, hx should also be 3-D but got 2-D",
        lambda m: m(torch.randn(5, 2, 3), torch.zeros(2, 4)),
    ),
    "hx 3-D": (
        "For unbatched 2-D input, hx should also be 2-D but got 3-D",
        lambda m: m(torch.randn(5, 3), torch.zeros(1, 1, 4)),
    ),
    "dtype": (
        r"input dtype \(torch.float64\) does not match weight dtype \(torch.float32\)",
        lambda m: m(torch.randn(5, 2, 3).double()),
    ),
    "integers": (
        r"input dtype \(torch.int64\) .*Convert it: input.to\(torch.float32\)$",
        lambda m: m(torch.ones(5, 2, 3).long()),
    ),
    "hx dtype": (r"hx dtype \(torch.int64\)", lambda m: m(torch.randn(5, 2, 3), torch.zeros(1, 2, 4).long())),
    "device": ("input is on meta and the weights are on cpu", lambda m: m(torch.randn(5, 2, 3, device="meta"))),
    "step features": (r"input must be \(B, 3\) or \(3,\), got \(2, 5\)", lambda m: m.step(torch.randn(2, 5))),
    "step hx": (
        r"Expected hidden size \(1, 2, 4\), got \[2, 4\]",
        lambda m: m.step(torch.randn(2, 3), torch.zeros(2, 4)),
    ),
    "step two-way": ("a unidirectional layer", lambda m: GRU(3, 4, bidirectional=True).step(torch.randn(2, 3))),
    "cell features": ("5 features, expected input_size = 3", lambda m: GRUCell(3, 4)(torch.randn(2, 5))),
    "cell hx": (r"shape \(2, 4\), got \(3, 4\)", lambda m: GRUCell(3, 4)(torch.randn(2, 3), torch.zeros(3, 4))),
    "cell rank": ("Expected input to be 1D or 2D, got 3D", lambda m: GRUCell(3, 4)(torch.randn(2, 2, 3))),
    "weight shape": (
        r"w_hh must have shape \(12, 4\), got \(9, 4\)",
        lambda m: gru(torch.randn(5, 2, 3), None, [(torch.randn(12, 3), torch.randn(9, 4))]),
    ),
    "one bias": (
        "both b_ih and b_hh, or neither",
        lambda m: gru_cell(
            torch.randn(2, 3), torch.zeros(2, 4), torch.randn(12, 3), torch.randn(12, 4), torch.randn(12)
        ),
    ),
}


@pytest.mark.parametrize("message, call", BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_calls(message, call):
    """Caught as ValueError and as RuntimeError, since torch.nn.GRU raises either."""
    with pytest.raises(InputError, match=message) as caught:
        call(GRU(3, 4))
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, RuntimeError)


def test_parameters_are_read_at_every_call():
    """Tied, parametrised and swapped weights have an effect, without a warning."""
    layer, x = GRU(4, 4), torch.randn(3, 2, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer.weight_ih_l0 = layer.weight_hh_l0
        oracle = nn.GRU(4, 4)
        oracle.load_state_dict(layer.state_dict())
        torch.testing.assert_close(layer(x)[0], oracle(x)[0])
        nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")
        layer(x)[0].sum().backward()
        assert layer.parametrizations.weight_hh_l0.original0.grad is not None
        zeros = {name: torch.zeros_like(p) for name, p in GRU(4, 4).named_parameters()}
        assert torch.func.functional_call(GRU(4, 4), zeros, (x,))[0].count_nonzero() == 0
        layer.flatten_parameters()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    """Like a linear layer: an input in the autocast dtype, float32 parameters with float32 gradients."""
    layer = GRU(8, 64, num_layers=2, bidirectional=True)
    x, hx = torch.randn(12, 5, 8), torch.randn(4, 5, 64)
    with torch.autocast("cpu", dtype):
        y, h_n = layer(x.to(dtype), hx, lengths=[12, 3, 0, 7, 1])
        y.float().sum().backward()
    assert y.dtype is h_n.dtype is dtype
    want = copy.deepcopy(layer).double()(x.to(dtype).double(), hx.double(), lengths=[12, 3, 0, 7, 1])
    assert_near("output", y, want[0])
    assert_near("output", h_n, want[1])
    assert all(p.grad.dtype is torch.float32 and p.grad.isfinite().all() for p in layer.parameters())


def test_autocast_leaves_what_it_leaves_of_linear_layers():
    """float64 stays unchanged, and integers are refused, as without autocast."""
    layer, x, cell = GRU(3, 4, dtype=torch.float64), torch.randn(5, 2, 3, dtype=torch.float64), GRUCell(3, 4).double()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x)[0].dtype is layer.step(x[0])[0].dtype is cell(x[0]).dtype is nn.Linear(3, 4).double()(x).dtype
        torch.testing.assert_close(layer(x)[0], layer.to_torch()(x)[0], rtol=0, atol=1e-14)
        for module, given in ((layer, x.float()), (GRU(3, 4), x), (GRU(3, 4), x.long()), (cell, x[0].float())):
            with pytest.raises(InputError, match="does not match weight dtype"):
                module(given)


W = torch.ones(12, 3), torch.ones(12, 4)
BAD_WEIGHTS = {
    "none": (None, TypeError, "weights must be a list of groups of tensors, got NoneType"),
    "flat": ([*W], InputError, "got 12 tensors"),
    "one": ([W[:1]], InputError, r"\(w_ih, w_hh\) or .* got 1 tensors"),
    "a hole": ([(W[0], None)], TypeError, "w_hh must be a Tensor, got NoneType"),
    "a number": ([(W[0], torch.ones(()))], InputError, r"w_hh must have shape \(3H, H\), got \(\)"),
}


@pytest.mark.parametrize("weights, error, message", BAD_WEIGHTS.values(), ids=BAD_WEIGHTS)
def test_weights_that_are_none_are_named(weights, error, message):
    with pytest.raises(error, match=message):
        gru(torch.ones(5, 2, 3), None, weights)


def test_a_deleted_weight_is_named():
    """torch.nn.GRU continues with its own copy."""
    layer = GRU(3, 4)
    del layer.weight_hh_l0
    for call in (lambda: layer(torch.ones(5, 2, 3)), lambda: layer.step(torch.ones(2, 3))):
        with pytest.raises(AttributeError, match="'GRU' object has no attribute 'weight_hh_l0'"):
            call()


WRONG_SHAPES = [("weight_ih_l0", (12, 2)), ("weight_hh_l0", (9, 4)), ("weight_hh_l0", (12, 5)), ("bias_ih_l0", (9,))]
WRONG_SHAPES += [("bias_hh_l1", (9,)), ("weight_ih_l1", (12, 3))]


@pytest.mark.parametrize("name, shape", WRONG_SHAPES)
def test_a_weight_of_another_shape_is_refused(name, shape):
    layer = GRU(3, 4, num_layers=2)
    setattr(layer, name, torch.nn.Parameter(torch.randn(shape)))
    for call in (lambda: layer(torch.randn(5, 2, 3)), lambda: layer.step(torch.randn(2, 3))):
        with pytest.raises(InputError, match="must have shape"):
            call()


@pytest.mark.parametrize("training", [True, False])
def test_dropout_acts_between_the_layers_of_a_step(training):
    layer = GRU(4, 50, num_layers=2, dropout=1.0).train(training)  # 1.0 draws nothing
    x, hx = torch.randn(3, 4), torch.randn(2, 3, 50)
    y, h_n = layer.step(x, hx)
    expected = layer(x[None], hx)
    torch.testing.assert_close(y, expected[0][0])
    torch.testing.assert_close(h_n, expected[1])


def test_gains_are_tensors():
    with pytest.raises(TypeError, match="layer_norms must be a Tensor, got int"):
        gru(torch.randn(5, 2, 3), None, [(torch.randn(12, 3), torch.randn(12, 4))], layer_norms=[(1, 2)])


@pytest.mark.parametrize("bidirectional", [False, True])
def test_complex_numbers(bidirectional):
    """Their gradients are conjugated, which the kernels do not do."""
    dtype = torch.complex128
    oracle = nn.GRU(3, 4, bidirectional=bidirectional, dtype=dtype)
    layer = GRU(3, 4, bidirectional=bidirectional, dtype=dtype)
    layer.load_state_dict(oracle.state_dict())
    x, hx = torch.randn(5, 2, 3, dtype=dtype), torch.randn(1 + bidirectional, 2, 4, dtype=dtype)
    found, expected = ([*each(x, hx)] for each in (layer, oracle))
    found, expected = (
        [*outputs, *torch.autograd.grad(outputs[0].abs().square().sum(), list(each.parameters()))]
        for outputs, each in ((found, layer), (expected, oracle))
    )
    torch.testing.assert_close(found, expected)
    if not bidirectional:
        y, _ = layer.step(x[0], hx)
        torch.testing.assert_close(y, expected[0][0])
    with pytest.raises(RuntimeError, match="no gradients of complex numbers"):
        GRU(3, 4, dtype=dtype, backend="eager")(x)
