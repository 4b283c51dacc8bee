"""from_flax and to_flax against Flax itself: linen and nnx, on JAX's CPU backend."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # read when JAX is imported: its other backends only warn

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx
from oracle import rms_error

from grucore import GRU, InputError
from grucore.convert import from_flax, to_flax

pytestmark = pytest.mark.slow

LIMIT = 2e-6  # RMS error of float32 outputs against Flax; measured at most 1.8e-7


def linen_parameters(input_size, seed=0):
    """Parameters of a cell with 4 units, uniformly drawn, since Flax initialises biases to 0."""
    x = jnp.ones((1, input_size))
    tree = linen.GRUCell(4).init(jax.random.key(seed), x[:, :1].repeat(4, 1), x)["params"]
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda w: jnp.asarray(random.uniform(-0.6, 0.6, w.shape), jnp.float32), tree)


def nnx_cell(input_size, seed=0, **options):
    cell = nnx.GRUCell(input_size, 4, rngs=nnx.Rngs(seed), **options)
    cell.dense_i.bias.set_value(jnp.linspace(-0.5, 0.5, 12))
    return cell


def linen_outputs(layers, x):
    """The outputs (B, T, D*H) of to_flax's layers for linen."""
    for layer in layers:
        if isinstance(layer, tuple):
            rnn = linen.Bidirectional(linen.RNN(linen.GRUCell(4)), linen.RNN(linen.GRUCell(4)))
            parameters = {"forward_rnn": {"cell": layer[0]}, "backward_rnn": {"cell": layer[1]}}
        else:
            rnn, parameters = linen.RNN(linen.GRUCell(4)), {"cell": layer}
        x = rnn.apply({"params": parameters}, x)
    return torch.tensor(np.asarray(x))


def nnx_outputs(layers, x):
    for layer in layers:
        x = nnx.Bidirectional(*map(nnx.RNN, layer))(x) if isinstance(layer, tuple) else nnx.RNN(layer)(x)
    return torch.tensor(np.asarray(x))


def same_tree(one, other):
    ours, theirs = (
        {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(t)} for t in (one, other)
    )
    return list(ours) == list(theirs) and all(np.array_equal(ours[k], theirs[k]) for k in ours)


def same_parameters(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "two"])
def test_a_stack_from_linen(bidirectional):
    if bidirectional:
        layers = [tuple(linen_parameters(size, seed) for seed in seeds) for size, seeds in ((3, (0, 1)), (8, (2, 3)))]
    else:
        layers = [linen_parameters(3, 0), linen_parameters(4, 1)]
    ours, x = from_flax(layers), torch.randn(5, 7, 3)
    assert ours.batch_first and ours.num_layers == 2 and ours.bidirectional is bidirectional
    assert rms_error(ours(x)[0], linen_outputs(layers, x.numpy())) <= LIMIT
    for tree, back in zip(layers, to_flax(ours), strict=True):
        assert same_tree(tree, back)


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "two"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_a_stack_to_linen(bidirectional, bias):
    ours = GRU(3, 4, num_layers=2, bidirectional=bidirectional, bias=bias, batch_first=True)
    x, layers = torch.randn(5, 7, 3), to_flax(ours)
    assert rms_error(ours(x)[0], linen_outputs(layers, x.numpy())) <= LIMIT
    back = from_flax(layers)
    assert rms_error(back(x)[0], ours(x)[0]) <= LIMIT
    for name, value in ours.state_dict().items():
        if "weight" in name:
            assert torch.equal(back.state_dict()[name], value)
        elif "hh" in name:
            r_z, n = back.state_dict()[name].split([8, 4])
            assert r_z.count_nonzero() == 0 and torch.equal(n, value[8:])
    with torch.no_grad():
        for _, _, *biases in ours.all_weights:
            for b in biases[1:]:
                b[:8] = 0
    assert same_parameters(from_flax(to_flax(ours)), ours) is bias  # without biases they come back as zeros


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "two"])
def test_a_stack_from_nnx_and_back(bidirectional):
    layers = [(nnx_cell(3, 0), nnx_cell(3, 1)), (nnx_cell(8, 2), nnx_cell(8, 3))]
    layers = layers if bidirectional else [nnx_cell(3, 0), nnx_cell(4, 1)]
    ours, x = from_flax(layers), torch.randn(5, 7, 3)
    want = nnx_outputs(layers, x.numpy())
    assert rms_error(ours(x)[0], want) <= LIMIT
    back = to_flax(ours, api="nnx")
    assert torch.equal(nnx_outputs(back, x.numpy()), want)
    assert same_parameters(from_flax(back), ours)


