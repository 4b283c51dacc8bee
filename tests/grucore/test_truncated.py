"""A batch in parts: truncated backpropagation, carried states, resets to another state than the carried one."""

import pytest
import torch
from oracle import assert_near

from grucore import GRU, GRUCell, InputError, truncated_bptt

f64 = torch.float64
T, B = 11, 4


def some_flags(kind):
    generator = torch.Generator().manual_seed(2)
    reset = torch.rand(T, B, generator=generator) < 0.25
    reset[:, 0] = False
    return {
        "none": {},
        "lengths": {"lengths": torch.tensor([11, 0, 4, 7])},
        "mask": {"mask": torch.rand(T, B, generator=generator) < 0.6},
        "mask and reset": {"mask": torch.rand(T, B, generator=generator) < 0.5, "reset": reset},
        "reset": {"reset": reset},
        "reset and lengths": {"reset": reset, "lengths": torch.tensor([11, 0, 4, 7])},
        "reset to a state": {"reset": reset, "reset_state": torch.randn(2, B, 5, generator=generator, dtype=f64)},
    }[kind]


@pytest.mark.parametrize("initial", ["zero", "given", "learned"])
@pytest.mark.parametrize(
    "kind", ["none", "lengths", "mask", "mask and reset", "reset", "reset and lengths", "reset to a state"]
)
@pytest.mark.parametrize("steps", [1, 4, 20])
def test_parts_equal_the_whole(kind, initial, steps):
    model = GRU(3, 5, num_layers=2, learn_initial_state=initial == "learned", dtype=f64)
    if initial == "learned":
        torch.nn.init.normal_(model.initial_state)
    x, hx = torch.randn(T, B, 3, dtype=f64), torch.randn(2, B, 5, dtype=f64) if initial == "given" else None
    options = some_flags(kind)
    want, h_want = model(x, hx, **options)
    parts = list(truncated_bptt(model, x, hx, steps=steps, **options))
    assert [part.steps.start for part in parts] == list(range(0, T, steps)) and parts[-1].steps.stop == T
    assert_near("output", torch.cat([part.y for part in parts]), want)
    assert_near("output", parts[-1].h_n, h_want)


def test_batch_first():
    model = GRU(3, 5, batch_first=True, dtype=f64)
    x, reset = torch.randn(B, T, 3, dtype=f64), some_flags("reset")["reset"].t()
    parts = [part.y for part in truncated_bptt(model, x, steps=4, reset=reset)]
    assert_near("output", torch.cat(parts, 1), model(x, reset=reset)[0])


def test_batch_first_with_a_mask_and_resets():
    model, flags = GRU(3, 5, batch_first=True, dtype=f64), some_flags("mask and reset")
    x, flags = torch.randn(B, T, 3, dtype=f64), {name: flag.t() for name, flag in flags.items()}
    parts = [part.y for part in truncated_bptt(model, x, steps=2, **flags)]
    assert_near("output", torch.cat(parts, 1), model(x, **flags)[0])


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.uint16, torch.int32, torch.uint64])
def test_lengths_of_any_integers(dtype):
    """8 bits cannot count the steps."""
    model, x = GRU(3, 5, dtype=f64), torch.randn(300, 2, 3, dtype=f64)
    lengths = torch.tensor([100, 3]).to(dtype)
    parts = [part.y for part in truncated_bptt(model, x, steps=60, lengths=lengths)]
    assert_near("output", torch.cat(parts), model(x, lengths=[100, 3])[0])


@pytest.mark.parametrize("lengths", [[12, 3, 3, 3], [5, -1, 3, 3], [3, 3]])
def test_lengths_that_do_not_fit(lengths):
    with pytest.raises(InputError, match="lengths"):
        next(truncated_bptt(GRU(3, 5), torch.randn(T, B, 3), steps=4, lengths=lengths))


def test_a_state_that_resets_go_to_has_gradients_from_all_parts():
    model, hx = GRU(3, 5, dtype=f64), torch.randn(1, B, 5, dtype=f64, requires_grad=True)
    x, reset = torch.randn(T, B, 3, dtype=f64), some_flags("reset")["reset"]
    for part in truncated_bptt(model, x, hx, steps=4, reset=reset):
        part.y.sum().backward()
        was, hx.grad = hx.grad, None
        assert part.steps.start > 0 or was.count_nonzero() == was.numel()
        rows = (was != 0).any(-1)[0]
        assert part.steps.start == 0 or torch.equal(rows, reset[part.steps].any(0))


def test_no_gradient_crosses_parts():
    model, x = GRU(3, 5, dtype=f64), torch.randn(T, B, 3, dtype=f64, requires_grad=True)
    first, second, _ = truncated_bptt(model, x, steps=4)
    (dx,) = torch.autograd.grad(second.y.sum() + second.h_n.sum(), x)
    assert dx[4:8].count_nonzero() == dx[4:8].numel() and dx[:4].count_nonzero() == dx[8:].count_nonzero() == 0
    (dx,) = torch.autograd.grad(first.h_n.sum(), x)
    assert dx[:4].count_nonzero() == dx[:4].numel()


