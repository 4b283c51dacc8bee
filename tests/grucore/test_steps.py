"""lengths, mask, reset and PackedSequence: against torch.nn.GRU on packed or split sequences."""

import numpy as np
import pytest
import torch
from contract import Case, flags_of, nn_gru
from oracle import assert_near, compare, quantity, to_oracle
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence
from torch.testing._internal.two_tensor import TwoTensor

from grucore import GRU, InputError
from grucore.kernels import Form, State, Weights

LENGTHS = {
    "sorted": [9, 7, 7, 4, 1],
    "unsorted with ties": [4, 9, 1, 9, 4],
    "none full": [3, 2, 5, 5, 1],
    "all full": [9, 9, 9, 9, 9],
}


def with_nan_padding(x, lengths):
    """x (T, B, I) with NaN from each row's length on."""
    steps = torch.arange(len(x)).unsqueeze(1)
    return x.masked_fill((steps >= torch.tensor(lengths)).unsqueeze(-1), float("nan"))


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_lengths_equal_packed_nn_gru(lengths):
    layer = GRU(3, 6, num_layers=2, bidirectional=True, dtype=torch.float64)
    x = with_nan_padding(torch.randn(9, 5, 3, dtype=torch.float64), lengths)

    def packed(module, x, h):
        y, h_n = module(pack_padded_sequence(x.nan_to_num(), lengths, enforce_sorted=False), h)
        return pad_packed_sequence(y, total_length=9)[0], h_n

    hx = torch.randn(4, 5, 6, dtype=torch.float64)
    compare(layer, to_oracle(layer), x, hx, lambda m, x, h: m(x, h, lengths=torch.tensor(lengths)), packed)


def stacked_nn_gru(module, x, h, steps):
    """All layers of a torch.nn.GRU in two directions, with masks and resets as they are defined."""
    h_ns = []
    directions = module.all_weights  # of layer 0 forward, backward, layer 1 forward, ...
    for forward, backward, h0 in zip(directions[::2], directions[1::2], h.split(2), strict=True):
        both = (torch.stack(pair) for pair in zip(forward, backward, strict=True))
        x, h_n = nn_gru(x, State(h0), Weights(*both), steps, Form())
        h_ns.append(h_n)
    return x, torch.cat(h_ns)


@pytest.mark.parametrize("words", ["gaps", "left", "resets", "gaps resets", "left resets"])
def test_mask_and_reset_equal_pieces_of_nn_gru(words):
    layer = GRU(3, 4, num_layers=2, bidirectional=True, dtype=torch.float64)
    steps = flags_of(Case(T=11, B=5, flags=words))
    x, hx = torch.randn(11, 5, 3, dtype=torch.float64), torch.randn(4, 5, 4, dtype=torch.float64)
    if steps.real is not None:
        x.masked_fill_(~steps.real.unsqueeze(-1), float("nan"))
    call = lambda m, x, h: m(x, h, mask=steps.real, reset=steps.start)  # noqa: E731
    compare(layer, to_oracle(layer), x, hx, call, lambda m, x, h: stacked_nn_gru(m, x, h, steps))


@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("hx", [True, False])
def test_packed_sequence_in_and_out(enforce_sorted, hx):
    layer = GRU(3, 4, num_layers=2, bidirectional=True, dtype=torch.float64)
    oracle = to_oracle(layer)
    lengths = [5, 4, 4, 1] if enforce_sorted else [4, 1, 5, 4]
    packed = pack_sequence([torch.randn(n, 3, dtype=torch.float64) for n in lengths], enforce_sorted=enforce_sorted)
    h = torch.randn(4, 4, 4, dtype=torch.float64) if hx else None
    (y, h_n), (y_want, h_n_want) = layer(packed, h), oracle(packed, h)
    for got, want in zip(y, y_want, strict=True):
        assert (got is None) == (want is None)
        if got is not None:
            torch.testing.assert_close(got, want, rtol=0, atol=1e-14)
    torch.testing.assert_close(h_n, h_n_want, rtol=0, atol=1e-14)
    params = [(name, p) for name, p in layer.named_parameters()]
    grads = torch.autograd.grad(y.data.square().sum() + h_n.sum(), [p for _, p in params])
    grads_want = torch.autograd.grad(y_want.data.square().sum() + h_n_want.sum(), list(oracle.parameters()))
    for (name, _), got, want in zip(params, grads, grads_want, strict=True):
        assert_near(quantity(name), got, want)


