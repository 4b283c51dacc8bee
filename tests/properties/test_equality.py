"""Every drawn call equals the equations in NumPy, and torch.nn.GRU where it has the options.

The error of each tensor may be the limit of `oracle.py` plus the effect of rounding in the dtype of the case, see
`rounding.py`. A gate that is saturated passes gradients below the last digit of 1, which are lost.
"""

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from oracle import worst
from rounding import rms, tolerances, tolerances_everywhere
from strategies import HEADS, MAGNITUDES, NATIVE, REGULARISED, STRIDES, Case, bf16, cases, f16, f32, problem_of
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

BACKENDS = ["reference", "eager", *NATIVE]
BATCHED = st.sampled_from(["time first", "batch first"])
SMALL = st.sampled_from([m for m in MAGNITUDES if m <= 1])  # beyond, nn.GRU loses 1 - z in float64 too
TINY = 1e-30  # the step along the imaginary axis
# Found by the long profile: gradients beyond float16, and sums that lose more than rounding of the inputs shows.
OF_ONE_UNIT = {"H": 1, "layers": 2, "magnitude": 1e-8, "dtype": f32}
NORMALISED = Case(T=1, B=1, I=2, seed=72, layer_norm=True, recurrent_activation="hard_sigmoid", **OF_ONE_UNIT)
NORMALISED = NORMALISED._replace(layout="unbatched", padding="mask")
OVERFLOWING = Case(T=4, I=2, H=15, layers=3, two_way=True, reset_after=False, magnitude=100.0, dtype=f16)
CANCELLING = Case(T=7, B=4, I=6, seed=621, two_way=True, **OF_ONE_UNIT)


def assert_within(errors, problem, layer, want):
    """Each error has a label, the name of its result, and the factor by which it may exceed the result's tolerance."""
    allowed, note = tolerances(problem, layer, want), ""
    if any(error > factor * allowed[name] for _, name, error, factor in errors):
        allowed, note = tolerances_everywhere(problem, layer, want), ", each operation rounded"
    for label, name, error, factor in errors:
        limit = factor * allowed[name]
        assert error <= limit, f"{label}: error {error:.1e}, allowed {limit:.1e}"
        key = f"{str(problem.case.dtype).removeprefix('torch.')} of properties, as a share{note}"  # for the summary
        worst[key] = max(worst.get(key, (0.0, 1.0)), (float(error / limit) if limit else 0.0, 1.0))


def errors_of(got, want):
    return [(name, name, rms(got[name].double() - value), 1.0) for name, value in want.items()]


def check_equations(case, backend):
    """Outputs, and the gradient of each tensor along a random direction."""
    problem = problem_of(case)
    layer = problem.layer(backend)
    got, values = problem.run(layer), problem.arrays(layer)
    want = problem.equations(values, layer)
    want = {name: torch.from_numpy(want[name]) for name in ("y", "h_n")}
    errors, numbers = errors_of(got, want), np.random.default_rng(case.seed)
    for name, value in values.items():
        along = numbers.standard_normal(value.shape)
        slope = problem.loss(problem.equations(values | {name: value + 1j * TINY * along}, layer)).imag / TINY
        error = abs(float((got[name].double().numpy() * along).sum()) - slope)
        if value.size:
            factor = np.sqrt(value.size) * np.linalg.norm(along)
            errors.append((f"the gradient {name}, along a direction", name, error, factor))
    assert_within(errors, problem, layer, want)


def is_in_range(case, backend):
    """Whether no exact result is above a quarter of the dtype's largest number."""
    problem = problem_of(case)
    exact = problem.in_float64()
    there = exact.layer("reference")
    there.load_state_dict(problem.layer(backend).state_dict())
    largest = max((float(value.abs().max()) for value in exact.run(there).values() if value.numel()), default=0.0)
    return largest < torch.finfo(case.dtype).max / 4


def check_torch(case, backend):
    """Outputs and gradients, of padded rows from a PackedSequence, which torch.nn.GRU takes instead."""
    problem = problem_of(case)
    layer = problem.layer(backend)
    oracle = layer.to_torch().double()
    same = problem.in_float64()
    lengths = same.lengths if case.padding else None

    def packed(x, hx, **_):
        if lengths is None:
            return oracle(x, hx)
        rows = pack_padded_sequence(x, lengths, case.layout == "batch first", enforce_sorted=False)
        y, h_n = oracle(rows, hx)
        return pad_packed_sequence(y, oracle.batch_first, total_length=case.T)[0], h_n

    packed.named_parameters = oracle.named_parameters
    want = same.run(packed)
    assert_within(errors_of(problem.run(layer), want), problem, layer, want)


@pytest.mark.parametrize("backend", BACKENDS)
@given(case=cases())
def test_the_equations(backend, case):
    check_equations(case, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@given(case=cases(**HEADS))
def test_the_equations_of_heads(backend, case):
    check_equations(case, backend)


@given(case=cases(**REGULARISED | HEADS | {"layer_norm": False}))  # which is of each head
def test_the_equations_of_heads_regularised(case):
    check_equations(case, "auto")


@pytest.mark.parametrize("backend", ["eager", *NATIVE])
@given(case=cases(dtype=st.sampled_from([bf16, f16]), H=st.integers(3, 20), strides=st.sampled_from(STRIDES[:3])))
@example(case=OVERFLOWING)
def test_the_equations_in_16_bits(backend, case):
    assume(is_in_range(case, backend))
    check_equations(case, backend)


@given(case=cases(**REGULARISED))
@example(case=NORMALISED)
def test_the_equations_regularised(case):
    check_equations(case, "auto")


@pytest.mark.slow
@settings(max_examples=3)
@given(case=cases(reset_after=True, dtype=f32, T=st.integers(1, 3), H=st.integers(1, 9), layers=1))
def test_the_equations_in_tritons_interpreter(case):
    check_equations(case, "triton")


@pytest.mark.parametrize("backend", BACKENDS)
@given(case=cases(reset_after=True, resets="", padding="", T=st.integers(1, 7), magnitude=SMALL))
@example(case=CANCELLING)
def test_nn_gru(backend, case):
    check_torch(case, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@given(case=cases(reset_after=True, resets="", padding="lengths", layout=BATCHED, T=st.integers(1, 7), magnitude=SMALL))
def test_nn_gru_on_packed_rows(backend, case):
    assume(problem_of(case).lengths.all() and case.B)  # nn.GRU takes no row without steps
    check_torch(case, backend)
