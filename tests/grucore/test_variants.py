"""Recurrent dropout, zoneout, layer normalisation, other activations, a learned initial state."""

import pytest
import torch
from oracle import assert_near

from grucore import GRU, InputError, gru
from grucore.kernels import noise
from grucore.kernels.regularised import ACTIVATIONS

f64 = torch.float64


def written_out(layer, x, keep=None, zoneout_keep=None):
    """One layer in one direction, with haste's order and names of gates (z, r, g), from the layer's parameters."""
    H = layer.hidden_size
    order = torch.cat([torch.arange(H, 2 * H), torch.arange(H), torch.arange(2 * H, 3 * H)])
    kernel, recurrent_kernel = layer.weight_ih_l0[order].t(), layer.weight_hh_l0[order].t()
    bias, recurrent_bias = layer.bias_ih_l0[order], layer.bias_hh_l0[order]
    gains = (layer.layer_norm_ih_l0[order], layer.layer_norm_hh_l0[order]) if layer.layer_norm else None
    inner, outer = ACTIVATIONS[layer.recurrent_activation], ACTIVATIONS[layer.activation]

    def normalised(v, which):
        if gains is None:
            return v
        v = v - v.mean(-1, keepdim=True)
        return v / (v.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gains[which]

    h, states = x.new_zeros(x.shape[1], H), []
    for t, x_t in enumerate(x):
        dropped = h if keep is None else h * keep
        vx = normalised(x_t @ kernel, 0) + bias
        vh = normalised(dropped @ recurrent_kernel, 1) + recurrent_bias
        z = inner(vx[:, :H] + vh[:, :H])
        r = inner(vx[:, H : 2 * H] + vh[:, H : 2 * H])
        g = outer(vx[:, 2 * H :] + r * vh[:, 2 * H :])
        new = z * h + (1 - z) * g
        if layer.zoneout and layer.training:
            new = (new - h) * zoneout_keep[t] + h
        elif layer.zoneout:
            new = layer.zoneout * h + (1 - layer.zoneout) * new
        h = new
        states.append(h)
    return torch.stack(states)


def masks(seed, layer, T, B):
    """The masks of a unidirectional layer from a seed: that of the state in products, and each step's."""
    torch.manual_seed(seed)
    drawn, shape = noise.new_seed(torch.device("cpu")), (B, layer.hidden_size)
    keep = noise.keep_mask(drawn, 0, 0, shape, layer.recurrent_dropout)
    return keep, [noise.keep_mask(drawn, 1, t, shape, layer.zoneout) for t in range(T)]


VARIANTS = {
    "layer norm": {"layer_norm": True},
    "zoneout": {"zoneout": 0.3},
    "recurrent dropout": {"recurrent_dropout": 0.4},
    "all": {"layer_norm": True, "zoneout": 0.3, "recurrent_dropout": 0.4},
    "relu": {"activation": "relu"},
    "hard": {"activation": "hard_tanh", "recurrent_activation": "hard_sigmoid"},
    "softsign and linear": {"activation": "linear", "recurrent_activation": "softsign"},
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_equals_the_equations_written_out(options, training):
    layer = GRU(3, 5, dtype=f64, **options).train(training)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(6, 2, 3, dtype=f64, requires_grad=True)
    keep, zoneout_keep = masks(0, layer, *x.shape[:2])
    torch.manual_seed(0)
    y, _ = layer(x)
    p = layer.recurrent_dropout
    want = written_out(layer, x, keep.to(f64) / (1 - p) if p and training else None, zoneout_keep)
    assert_near("output", y, want)
    dy, inputs = torch.randn_like(y), [x, *layer.parameters()]
    for got, want_grad in zip(torch.autograd.grad(y, inputs, dy), torch.autograd.grad(want, inputs, dy), strict=True):
        assert_near("dw", got, want_grad)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_everything_else_goes_with_it(options):
    """Layers, directions, lengths, resets, gates, unbatched and streamed, in eval."""
    layer = GRU(3, 5, num_layers=2, bidirectional=True, batch_first=True, dtype=f64, **options).eval()
    x = torch.randn(3, 6, 3, dtype=f64)
    lengths, reset = torch.tensor([6, 0, 4]), torch.zeros(3, 6, dtype=torch.bool)
    reset[:, 2] = True
    y, h_n, gates, outputs = layer.trace(x, lengths=lengths, reset=reset)
    assert y[1].count_nonzero() == 0 and y[2, 4:].count_nonzero() == 0 and h_n[:, 1].count_nonzero() == 0
    assert gates.r.shape == (4, 6, 3, 5) and outputs.shape == (2, *y.shape) and torch.equal(outputs[1], y)
    alone, h_alone = layer(x[2, :4], reset=reset[2, :4])
    assert_near("output", alone, y[2, :4])
    assert_near("output", h_alone, h_n[:, 2])
    one_way = GRU(3, 5, num_layers=2, dtype=f64, **options).eval()
    want, h_want = one_way(x.transpose(0, 1))
    h = None
    for t in range(6):
        y_t, h = one_way.step(x[:, t], h)
        assert_near("output", y_t, want[t])
    assert_near("output", h, h_want)


@pytest.mark.slow
@pytest.mark.parametrize("options", [VARIANTS["all"], VARIANTS["hard"]], ids=["all", "hard"])
def test_gradients_twice(options):
    layer = GRU(2, 3, num_layers=2, bidirectional=True, dtype=f64, **options).eval()
    x = torch.randn(3, 2, 2, dtype=f64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: layer(x)[0], x)
    assert torch.autograd.gradgradcheck(lambda x: layer(x)[0], x)


def test_the_same_seed_gives_the_same_masks():
    layer, x = GRU(3, 50, recurrent_dropout=0.5, zoneout=0.5), torch.randn(5, 4, 3)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(layer(x)[0])
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_recomputation_draws_the_same_masks():
    layer, x = GRU(3, 50, zoneout=0.5), torch.randn(5, 4, 3, requires_grad=True)
    grads = []
    for recompute in (False, True):
        torch.manual_seed(1)
        y = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)[0] if recompute else layer(x)[0]
        grads.append(torch.autograd.grad(y.square().sum(), x)[0])
    assert torch.equal(*grads)


def test_recurrent_dropout_is_one_mask_for_the_sequence():
    """The other direction has another mask. Weights multiplied only by dropped units have no gradient."""
    layer = GRU(3, 40, bidirectional=True, recurrent_dropout=0.5)
    layer(torch.randn(7, 1, 3))[0].sum().backward()
    unused = [w.grad.abs().sum(0) == 0 for w in (layer.weight_hh_l0, layer.weight_hh_l0_reverse)]
    assert all(0 < each.sum() < 40 for each in unused) and not torch.equal(*unused)


def test_zoneout_of_one_never_moves():
    hx = torch.randn(1, 2, 5)
    y, h_n = GRU(3, 5, zoneout=1.0)(torch.randn(4, 2, 3), hx)
    assert torch.equal(h_n, hx) and torch.equal(y, hx.expand(4, 2, 5))


def test_learned_initial_state():
    layer = GRU(3, 5, num_layers=2, bidirectional=True, learn_initial_state=True, dtype=f64)
    torch.nn.init.normal_(layer.initial_state)
    x, given = torch.randn(4, 2, 3, dtype=f64), layer.initial_state.unsqueeze(1).expand(-1, 2, -1)
    y, h_n = layer(x)
    for got, want in zip((y, h_n), layer(x, given), strict=True):
        assert torch.equal(got, want)
    (grad,) = torch.autograd.grad(y.sum(), layer.initial_state)
    assert grad.shape == (4, 5) and grad.count_nonzero() == 20
    assert layer(x[:0])[1].equal(given), "no step: the state before the first is the last"
    assert torch.equal(layer(x[:, 0])[0], layer(x[:, :1])[0][:, 0])
    assert GRU(3, 5, learn_initial_state=True).step(torch.zeros(2, 3))[1].shape == (1, 2, 5)


def test_new_parameters_start_where_they_change_nothing():
    torch.manual_seed(3)
    plain = GRU(3, 5, num_layers=2)
    torch.manual_seed(3)
    more = GRU(3, 5, num_layers=2, learn_initial_state=True)
    x = torch.randn(4, 2, 3)
    assert torch.equal(plain(x)[0], more(x)[0])
    assert (GRU(3, 5, layer_norm=True).layer_norm_hh_l0 == 1).all()


def test_what_runs_and_why():
    layer, x = GRU(3, 5, recurrent_dropout=0.5, activation="relu", backend="triton"), torch.randn(4, 2, 3)
    with pytest.raises(RuntimeError, match="the triton kernels have no activation"):
        layer(x)
    layer = GRU(3, 5, recurrent_dropout=0.5, backend="triton").eval()
    assert layer.explain_backend(x).name == "triton", "out of training recurrent dropout does nothing"


def test_repr_and_conversion():
    layer = GRU(3, 5, zoneout=0.1, layer_norm=True)
    assert repr(layer) == "GRU(3, 5, zoneout=0.1, layer_norm=True)"
    with pytest.raises(ValueError, match=r"torch.nn.GRU has no zoneout=0.1, layer_norm=True"):
        layer.to_torch()


BAD = {
    "zoneout": ({"zoneout": 1.5}, r"zoneout should be a number in range \[0, 1\].*got 1.5"),
    "recurrent dropout": ({"recurrent_dropout": True}, "recurrent_dropout should be a number"),
    "activation": ({"activation": "gelu"}, "activation must be one of 'tanh', .*got 'gelu'"),
    "a list": ({"activation": ["relu"]}, r"activation must be one of 'tanh', .*got \['relu'\]"),
    "layer norm": ({"layer_norm": True, "reset_after": False}, "layer_norm requires reset_after=True"),
}


@pytest.mark.parametrize("options, message", BAD.values(), ids=BAD)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        GRU(3, 5, **options)


def test_options_that_do_not_exist():
    weights = [(torch.ones(12, 3), torch.ones(12, 4))]
    with pytest.raises(TypeError, match="gru takes no dropuot"):
        gru(torch.ones(5, 2, 3), None, weights, dropuot=0.1)
    with pytest.raises(TypeError, match="dropuot"):
        GRU(3, 4, dropuot=0.1)


def test_the_initial_state_is_made_on_the_device():
    layer = GRU(3, 4, learn_initial_state=True, device="meta", dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.float64)}
