"""Changes of a call that do not change its results, each in the strongest form that holds.

With "native" a row's numbers are the same bits whatever else is in the batch; with the others products of another
size may round in another way, which the tolerances of `near` allow for.
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from oracle import LIMITS
from rounding import rms, tolerances
from strategies import NATIVE, REGULARISED, Problem, cases, f32, f64, laid_out, problem_of

from grucore import GRU, GRUCell, truncated_bptt

BACKENDS = ["reference", "eager", *NATIVE]
MODERATE = st.sampled_from([1e-8, 1e-2, 1.0])
OF_ROWS = ("y", "h_n", "dx", "dh0", "dh_reset")  # the results of a row: B is the second dimension


def near(got, want, backend="", exact=True, allowed=None):
    """The same bits where `exact` and native, else within the limits of the dtype by the largest number.

    Where a case can be badly conditioned, `allowed` has the `tolerances` of either, which replace the limits.
    """
    for name, value in want.items():
        if exact and backend == "native":
            assert torch.equal(got[name], value), name
        elif allowed is not None:
            error, limit = rms(got[name] - value), 2 * allowed[name]
            assert error <= limit, f"{name}: {error:.1e}, allowed {limit:.1e}"
        else:
            scale = value.abs().max() if value.numel() else 0.0
            torch.testing.assert_close(got[name], value, rtol=0, atol=float(scale) * LIMITS[value.dtype]["dw"] + 1e-30)


def only(results, *names):
    return {name: value for name, value in results.items() if name in (names or OF_ROWS)}


def rows_of(problem, index):
    """The problem of some rows."""

    def some(t):
        return t if t is None else t[:, index]

    tensors = (problem.x, problem.hx, problem.real, problem.start, problem.reset_state, problem.dy, problem.dh_n)
    return Problem(problem.case._replace(B=len(index)), *map(some, tensors))


def poison(problem):
    """The problem with NaN and infinity where x is padding."""
    x = problem.x.clone()
    x[~problem.real] = torch.tensor([torch.nan, torch.inf, -torch.inf] * problem.case.I)[: problem.case.I].to(x.dtype)
    return replace(problem, x=x)


@pytest.mark.parametrize("backend", BACKENDS)
@given(case=cases(layout="time first", B=st.integers(1, 6), magnitude=MODERATE))
def test_a_row_by_itself(backend, case):
    problem = problem_of(case)
    layer = problem.layer(backend)
    whole = only(problem.run(layer))
    for b in range(case.B):
        row = rows_of(problem, [b])
        allowed = None if backend == "native" else tolerances(row, layer)  # dx of one feature may cancel to nothing
        want = {name: value[:, b : b + 1] for name, value in whole.items()}
        near(only(row.run(layer)), want, backend, allowed=allowed)


@pytest.mark.parametrize("backend", BACKENDS)
@given(case=cases(layout="time first", B=st.integers(2, 40), H=st.integers(1, 40), magnitude=MODERATE))
def test_rows_in_another_order(backend, case):
    problem = problem_of(case)
    layer, order = problem.layer(backend), torch.randperm(case.B)
    whole, mixed = (only(each.run(layer)) for each in (problem, rows_of(problem, order.tolist())))
    near(mixed, {name: value[:, order] for name, value in whole.items()}, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@given(case=cases(layout="time first", two_way=False, T=st.integers(2, 9), magnitude=MODERATE), data=st.data())
def test_time_in_parts(backend, case, data):
    """The state carried on; gradients flow through it."""
    problem = problem_of(case)
    assume(case.layers == 1 or not case.resets)  # the first layer's state would have to be carried, too
    layer, cut = problem.layer(backend), data.draw(st.integers(1, case.T - 1))

    def in_parts(x, hx, lengths=None, mask=None, reset=None, reset_state=None):
        first = torch.zeros(case.layers, case.B, case.H, dtype=case.dtype) if hx is None else hx
        outputs, h = [], first
        for part in (slice(0, cut), slice(cut, case.T)):
            flags = {"mask": problem.real[part]} if case.padding else {}
            if reset is not None:
                flags |= {"reset": reset[part], "reset_state": first if reset_state is None else reset_state}
            y, h = layer(x[part], h, **flags)
            outputs.append(y)
        return torch.cat(outputs), h

    in_parts.named_parameters = layer.named_parameters
    if case.resets and case.padding:  # a cut in padding falls on a later step, perhaps of the next part
        problem = replace(problem, start=problem.start & problem.real)
    near(problem.run(in_parts), problem.run(layer), exact=False)


@pytest.mark.parametrize("backend", BACKENDS)
@given(case=cases(layout="time first", two_way=True, layers=1, magnitude=MODERATE))
def test_the_second_direction_is_the_first_on_a_batch_turned_around(backend, case):
    problem = problem_of(case)
    layer, H = problem.layer(backend), case.H
    want = problem.run(layer)
    one = problem.case._replace(two_way=False)
    there = Problem(one, problem.x, None, problem.real, None, None, problem.dy[..., H:], problem.dh_n[1:]).layer(
        backend
    )
    for name, p in there.named_parameters():
        p.data = getattr(layer, name + "_reverse").data
    x, real, start = problem.x.flip(0), problem.real.flip(0), problem.start
    if start is not None:  # a cut before step t is one before step T - t of the other way
        start = torch.cat([torch.zeros_like(start[:1]), start[1:].flip(0)])
    hx = None if problem.hx is None else problem.hx[1:]
    case_there = one._replace(padding="mask" if case.padding else "")
    turned = Problem(case_there, x, hx, real, start, None, problem.dy[..., H:].flip(0), problem.dh_n[1:])
    got = turned.run(there)
    wants = {"y": want["y"][..., H:].flip(0), "h_n": want["h_n"][1:]}
    wants |= {name: want[name + "_reverse"] for name, _ in there.named_parameters()}
    near(got, wants, exact=False)
    near(only(got, "y", "h_n"), only(wants, "y", "h_n"), backend)


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@given(case=cases(padding=st.sampled_from(["lengths", "mask"]), strides="contiguous", **{"has_hx": st.booleans()}))
def test_what_padding_holds(backend, case):
    """NaN, infinity or zeros: the same bits in everything, with every backend."""
    problem = problem_of(case)
    layer, zeros = problem.layer(backend), problem.x.masked_fill(~problem.real.unsqueeze(-1), 0)
    want, got = replace(problem, x=zeros).run(layer), poison(problem).run(layer)
    for name, value in want.items():
        assert torch.equal(got[name], value), name
    padding = ~problem.real
    assert not want["y"][padding].any() and not want["dx"][padding].any()


@pytest.mark.parametrize("backend", BACKENDS)
@given(case=cases(layout="time first", padding="lengths", magnitude=MODERATE), more=st.integers(1, 5))
def test_more_padding(backend, case, more):
    """Steps that nobody has, after those of the longest row."""
    problem = problem_of(case)
    layer, T = problem.layer(backend), case.T

    def longer(t, value=0.0):
        return t if t is None else torch.cat([t, torch.full((more, *t.shape[1:]), value, dtype=t.dtype)])

    added = replace(problem, x=longer(problem.x, torch.nan), real=longer(problem.real), start=longer(problem.start))
    added = replace(added, dy=longer(problem.dy, torch.nan), case=case._replace(T=T + more))
    want, got = problem.run(layer), added.run(layer)
    assert not got["y"][T:].any() and not got["dx"][T:].any()
    near(got | {"y": got["y"][:T], "dx": got["dx"][:T]}, want, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@given(case=cases(strides=st.sampled_from(["strided", "expanded", "negated"])))
def test_strides(backend, case):
    problem = problem_of(case)
    layer = problem.layer(backend)
    dense = replace(problem, x=problem.x.clone(memory_format=torch.contiguous_format).resolve_neg())
    dense.hx = None if problem.hx is None else problem.hx.clone(memory_format=torch.contiguous_format).resolve_neg()
    assert dense.x.is_contiguous() and not dense.x.is_neg()
    want, allowed = dense.run(layer), None if backend == "native" else tolerances(dense, layer)
    near(problem.run(layer), want, backend, allowed=allowed)
    strided = replace(dense, dy=laid_out(dense.dy, "strided"), dh_n=laid_out(dense.dh_n, "strided"))
    near(strided.run(layer), want, backend, allowed=allowed)


@given(case=cases(**REGULARISED, padding="lengths", layout="time first"))
def test_lengths_are_a_mask(case):
    problem = problem_of(case)
    layer, as_mask = problem.layer(), replace(problem, case=case._replace(padding="mask"))
    near(as_mask.run(layer), problem.run(layer), "native" if case.dtype is f32 else "", exact=True)


@given(case=cases(**REGULARISED, layout=st.sampled_from(["batch first", "unbatched"])))
def test_layouts(case):
    """A batch and its rows one by one, in any layout, give the same bits."""
    problem = problem_of(case)
    there = replace(problem, case=case._replace(layout="time first"))
    got, want = problem.run(problem.layer()), there.run(there.layer())
    for name, value in want.items():
        assert torch.equal(got[name], value), name


@given(case=cases(**REGULARISED, layout="time first", two_way=False, padding="", resets=""))
def test_steps_and_cells(case):
    """One step after the other, with gradients, by `GRU.step` and, layer by layer, by cells."""
    assume(case.T)
    problem = problem_of(case)
    layer = problem.layer()

    def by_steps(x, hx):
        outputs = []
        for x_t in x:
            y, hx = layer.step(x_t, hx)
            outputs.append(y)
        return torch.stack(outputs), hx

    def by_cells(x, hx):
        states, outputs = [], []
        if hx is None:
            learned = layer.initial_state if case.learned else torch.zeros(case.layers, case.H, dtype=case.dtype)
            hx = learned.unsqueeze(1).expand(-1, case.B, -1)
        for k in range(case.layers):
            cell = cell_of(layer, k)
            weights = {name: getattr(layer, f"{name}_l{k}") for name, _ in cell.named_parameters()}
            h, outputs = hx[k], []
            for x_t in x:
                h = torch.func.functional_call(cell, weights, (x_t, h))
                outputs.append(h)
            x = torch.stack(outputs)
            states.append(h)
        return x, torch.stack(states)

    want, allowed = problem.run(layer), tolerances(problem, layer)
    for way in (by_steps, by_cells):
        way.named_parameters = layer.named_parameters
        near(problem.run(way), want, exact=False, allowed=allowed)


def cell_of(layer, k):
    names = ("bias", "reset_after", "heads", "zoneout", "layer_norm", "activation", "recurrent_activation")
    options = {name: getattr(layer, name) for name in names}
    size = layer.input_size if k == 0 else layer.hidden_size
    return GRUCell(size, layer.hidden_size, dtype=layer.weight_ih_l0.dtype, **options).eval()


@given(case=cases(layout=st.sampled_from(["time first", "batch first"]), two_way=False), steps=st.integers(1, 5))
def test_truncated_bptt_without_gradients(case, steps):
    problem = problem_of(case._replace(resets="to hx" if case.resets else ""))
    assume(case.T and (case.layers == 1 or not case.resets))
    layer, first = problem.layer(), case.layout == "batch first"
    if case.resets and case.padding:
        problem = replace(problem, start=problem.start & problem.real)
    turned = (lambda t: t.transpose(0, 1)) if first else (lambda t: t)
    flags = {name: turned(flag) if name != "lengths" else flag for name, flag in problem.flags().items()}
    with torch.no_grad():
        y, h_n = layer(turned(problem.x), problem.hx, **flags)
        parts = list(truncated_bptt(layer, turned(problem.x), problem.hx, steps=steps, **flags))
    got = {"y": torch.cat([part.y for part in parts], 1 if first else 0), "h_n": parts[-1].h_n}
    near(got, {"y": y, "h_n": h_n}, exact=False)


@given(case=cases(dtype=f64, layout="time first"))
def test_gates(case):
    """The gates of `trace` equal those of the equations, and 0 at padding."""
    problem = problem_of(case)
    layer = problem.layer()
    want = torch.from_numpy(problem.equations(problem.arrays(layer), layer)["gates"]).unbind(1)
    with torch.no_grad():
        trace = layer.trace(problem.x, problem.hx, **problem.flags())
    for got, gate in zip(trace.gates, want, strict=True):
        torch.testing.assert_close(got, gate, rtol=0, atol=1e-9)
    assert len(trace.layers) == case.layers and torch.equal(trace.layers[-1], trace.y)


@given(case=cases(**REGULARISED, layout="time first"))
def test_state_dicts_and_repr(case):
    problem = problem_of(case)
    layer = problem.layer()
    again = eval(repr(layer), {"GRU": GRU}).to(case.dtype).eval()
    again.load_state_dict(layer.state_dict())
    with torch.no_grad():
        results = [each(problem.x, problem.hx, **problem.flags()) for each in (layer, again)]
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