def test_nnx_without_biases_and_with_those_it_has():
    ours, x = GRU(3, 4, batch_first=True), torch.randn(5, 7, 3)
    with pytest.raises(ValueError, match=r"nnx.GRUCell has no b_hn, .* api='linen' has one"):
        to_flax(ours, api="nnx")
    with torch.no_grad():
        ours.bias_hh_l0[8:] = 0
    for layer in (ours, GRU(3, 4, batch_first=True, bias=False)):
        assert rms_error(layer(x)[0], nnx_outputs(to_flax(layer, api="nnx"), x.numpy())) <= LIMIT


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtypes_are_kept(dtype):
    ours = GRU(3, 4, dtype=dtype)
    with torch.no_grad():
        ours.bias_hh_l0.zero_()
    assert same_parameters(from_flax(to_flax(ours)), GRU.from_torch(ours.to_torch()))
    if dtype is torch.float64:
        with pytest.raises(ValueError, match="JAX turned float64 into float32; set jax_enable_x64"):
            to_flax(ours, api="nnx")
    else:
        (cell,) = to_flax(ours, api="nnx")
        assert from_flax(cell).weight_ih_l0.dtype is dtype and same_parameters(from_flax(cell), ours)


def test_arrays_of_other_kinds():
    tree = linen_parameters(3)
    big_endian = jax.tree.map(lambda a: np.asarray(a).astype(">f4"), tree)
    tensors = jax.tree.map(lambda a: torch.nn.Parameter(torch.tensor(np.asarray(a))), tree)
    assert all(same_parameters(from_flax(each), from_flax(tree)) for each in (big_endian, tensors))
    stacked = jax.tree.map(lambda a: np.stack([a, a]), tree)
    with pytest.raises(InputError, match=r"kernel of \w+ must have two dimensions, got shape \(2, "):
        from_flax(stacked)
    boxed = jax.tree.map(lambda a: linen.Partitioned(a, names=(None,) * a.ndim), tree)
    with pytest.raises(InputError, match=r"arrays of numbers, got Partitioned \(flax.core.meta.unbox unboxes"):
        from_flax(boxed)


def test_trees_under_names_and_of_whole_layers():
    tree, x = linen_parameters(3), jnp.ones((2, 5, 3))
    assert same_parameters(from_flax({"params": {"cell": tree}}), from_flax(tree))
    assert from_flax(tree, batch_first=False).batch_first is False
    two = linen.Bidirectional(linen.RNN(linen.GRUCell(4)), linen.RNN(linen.GRUCell(4)))
    variables = two.init(jax.random.key(0), x)
    ours = from_flax(variables)
    assert ours.bidirectional
    want = torch.tensor(np.asarray(two.apply(variables, x)))
    assert rms_error(ours(torch.ones(2, 5, 3))[0], want) <= LIMIT


def lstm_parameters():
    x = jnp.ones((1, 3))
    return linen.LSTMCell(4).init(jax.random.key(0), (x[:, :1].repeat(4, 1),) * 2, x)


def without(tree, *path):
    """Removes an entry from a tree."""
    *parents, last = path
    if parents:
        return {**tree, parents[0]: without(tree[parents[0]], last)}
    return {name: part for name, part in tree.items() if name != last}


REFUSED = {
    "no layer": (lambda: [], InputError, "at least one layer"),
    "no cell": (lambda: linen.GRUCell(4), TypeError, "or a flax.nnx.GRUCell, got GRUCell"),
    "LSTM": (lambda: nnx.LSTMCell(3, 4, rngs=nnx.Rngs(0)), TypeError, "or a flax.nnx.GRUCell, got LSTMCell"),
    "LSTM parameters": (lambda: lstm_parameters(), InputError, r"a flax.linen.GRUCell has .* got .*'hf': "),
    "no hn": (lambda: without(linen_parameters(3), "hn"), InputError, "kernel of ir, iz, in, hr, hz, hn and bias of"),
    "no bias": (lambda: without(linen_parameters(3), "ir", "bias"), InputError, r"got .*'ir': \['kernel'\]"),
    "triple": (lambda: (linen_parameters(3),) * 3, InputError, r"must be \(forward, reverse\), got 3"),
    "mixed": (
        lambda: [linen_parameters(3), (linen_parameters(4), linen_parameters(4))],
        InputError,
        r"or all a pair, got \[1, 2\]",
    ),
    "sizes": (
        lambda: [linen_parameters(3), linen_parameters(3)],
        InputError,
        r"w_ih of layer 1 must have shape \(12, 4\), got \(12, 3\)",
    ),
    "gate_fn": (lambda: nnx_cell(3, gate_fn=jnp.tanh), ValueError, "gate_fn=.*; only sigmoid can be converted"),
    "activation_fn": (
        lambda: nnx_cell(3, activation_fn=nnx.relu),
        ValueError,
        "activation_fn=.*; only tanh can be converted",
    ),
}


@pytest.mark.parametrize("make, error, message", REFUSED.values(), ids=REFUSED)
def test_other_sources_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        from_flax(make())


def test_what_flax_lacks_is_refused():
    with pytest.raises(ValueError, match="has no reset_after=False"):
        to_flax(GRU(3, 4, reset_after=False))
    with pytest.raises(ValueError, match="api must be 'linen' or 'nnx', got 'haiku'"):
        to_flax(GRU(3, 4), api="haiku")
