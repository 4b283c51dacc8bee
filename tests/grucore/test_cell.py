"""One step: GRUCell, and GRU.step, which streams."""

import itertools

import numpy as np
import pytest
import torch
from oracle import assert_near
from torch import nn

from grucore import GRU, GRUCell, InputError, gru_cell


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("reset_after", [True, False], ids=["reset-after", "reset-before"])
def test_steps_equal_the_whole_sequence(num_layers, reset_after):
    layer = GRU(3, 4, num_layers=num_layers, reset_after=reset_after, dtype=torch.float64)
    x, hx = torch.randn(7, 2, 3, dtype=torch.float64), torch.randn(num_layers, 2, 4, dtype=torch.float64)
    y, h_n = layer(x, hx)
    outputs, h = [], hx
    for x_t in x:
        y_t, h = layer.step(x_t, h)
        outputs.append(y_t)
    torch.testing.assert_close(torch.stack(outputs), y)
    torch.testing.assert_close(h, h_n)
    y_row, h_row = layer.step(x[0, 0], hx[:, 0])
    torch.testing.assert_close(y_row, outputs[0][0])
    assert h_row.shape == (num_layers, 4)
    torch.testing.assert_close(layer.step(x[0])[0], layer(x[:1])[0][0])


@pytest.mark.parametrize("bias", [True, False])
def test_cell_equals_nn_gru_cell(bias):
    torch.manual_seed(3)
    ours = GRUCell(3, 4, bias=bias, dtype=torch.float64)
    torch.manual_seed(3)
    theirs = nn.GRUCell(3, 4, bias=bias, dtype=torch.float64)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    x, h = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    for grad, args in itertools.product((True, False), ((x, h), (x,), (x[0], h[0]), (x[0],))):
        with torch.set_grad_enabled(grad):
            assert_near("output", ours(*args), theirs(*args))
    grads, grads_want = (torch.autograd.grad(m(x, h).square().sum(), list(m.parameters())) for m in (ours, theirs))
    for got, want in zip(grads, grads_want, strict=True):
        assert_near("dw", got, want)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@torch.no_grad()