def test_unbatched_and_batch_first_take_the_same_flags():
    layer = GRU(3, 4)
    batch_first = GRU(3, 4, batch_first=True)
    batch_first.load_state_dict(layer.state_dict())
    x, mask = torch.randn(6, 1, 3), torch.tensor([[0, 1, 1, 0, 1, 1]], dtype=torch.bool).t()
    reset = torch.tensor([[0, 0, 1, 0, 0, 1]], dtype=torch.bool).t()
    y, h_n = layer(x, mask=mask, reset=reset)
    y_first, h_first = batch_first(x.transpose(0, 1), mask=mask.t(), reset=reset.t())
    y_row, h_row = layer(x[:, 0], mask=mask[:, 0], reset=reset[:, 0])
    assert torch.equal(y, y_first.transpose(0, 1)) and torch.equal(h_n, h_first)
    assert torch.equal(y[:, 0], y_row) and torch.equal(h_n[:, 0], h_row)
    y_length, _ = layer(x[:, 0], lengths=4)
    assert y_length[4:].count_nonzero() == 0 and torch.equal(y_length[:4], layer(x[:4, 0])[0])


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one-way", "two-way"])
def test_flags_are_not_read_on_the_host(bidirectional):
    """A tensor on the meta device has a shape but no values: reading one raises."""
    layer = GRU(3, 4, num_layers=2, bidirectional=bidirectional, device="meta")
    x, flag = torch.randn(5, 2, 3, device="meta"), torch.ones(5, 2, dtype=torch.bool, device="meta")
    lengths, state = torch.ones(2, dtype=torch.int64, device="meta"), torch.zeros(2, 2, 4, device="meta")
    calls = [{"lengths": lengths}, {"mask": flag}, {"reset": flag}, {"lengths": lengths, "reset": flag}]
    for options in calls if bidirectional else [*calls, {"reset": flag, "reset_state": state}]:
        y, h_n = layer(x, **options)
        assert y.shape == (5, 2, 4 * layer.num_directions) and h_n.shape == (2 * layer.num_directions, 2, 4)
    with pytest.raises((NotImplementedError, RuntimeError)):
        int(lengths.max())


BAD = {
    "float lengths": (TypeError, "lengths must be integers, got torch.float32", {"lengths": torch.ones(2)}),
    "bool lengths": (TypeError, "lengths must be integers, got torch.bool", {"lengths": torch.ones(2).bool()}),
    "too long": (InputError, "between 0 and T = 4, got 5", {"lengths": [5, 1]}),
    "negative": (InputError, "between 0 and T = 4, got -1", {"lengths": [-1, 5]}),
    "wrong count": (InputError, r"shape \(B,\) = \(2,\), got \(3,\)", {"lengths": [1, 2, 3]}),
    "float mask": (TypeError, "mask must be a bool tensor, got torch.float32", {"mask": torch.ones(4, 2)}),
    "mask as list": (TypeError, "mask must be a bool tensor, got list", {"mask": [[True] * 2] * 4}),
    "mask as an array": (TypeError, "mask must be a bool tensor, got ndarray", {"mask": np.ones((4, 2), bool)}),
    "scalar float": (TypeError, "lengths must be integers, got torch.float32", {"lengths": torch.tensor(3.0)}),
    "scalar": (InputError, r"shape \(B,\) = \(2,\), got \(\)", {"lengths": torch.tensor(3)}),
    "None among them": (TypeError, r"lengths must be integers, .* got \[4, None\]", {"lengths": [4, None]}),
    "text": (TypeError, "lengths must be integers, .* got 'ab'", {"lengths": "ab"}),
    "reset_state": (TypeError, "reset_state must be a Tensor", {"reset": torch.ones(4, 2).bool(), "reset_state": 0}),
    "mask swapped": (InputError, r"\(T, B\) = \(4, 2\), got \(2, 4\)", {"mask": torch.ones(2, 4).bool()}),
    "reset shape": (InputError, r"reset must have shape .* got \(4,\)", {"reset": torch.ones(4).bool()}),
    "both": (InputError, "lengths or mask, not both", {"lengths": [1, 2], "mask": torch.ones(4, 2).bool()}),
}


