"""lengths, mask, reset and PackedSequence: against torch.nn.GRU on packed or cut sequences."""

import numpy as np
import pytest
import torch
from grucore.kernels.eager.packing import pack
from oracle import assert_near, compare, quantity, to_oracle
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

from grucore import GRU, InputError
from grucore.kernels import Steps, reference

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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one-way", "two-way"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_lengths_equal_packed_nn_gru(lengths, bidirectional, dtype):
    layer = GRU(3, 6, num_layers=2, bidirectional=bidirectional, dtype=dtype)
    x = with_nan_padding(torch.randn(9, 5, 3, dtype=dtype), lengths)

    def packed(module, x, h):
        y, h_n = module(pack_padded_sequence(x.nan_to_num(), lengths, enforce_sorted=False), h)
        return pad_packed_sequence(y, total_length=9)[0], h_n

    hx = torch.randn(2 * layer.num_directions, 5, 6, dtype=dtype)
    compare(layer, to_oracle(layer), x, hx, lambda m, x, h: m(x, h, lengths=torch.tensor(lengths)), packed)


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one-way", "two-way"])
def test_zero_lengths(bidirectional):
    """A row without a step: output 0, h_n and its gradient those of hx. The other rows as if it were not there."""
    layer = GRU(3, 6, bidirectional=bidirectional, dtype=torch.float64)
    lengths, kept = [0, 4, 0, 2], [1, 3]
    x = with_nan_padding(torch.randn(5, 4, 3, dtype=torch.float64), lengths).requires_grad_()
    hx = torch.randn(layer.num_directions, 4, 6, dtype=torch.float64, requires_grad=True)
    y, h_n = layer(x, hx, lengths=lengths)
    y_kept, h_n_kept = layer(x[:, kept], hx[:, kept], lengths=[4, 2])
    torch.testing.assert_close(y[:, kept], y_kept, rtol=0, atol=1e-15)
    torch.testing.assert_close(h_n[:, kept], h_n_kept, rtol=0, atol=1e-15)
    assert y[:, [0, 2]].count_nonzero() == 0
    assert torch.equal(h_n[:, [0, 2]], hx[:, [0, 2]])
    dh_n = torch.randn_like(h_n)
    dx, dh = torch.autograd.grad((y.square().sum() + (h_n * dh_n).sum()), [x, hx])
    assert torch.equal(dh[:, [0, 2]], dh_n[:, [0, 2]])
    assert not dx.isnan().any()
    assert dx[:, [0, 2]].count_nonzero() == 0


def test_all_lengths_zero():
    layer, hx = GRU(3, 6), torch.randn(1, 4, 6)
    y, h_n = layer(
        torch.full((5, 4, 3), float("nan"), requires_grad=True), hx, lengths=torch.zeros(4, dtype=torch.int32)
    )
    assert y.count_nonzero() == 0
    assert torch.equal(h_n, hx)
    y.sum().backward()
    assert all(p.grad.count_nonzero() == 0 for p in layer.parameters())


def compacted(module, x, h, real, cut):
    """What mask and reset mean, row by row with torch.nn.GRU: its real steps alone, in pieces that begin from h."""
    T, B, _ = x.shape
    H = module.hidden_size
    D = 2 if module.bidirectional else 1
    rows_y, rows_h = [], []
    for b in range(B):
        h_b = h[:, b : b + 1]
        layer_in = x[:, b : b + 1].nan_to_num()
        states = []
        for layer in range(module.num_layers):
            outs = []
            for d in range(D):
                single = torch.nn.GRU(layer_in.shape[-1], H, dtype=x.dtype)
                suffix = f"_l{layer}" + ("_reverse" if d else "")
                params = {
                    f"{kind}_l0": getattr(module, kind + suffix)
                    for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                }
                i = layer * D + d
                y = torch.zeros(T, 1, H, dtype=x.dtype)
                state, pieces, piece = h_b[i : i + 1], [], []
                for t in range(T):
                    if cut[t, b]:
                        pieces.append(piece)
                        piece = []
                    if real[t, b]:
                        piece.append(t)
                pieces = [p for p in [*pieces, piece] if p]
                for piece in reversed(pieces) if d else pieces:
                    order = piece[::-1] if d else piece
                    y_piece, state = torch.func.functional_call(single, params, (layer_in[order], h_b[i : i + 1]))
                    y = y.index_copy(0, torch.tensor(order), y_piece)
                outs.append(y)
                states.append(state)
            layer_in = torch.cat(outs, -1)
        rows_y.append(layer_in)
        rows_h.append(torch.cat(states))
    return torch.cat(rows_y, 1), torch.cat(rows_h, 1)