def test_resets_go_to_another_state_than_the_carried_one():
    """Against `step`, row by row and step by step, as an agent would act."""
    model = GRU(3, 5, num_layers=2, dtype=f64)
    x, carried, begin = (torch.randn(*s, dtype=f64) for s in ((T, B, 3), (2, B, 5), (2, B, 5)))
    reset = some_flags("reset")["reset"]
    y, h_n, gates, layers = model.trace(x, carried, reset=reset, reset_state=begin)
    h = carried
    for t in range(T):
        h = torch.where(reset[t].view(1, B, 1), begin, h)
        y_t, h = model.step(x[t], h)
        assert_near("output", y[t], y_t)
        assert_near("output", layers[0, t], h[0])
    assert_near("output", h_n, h)
    assert gates.z.shape == (2, T, B, 5) and gates.z.count_nonzero() == gates.z.numel()


def test_gradients_go_to_the_state_a_step_came_from():
    model = GRU(3, 5, dtype=f64)
    x = torch.randn(T, B, 3, dtype=f64)
    carried, begin = (torch.randn(1, B, 5, dtype=f64, requires_grad=True) for _ in range(2))
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[3, 1] = reset[0, 2] = True
    y, _ = model(x, carried, reset=reset, reset_state=begin)
    d_carried, d_begin = torch.autograd.grad(y.sum(), [carried, begin])
    reaches = lambda g: [bool(g[0, b].any()) for b in range(B)]  # noqa: E731
    assert reaches(d_carried) == [True, True, False, True] and reaches(d_begin) == [False, True, True, False]


@pytest.mark.parametrize("x", [torch.randn(T, 3), torch.randn(T, B, 3)], ids=["unbatched", "batched"])
def test_reset_state_of_zeros_equals_none_carried(x):
    model = GRU(3, 5)
    shape = x.shape[:-1]
    hx = torch.zeros(1, *shape[1:], 5)
    reset = torch.rand(shape) < 0.3
    torch.testing.assert_close(model(x, hx, reset=reset, reset_state=hx)[0], model(x, reset=reset)[0])


BAD = {
    "no reset": ({}, {"reset_state": torch.zeros(1, B, 5)}, "requires reset"),
    "shape": ({}, {"reset": True, "reset_state": torch.zeros(1, 1, 5)}, r"reset_state of shape \(1, 4, 5\)"),
    "two-way": ({"bidirectional": True}, {"reset": True, "reset_state": torch.zeros(2, B, 5)}, "unidirectional"),
}


@pytest.mark.parametrize("options, call, message", BAD.values(), ids=BAD)
def test_bad_reset_states(options, call, message):
    if "reset" in call:
        call = call | {"reset": torch.zeros(T, B, dtype=torch.bool)}
    with pytest.raises(InputError, match=message):
        GRU(3, 5, **options)(torch.randn(T, B, 3), **call)


BAD_PARTS = {
    "steps": ({}, (T, B, 3), 0, "steps must be greater than zero, got 0"),
    "two-way": ({"bidirectional": True}, (T, B, 3), 4, "unidirectional"),
    "unbatched": ({}, (T, 3), 4, "must have 3 dimensions"),
}


@pytest.mark.parametrize(
    "call, error, message",
    [
        ({"input": [1.0]}, TypeError, "input must be a Tensor, got list"),
        ({"mask": [[True] * B] * T}, TypeError, "mask must be a bool tensor, got list"),
        ({"reset_state": torch.zeros(1, B, 5)}, InputError, "reset_state"),
        (
            {"reset": torch.zeros(T + 1, B).bool()},
            InputError,
            rf"reset .* \(T, B\) = \({T}, {B}\), got \({T + 1}, {B}\)",
        ),
    ],
)
def test_bad_arguments_of_parts(call, error, message):
    """Errors come before the first part is computed."""
    with pytest.raises(error, match=message):
        next(truncated_bptt(GRU(3, 5), **{"input": torch.randn(T, B, 3), "steps": 4} | call))


@pytest.mark.parametrize("options, shape, steps, message", BAD_PARTS.values(), ids=BAD_PARTS)
def test_bad_parts(options, shape, steps, message):
    with pytest.raises(InputError, match=message):
        truncated_bptt(GRU(3, 5, **options), torch.randn(shape), steps=steps)


def test_parts_of_a_layer_that_stands_for_torchs(monkeypatch):
    monkeypatch.setattr(torch.nn, "GRU", GRU)
    assert next(truncated_bptt(torch.nn.GRU(3, 5), torch.randn(T, B, 3), steps=T)).y.shape == (T, B, 5)


def test_parts_need_a_gru_and_whole_steps():
    with pytest.raises(TypeError, match=r"model must be a grucore\.GRU, got torch.*DataParallel"):
        truncated_bptt(torch.nn.DataParallel(GRU(3, 5)), torch.randn(T, B, 3), steps=4)
    for other in (torch.nn.GRU(3, 5), torch.nn.LSTM(3, 5), GRUCell(3, 5)):
        with pytest.raises(TypeError, match=rf"model must be a grucore\.GRU, got .*{type(other).__name__}"):
            truncated_bptt(other, torch.randn(T, B, 3), steps=4)
    with pytest.raises(TypeError, match="steps should be of type int, got: float"):
        truncated_bptt(GRU(3, 5), torch.randn(T, B, 3), steps=2.5)