@pytest.mark.parametrize("error, message, options", BAD.values(), ids=BAD)
def test_bad_flags(error, message, options):
    with pytest.raises(error, match=message):
        GRU(3, 4)(torch.randn(4, 2, 3), **options)


LAYOUTS = {
    "batch_first mask": ((2, 4, 3), {"mask": torch.ones(4, 2).bool()}, r"mask .* \(B, T\) = \(2, 4\), got \(4, 2\)"),
    "batch_first reset": ((2, 4, 3), {"reset": torch.ones(4).bool()}, r"reset .* \(B, T\) = \(2, 4\), got \(4,\)"),
    "unbatched mask": ((4, 3), {"mask": torch.ones(1, 4).bool()}, r"mask .* \(T\) = \(4\), got \(1, 4\)"),
    "unbatched lengths": ((4, 3), {"lengths": [2, 3]}, "an unbatched input has one length, got 2"),
    "unbatched reset_state": (
        (4, 3),
        {"reset": torch.ones(4).bool(), "reset_state": torch.zeros(4)},
        r"reset_state of shape \(1, 4\), got \(4,\)",
    ),
}


@pytest.mark.parametrize("shape, options, message", LAYOUTS.values(), ids=LAYOUTS)
def test_errors_speak_in_the_layout_of_the_user(shape, options, message):
    with pytest.raises(InputError, match=message):
        GRU(3, 4, batch_first=True)(torch.randn(shape), **options)


@pytest.mark.parametrize(
    "lengths", [[4, 2], (4, 2), np.array([4, 2]), torch.tensor([4, 2], dtype=torch.uint8)], ids=str
)
def test_lengths_of_every_type(lengths):
    layer, x = GRU(3, 4), torch.randn(4, 2, 3)
    assert torch.equal(layer(x, lengths=lengths)[0], layer(x, lengths=torch.tensor([4, 2]))[0])


@pytest.mark.parametrize(
    "options",
    [
        {"lengths": [2]},
        {"mask": torch.ones(2, 1).bool()},
        {"reset": torch.ones(2, 1).bool()},
        {"reset_state": torch.zeros(1, 1, 4)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_flags_do_not_go_with_a_packed_sequence(options):
    (name,) = options
    with pytest.raises(InputError, match=f"{name} requires a padded input, .* pad_packed_sequence gives the"):
        GRU(3, 4)(pack_sequence([torch.randn(2, 3)]), **options)


def test_no_rows_have_an_empty_list_of_lengths():
    y, h_n = GRU(3, 4)(torch.randn(5, 0, 3), lengths=[])
    assert y.shape == (5, 0, 4) and h_n.shape == (1, 0, 4)


def test_lengths_of_a_subclass_without_memory():
    gru, x, lengths = GRU(3, 4), torch.randn(5, 2, 3), torch.tensor([2, 1])
    y, _ = gru(x, lengths=TwoTensor(lengths, lengths.clone()))
    torch.testing.assert_close(y.a, gru(x, lengths=lengths)[0])


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_lengths_without_values(mode):
    gru, x, lengths = GRU(3, 4), torch.randn(5, 2, 3), torch.tensor([2, 4])
    graph = make_fx(lambda x, lengths: gru(x, lengths=lengths)[0], tracing_mode=mode, _allow_non_fake_inputs=True)
    torch.testing.assert_close(graph(x, lengths)(x, lengths), gru(x, lengths=lengths)[0])
    with FakeTensorMode():
        assert GRU(3, 4)(torch.randn(5, 2, 3), lengths=[5, 2])[0].shape == (5, 2, 4)