def random_flags(T, B, kind):
    generator = torch.Generator().manual_seed(1)
    real, cut = torch.ones(T, B, dtype=torch.bool), torch.zeros(T, B, dtype=torch.bool)
    if "gaps" in kind:
        real = torch.rand(T, B, generator=generator) < 0.6
        real[:, 1] = False
    if "left" in kind:
        real = torch.arange(T).unsqueeze(1) >= torch.tensor([0, 3, T, 1, T - 1][:B])
    if "reset" in kind:
        cut = torch.rand(T, B, generator=generator) < 0.3
        cut[0, 0], cut[-1, 0], cut[:, 2] = True, True, True
    return real, cut


@pytest.mark.parametrize("backend", ["eager", "reference"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one-way", "two-way"])
@pytest.mark.parametrize("kind", ["gaps", "left", "reset", "gaps and reset", "left and reset"])
def test_mask_and_reset_equal_pieces_of_nn_gru(kind, bidirectional, backend):
    T, B = 11, 5
    layer = GRU(3, 4, num_layers=2, bidirectional=bidirectional, dtype=torch.float64, backend=backend)
    real, cut = random_flags(T, B, kind)
    x = torch.randn(T, B, 3, dtype=torch.float64).masked_fill(~real.unsqueeze(-1), float("nan"))
    hx = torch.randn(2 * layer.num_directions, B, 4, dtype=torch.float64)
    options = {"mask": real if kind != "reset" else None, "reset": cut if "reset" in kind else None}
    call = lambda m, x, h: m(x, h, **options)  # noqa: E731
    compare(layer, to_oracle(layer), x, hx, call, lambda m, x, h: compacted(m, x, h, real, cut))


def test_padding_may_hold_anything():
    """Inputs and incoming gradients in the padding change nothing."""
    layer = GRU(3, 4, num_layers=2, bidirectional=True)
    mask = torch.tensor([[1, 0, 1, 1], [0, 1, 1, 0]], dtype=torch.bool).t()
    clean = torch.randn(4, 2, 3)
    results = []
    for fill in (0.0, float("inf")):
        x = clean.masked_fill(~mask.unsqueeze(-1), fill).requires_grad_()
        y, h_n = layer(x, mask=mask)
        dy = torch.ones_like(y).masked_fill(~mask.unsqueeze(-1), fill)
        results.append([y, h_n, *torch.autograd.grad([y, h_n], [x, *layer.parameters()], [dy, torch.ones_like(h_n)])])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


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


def test_packing_computes_real_steps_alone():
    """Padding costs nothing: the packed sequence holds the real steps, each once."""
    real, cut = random_flags(11, 5, "gaps and reset")
    packing = pack(Steps(real, cut), reverse=False)
    assert sorted(packing.position.tolist()) == real.flatten().nonzero().squeeze(1).tolist()
    assert packing.sizes == sorted(packing.sizes, reverse=True)
    assert sum(packing.sizes) == int(real.sum())


def test_cuts_of_the_reference():
    """A cut in the padding falls on the next real step, one with no step beyond it on none."""
    start = torch.tensor([1, 0, 1, 0, 0, 1], dtype=torch.bool).unsqueeze(1)
    real = torch.tensor([1, 1, 0, 1, 1, 0], dtype=torch.bool).unsqueeze(1)
    assert reference.cuts(start, real, False).squeeze(1).tolist() == [True, False, False, True, False, False]
    assert reference.cuts(start, real, True).squeeze(1).tolist() == [False, True, False, False, True, False]


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one-way", "two-way"])
def test_flags_are_not_read_on_the_host(bidirectional):
    """A tensor on the meta device has a shape and no values: whoever reads one raises."""
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
    "reset shape": (InputError, r"reset must have a flag .* got \(4,\)", {"reset": torch.ones(4).bool()}),
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
    with pytest.raises(InputError, match=f"{name} goes with a padded input, .* pad_packed_sequence gives the input"):
        GRU(3, 4)(pack_sequence([torch.randn(2, 3)]), **options)
