"""Equal bits: results do not depend on threads, on what is kept for backward, or on other rows of the batch."""

from contextlib import contextmanager

import pytest
import torch
from contract import Case, draw

from grucore.kernels import State, Steps
from grucore.kernels.native import layer, library

pytestmark = pytest.mark.skipif(library.UNAVAILABLE is not None, reason=str(library.UNAVAILABLE))

SIZES = {
    "rows divided": Case(T=14, B=33, I=24, H=60),
    "rows divided, resets": Case(T=14, B=33, I=24, H=60, flags="lengths resets"),
    "units divided": Case(T=9, B=1, I=20, H=384),
    "units divided, padding": Case(T=9, B=2, I=20, H=384, flags="lengths"),
    "units and rows divided": Case(T=5, B=9, I=20, H=200),
}
CASES = {
    f"{name}{'' if after else ', reset before'}{', two-way' if two_way else ''}": case._replace(
        reset_after=after, two_way=two_way
    )
    for name, case in SIZES.items()
    for after in (True, False)
    for two_way in (False, True)
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@contextmanager
def threads(n):
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(call, keeps=True):
    """y, h_n, dx, dh0 and the other gradients."""
    values = (call.state, call.weights, call.steps, call.form)
    kept = layer.new_kept(call.x, call.state.h0) if keeps else None
    y, h_n = layer.gru_forward(call.x, *values, kept)
    gradients = layer.gru_backward(call.dy, call.dh_n, y, call.x, *values, call.need_dx, kept)
    return [y, h_n, *(t for t in gradients if t is not None)]


def assert_same(results, want):
    for got, expected in zip(results, want, strict=True):
        assert torch.allclose(got, expected, rtol=0, atol=0, equal_nan=True)


def rows_of(call, rows):
    """The call of only those rows."""
    state = State(*(None if t is None else t[:, rows] for t in call.state))
    steps = Steps(*(None if t is None else t[:, rows] for t in call.steps))
    return call._replace(x=call.x[:, rows], state=state, steps=steps, dy=call.dy[:, rows], dh_n=call.dh_n[:, rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@each_case
def test_any_number_of_threads(case, dtype):
    call = draw(case, dtype)
    with threads(1):
        want = run(call)
    for n in (2, 3, 5, 8):
        with threads(n):
            assert_same(run(call), want)


@each_case
def test_a_row_alone(case):
    call = draw(case._replace(B=7), torch.float32)
    want = run(call)[:4]
    for b in (0, 3, 6):
        rows = slice(b, b + 1)
        assert_same(run(rows_of(call, rows))[:4], [t[:, rows] for t in want])


@each_case
def test_whatever_is_kept(case, monkeypatch):
    call = draw(case._replace(B=max(case.B, 2)), torch.float32)
    want = run(call, keeps=False)
    assert_same(run(call), want)
    rows, per_row = case.T * max(case.B, 2), layer.new_kept(call.x, call.state.h0)[:, 0].nbytes
    for part in (0, 1, rows // 3, rows - 1):
        monkeypatch.setattr(layer, "KEPT_BYTES", part * per_row)
        assert layer.new_kept(call.x, call.state.h0).shape[1] == part
        assert_same(run(call), want)


@pytest.mark.parametrize("poisoned", ["x", "h0", "dy", "dh_n"])
@each_case
def test_a_nan_stays_in_its_row(case, poisoned):
    """In y, h_n, dx and dh0; the gradients of weights depend on all rows."""
    call = draw(case._replace(B=7), torch.float32)
    want, others = run(call)[:4], [0, 1, 2, 3, 4, 5]  # the last row has steps under every flag
    x, h0, dy, dh_n = (t.clone() for t in (call.x, call.state.h0, call.dy, call.dh_n))
    {"x": x, "h0": h0, "dy": dy, "dh_n": dh_n}[poisoned][:, 6] = torch.nan
    results = run(call._replace(x=x, state=State(h0), dy=dy, dh_n=dh_n))[:4]
    assert results[3][:, 6].isnan().any() or results[2][:, 6].isnan().any()
    assert_same([t[:, others] for t in results], [t[:, others] for t in want])