def test_a_step_without_gradients_leaves_its_inputs_and_bends_to_its_surroundings():
    """Memory is reused there, but not the caller's, and not under torch.func or autocast."""
    cell, x, h = GRUCell(3, 4), torch.randn(5, 2, 3), torch.randn(2, 4)
    args = (x.clone(), h.clone(), {name: p.clone() for name, p in cell.named_parameters()})
    want = torch.stack([cell(x_t, h) for x_t in x])
    wide = GRUCell(3, 1500)  # from 2048 elements on, tanh is computed from sigmoid
    assert_near("output", wide(x[0]), nn.GRUCell.forward(wide, x[0]))
    assert torch.equal(args[0], x) and torch.equal(args[1], h)
    assert all(torch.equal(args[2][name], p) for name, p in cell.named_parameters())
    torch.testing.assert_close(torch.func.vmap(cell, in_dims=(0, None))(x, h), want)
    torch.testing.assert_close(torch.func.jvp(lambda x: cell(x, h), (x[0],), (x[0],))[0], want[0])
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(cell(x[0], h).float(), want[0], atol=2e-2, rtol=0)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
@pytest.mark.parametrize("sizes", [(0, 4), (3, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_sizes_of_0(sizes, bias):
    """Like torch.nn.GRUCell."""
    theirs = nn.GRUCell(*sizes, bias=bias)
    cell = GRUCell.from_torch(theirs)
    x, h = torch.randn(2, sizes[0]), torch.randn(2, sizes[1])
    for ours, want in ((cell(x, h), theirs(x, h)), (cell(x), theirs(x))):
        torch.testing.assert_close(ours, want)
    with torch.no_grad():
        torch.testing.assert_close(cell(x, h), theirs(x, h))


OF_ONE_STEP = {
    "": {},
    "eager": {"backend": "eager"},
    "reset before": {"reset_after": False},
    "zoneout": {"zoneout": 0.1},
}


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
@pytest.mark.parametrize("rows", [(), (0,), (2,)], ids=str)
@pytest.mark.parametrize("options", OF_ONE_STEP.values(), ids=OF_ONE_STEP)
def test_sizes_of_0_on_every_way(options, rows):
    """With gradients, which take another path; of the layer's own step only B may be 0."""
    for I, H in itertools.product((0, 3), (0, 4)):  # noqa: E741
        cell = GRUCell(I, H, **options)
        y = cell(torch.randn(*rows, I), torch.randn(*rows, H))
        assert y.shape == (*rows, H)
        y.sum().backward()
        assert all(p.grad.shape == p.shape for p in cell.parameters())
    layer = GRU(3, 4, num_layers=2, **options)
    for hx in (None, torch.randn(2, *rows, 4)):
        y, h = layer.step(torch.randn(*rows, 3), hx)
        assert y.shape == (*rows, 4) and h.shape == (2, *rows, 4)
        y.sum().backward()


@pytest.mark.parametrize("other", [torch.int64, torch.float64, torch.complex64], ids=str)
def test_another_dtype_is_named(other):
    x = torch.ones(2, 3).to(other)
    weights = GRU(3, 4).all_weights[0]
    for call in (lambda: GRUCell(3, 4)(x), lambda: GRU(3, 4).step(x), lambda: gru_cell(x, torch.zeros(2, 4), *weights)):
        with pytest.raises(InputError, match=rf"input dtype \({other}\) does not match weight dtype \(torch.float32\)"):
            call()


@pytest.mark.parametrize("backend", ["auto", "native", "eager", "reference"])
@pytest.mark.parametrize("grad", [True, False], ids=["gradients", "no_grad"])
def test_autocast(backend, grad):
    """A step, like a sequence, computes and returns the dtype of autocast, by every implementation."""
    cell, layer = GRUCell(3, 4, backend=backend), GRU(3, 4, backend=backend)
    x, h = torch.randn(2, 3), torch.randn(2, 4)
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(grad):
        outs = cell(x, h), layer.step(x, h[None])[0], layer(x[None], h[None])[1][0]
    assert {y.dtype for y in outs} == {torch.bfloat16}
    assert_near("output", outs[0], cell.to_torch().double()(x.double(), h.double()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_state_of_another_dtype(dtype):
    """It is converted, as for a sequence."""
    cell, layer, x = GRUCell(3, 4), GRU(3, 4), torch.randn(2, 3)
    h = torch.randn(2, 4).to(dtype)
    assert torch.equal(cell(x, h), cell(x, h.float()))
    for got, want in zip(layer.step(x, h[None]), layer.step(x, h[None].float()), strict=True):
        assert torch.equal(got, want)


def test_one_bias_of_two_is_refused():
    cell = GRUCell(3, 4)
    cell.bias_hh = None
    with pytest.raises(InputError, match="both bias_ih and bias_hh, or neither"):
        cell(torch.randn(2, 3))
    cell.bias_ih = None
    assert_near("output", cell(x := torch.randn(2, 3)), nn.GRUCell.forward(cell, x))


def test_an_input_without_dimensions_is_refused():
    with pytest.raises(InputError, match="without dimensions"):
        gru_cell(torch.tensor(1.0), torch.zeros(4), torch.randn(12, 1), torch.randn(12, 4))


def test_sizes_of_other_libraries():
    cell = GRUCell(np.int64(3), np.int32(4))
    assert repr(cell) == "GRUCell(3, 4)" and cell(torch.randn(2, 3)).shape == (2, 4)
    for arguments, error in (((3, -1), ValueError), ((3.0, 4), TypeError), ((True, 4), TypeError)):
        with pytest.raises(error, match="_size"):
            GRUCell(*arguments)
    for flag in ("bias", "reset_after"):
        with pytest.raises(TypeError, match=f"{flag} should be of type bool, got: str"):
            GRUCell(3, 4, **{flag: "no"})


REGULARISED = {
    "zoneout": {"zoneout": 0.4},
    "layer_norm": {"layer_norm": True},
    "activations": {"activation": "relu", "recurrent_activation": "hard_sigmoid"},
    "all": {"zoneout": 0.1, "layer_norm": True, "activation": "softsign"},
}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("options", REGULARISED.values(), ids=REGULARISED)
def test_a_cell_with_options_is_one_step_of_a_layer_with_them(options, training):
    cell = GRUCell(3, 4, dtype=torch.float64, **options).train(training)
    layer = GRU(3, 4, dtype=torch.float64, **options).train(training)
    layer.load_state_dict({f"{name}_l0": value for name, value in cell.state_dict().items()})
    x, hx = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    results = []
    for call in (lambda: cell(x, hx), lambda: layer.step(x, hx[None])[1][0]):
        torch.manual_seed(1)
        results.append(call())
    assert torch.equal(*results)
    plain = GRUCell(3, 4, dtype=torch.float64)
    plain.load_state_dict(cell.state_dict(), strict=False)
    assert not torch.equal(results[0], plain(x, hx))
    assert repr(cell).count("=") == len(options)


@pytest.mark.parametrize("name", ["bias_ih", "bias_hh"])
def test_a_bias_of_another_shape_is_refused(name):
    cell = GRUCell(3, 4)
    setattr(cell, name, torch.nn.Parameter(torch.randn(9)))
    with pytest.raises(InputError, match="must have shape"):
        cell(torch.randn(2, 3))


def test_complex_numbers():
    oracle, cell = (kind(3, 4, dtype=torch.complex128) for kind in (nn.GRUCell, GRUCell))
    cell.load_state_dict(oracle.state_dict())
    x, h = torch.randn(2, 3, dtype=torch.complex128), torch.randn(2, 4, dtype=torch.complex128)
    found, expected = (each(x, h) for each in (cell, oracle))
    torch.testing.assert_close(found, expected)
    found, expected = (
        torch.autograd.grad(y.abs().square().sum(), list(each.parameters()))
        for y, each in ((found, cell), (expected, oracle))
    )
    torch.testing.assert_close(found, expected)
