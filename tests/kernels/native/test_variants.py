"""Dropout, zoneout, layer normalisation, activations: the kernels against the equations in PyTorch, under one seed."""

import contextlib
import copy
import itertools

import pytest
import torch
from contract import Case, draw

from grucore import GRU, GRUCell, InputError, dispatch, gru
from grucore.kernels import Form, State, Steps, Weights, regularised
from grucore.kernels.native import layer as native
from grucore.kernels.native.library import LIBRARY, UNAVAILABLE
from grucore.kernels.regularised import ACTIVATIONS, Gains, Variant

pytestmark = pytest.mark.skipif(LIBRARY is None, reason=str(UNAVAILABLE))

LIMITS = {torch.float64: 1e-12, torch.float32: 2e-6}  # 1.1e-15 and 6.3e-7 at worst
UNBOUNDED = {torch.float64: 1e-12, torch.float32: 1e-5}  # of gates that amplify errors: 1.6e-14 and 3.5e-6 at worst
VARIANTS = {
    "dropout": Variant(recurrent_dropout=0.3, training=True),
    "zoneout": Variant(zoneout=0.4, training=True),
    "both": Variant(recurrent_dropout=0.5, zoneout=0.1, training=True),
    "zoneout of all units": Variant(zoneout=1.0, training=True),
    "zoneout's expectation": Variant(zoneout=0.4),
    "normalised": Variant(layer_norm=True),
    "all": Variant(0.3, 0.4, True, "softsign", "hard_sigmoid", training=True),
    **{f"{name} candidate": Variant(activation=name) for name in ACTIVATIONS if name != "tanh"},
    **{f"{name} gates": Variant(recurrent_activation=name) for name in ACTIVATIONS if name != "sigmoid"},
    "relu with zoneout": Variant(zoneout=0.2, activation="relu", recurrent_activation="hard_tanh", training=True),
}
CASES = [
    Case(6, 5, 3, 19, two_way=True),
    Case(7, 70, 3, 33, flags="lengths"),
    Case(6, 3, 3, 20, flags="gaps resets state"),
    Case(6, 4, 3, 8, two_way=True, flags="resets", bias=False),
    Case(6, 9, 3, 17, two_way=True, flags="gaps resets state", heads=2),
]


def gains_of(case, variant, dtype):
    """Returns the gains of layer normalisation, each (D, 3H)."""
    return Gains(*(1 + torch.randn(2, case.D, 3 * case.H, dtype=dtype) / 2)) if variant.layer_norm else None


def run(call, variant, gains, seed, kept_part=2):
    """y, h_n and all gradients; kept_part of 2 parts of what backward needs is kept, the rest computed again."""
    D = len(call.state.h0)
    pairs = None if gains is None else [Gains(*(gain[d] for gain in gains)) for d in range(D)]
    weights, x = [call.weights.of(d) for d in range(D)], call.x.nan_to_num()
    kept = native.new_kept(x, call.state.h0, variant.layer_norm)
    kept = None if kept_part == 0 else kept[:, : kept.shape[1] * kept_part // 2].contiguous()
    y, h_n = native.forward_by_direction(x, call.state, weights, call.steps, call.form, kept, variant, seed, pairs)
    others = (call.steps, call.form, True, kept, variant, seed, pairs)
    gradients, d_gains = native.backward_by_direction(call.dy, call.dh_n, y, x, call.state, weights, *others)
    assert (d_gains is None) == (gains is None)
    return [y, h_n, *gradients, *(d_gains or ())]


@pytest.mark.parametrize("reset_after", [True, False], ids=["after", "before"])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_equals_the_equations(variant, case, reset_after):
    """Gates kept for backward, computed again, and in part; one thread and two: the same bits; both dtypes."""
    if variant.layer_norm and not reset_after:
        pytest.skip("there is no such layer")
    limits = UNBOUNDED if variant.recurrent_activation in ("relu", "linear") else LIMITS
    for dtype, limit in limits.items():
        call = draw(case._replace(reset_after=reset_after), dtype)
        seed = torch.tensor(7) if variant.training else None
        gains = gains_of(case, variant, dtype)
        values = [call.x.nan_to_num(), *call.state, *call.weights, *(gains or ())]
        leaves = [None if t is None else t.detach().clone().double().requires_grad_() for t in values]
        x, h0, h_reset, *weights = leaves
        state, weights, exact = type(call.state)(h0, h_reset), type(call.weights)(*weights[:4]), weights[4:]
        exact = Gains(*exact) if exact else None
        y, h_n, _ = regularised.gru_layer(x, state, weights, exact, call.steps, call.form, variant, seed)
        given, ends = [t for t in leaves if t is not None], [call.dy.nan_to_num().double(), call.dh_n.double()]
        want = [y, h_n, *torch.autograd.grad([y, h_n], given, ends, allow_unused=True, materialize_grads=True)]
        first = None
        for part, threads in itertools.product((0, 1, 2), (1, 2)):
            torch.set_num_threads(threads)
            y, h_n, *gradients = run(call, variant, gains, seed, part)
            got = [y, h_n, *(g for g, t in zip(gradients, leaves, strict=True) if t is not None)]
            for a, b in zip(got, want, strict=True):
                assert a.dtype is dtype and (a - b).norm() <= limit * b.norm()
            first = first or got
            assert all(torch.equal(a, b) for a, b in zip(got, first, strict=True))


BITS = {
    "rows divided": Case(T=14, B=33, I=24, H=60, two_way=True, flags="lengths resets"),
    "units divided": Case(T=9, B=2, I=20, H=384, flags="lengths"),
    "units and rows divided": Case(T=5, B=9, I=20, H=200, two_way=True),
}


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("case", BITS.values(), ids=BITS)
@pytest.mark.parametrize("variant", ["normalised", "all", "relu gates"])
def test_the_same_bits(variant, case, dtype):
    """Checks any number of threads and, without noise (which depends on the row), a row by itself."""
    variant, seed, call = VARIANTS[variant], torch.tensor(3), draw(case, dtype)
    gains = gains_of(case, variant, dtype)
    torch.set_num_threads(1)
    want = run(call, variant, gains, seed)
    for n in (2, 3, 5, 8):
        torch.set_num_threads(n)
        for a, b in zip(run(call, variant, gains, seed), want, strict=True):
            assert (a is None and b is None) or torch.equal(a, b)
    if variant.training:
        return
    for b in range(0, case.B, 4):
        rows = slice(b, b + 1)
        state = type(call.state)(*(None if t is None else t[:, rows] for t in call.state))
        steps = type(call.steps)(*(None if t is None else t[:, rows] for t in call.steps))
        alone = call._replace(x=call.x[:, rows], state=state, steps=steps, dy=call.dy[:, rows], dh_n=call.dh_n[:, rows])
        for got, whole in zip(run(alone, variant, gains, seed)[:4], want, strict=False):
            assert torch.equal(got, whole[:, rows])


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_zoneout_keeps_the_digits_of_z_and_the_state_itself():
    """An update gate of 2e-9 times a state of a million; and a state that stays where the new one is a NaN."""
    variant, seed, H = Variant(zoneout=0.5, training=True), torch.tensor(3), 40
    weights = Weights(*(torch.zeros(1, *shape) for shape in ((3 * H, 1), (3 * H, H), (3 * H,), (3 * H,))))
    weights.b_ih[0, H : 2 * H] = -20.0
    state = State(torch.full((1, 1, H), 1e6))
    for form in (Form(), Form(reset_after=False)):
        got, _ = native.forward_by_direction(
            torch.zeros(1, 1, 1), state, [weights.of(0)], Steps(), form, None, variant, seed
        )
        want, _, _ = regularised.gru_layer(torch.zeros(1, 1, 1), state, weights, None, Steps(), form, variant, seed)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=0)
        assert 0 < want.min() < 0.01 and want.max() == 1e6
        for value in (float("nan"), float("inf")):
            x, ones = torch.full((1, 1, 1), value), weights._replace(w_ih=torch.ones(1, 3 * H, 1))
            got, _ = native.forward_by_direction(x, state, [ones.of(0)], Steps(), form, None, variant, seed)
            want, _, _ = regularised.gru_layer(x, state, ones, None, Steps(), form, variant, seed)
            torch.testing.assert_close(got, want, equal_nan=True)
            assert 0 < (want == 1e6).sum() <= H


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_a_seed_means_the_same_with_and_without_the_library(training, monkeypatch):
    """Whole layers: what a run computes does not depend on whether there is a compiler."""
    options = {"num_layers": 2, "bidirectional": True, "recurrent_dropout": 0.2, "zoneout": 0.1}
    options |= {"layer_norm": True, "activation": "hard_tanh"}
    layer, x = GRU(3, 8, **options).double().train(training), torch.randn(5, 4, 3, dtype=torch.float64)
    results = []
    for name in ("native", "regularised"):
        assert layer.explain_backend(x).name == name
        torch.manual_seed(3)
        y, _ = layer(x, lengths=[5, 0, 2, 3])
        results.append([y, *torch.autograd.grad(y.square().sum(), list(layer.parameters()))])
        monkeypatch.setattr(dispatch, "NO_NATIVE", "not built")
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("variant", ["dropout", "zoneout", "both", "normalised", "softsign gates"])
def test_gradients_of_gradients(variant):
    """By finite differences, under one seed."""
    options = VARIANTS[variant]._asdict()
    layer = GRU(2, 3, **{name: value for name, value in options.items() if name != "training"}).double()
    x, h0 = (torch.randn(3, 2, n, dtype=torch.float64, requires_grad=True) for n in (2, 3))

    def run(x, h0):
        torch.manual_seed(1)
        return layer(x, h0[:1])

    assert torch.autograd.gradcheck(run, (x, h0)) and torch.autograd.gradgradcheck(run, (x, h0))


def test_gradients_of_gradients_of_gains():
    shapes = (3, 2, 2), (9,), (9,)
    x, *gains = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    weights = GRU(2, 3).double().all_weights
    assert torch.autograd.gradgradcheck(lambda x, *gains: gru(x, None, weights, layer_norms=[gains])[0], (x, *gains))


@pytest.mark.parametrize("options", [{"layer_norm": True}, {"activation": "softsign", "zoneout": 0.3}], ids=str)
def test_sixteen_bits(options):
    """Computed in float32 and rounded at the end, gradients too."""
    layer, x = GRU(3, 8, recurrent_dropout=0.3, **options).bfloat16(), torch.randn(5, 4, 3).bfloat16()
    results = []
    for module, rows in ((layer, x), (copy.deepcopy(layer).float(), x.float())):
        torch.manual_seed(0)
        y, _ = module(rows)
        results.append([y, *torch.autograd.grad(y.sum(), list(module.parameters()))])
    for got, want in zip(*results, strict=True):
        assert got.dtype is torch.bfloat16 and (got.float() - want).norm() <= 2e-2 * want.norm()


CELLS = {
    "normalised": {"layer_norm": True},
    "activations": {"activation": "relu", "recurrent_activation": "hard_sigmoid"},
    "both": {"layer_norm": True, "activation": "softsign", "zoneout": 0.2},
    "reset before": {"activation": "softsign", "reset_after": False},
}


@pytest.mark.parametrize("packs", [False, True], ids=["", "packed"])
@pytest.mark.parametrize("sizes", [(1, 5, 7), (9, 40, 33), (3, 64, 300)], ids=str)
@pytest.mark.parametrize("options", CELLS.values(), ids=CELLS)
def test_a_cell(options, sizes, packs, monkeypatch):
    """A step with its gradients is that of the equations."""
    B, I, H = sizes  # noqa: E741
    cell, x, h = GRUCell(I, H, **options).eval(), torch.randn(B, I), torch.randn(B, H)
    with cell.packed_weights() if packs else contextlib.nullcontext():
        y = cell(x, h)
        gradients = torch.autograd.grad(y.square().sum(), list(cell.parameters()))
        with torch.no_grad():
            assert torch.equal(cell(x, h), y)
    monkeypatch.setattr(dispatch, "NO_NATIVE", "not built")
    cell = cell.double()
    want = cell(x.double(), h.double())
    exact = torch.autograd.grad(want.square().sum(), list(cell.parameters()))
    for a, b in zip((y, *gradients), (want, *exact), strict=True):
        assert (a - b).norm() <= LIMITS[torch.float32] * b.norm()


@pytest.mark.parametrize("options", [CELLS["normalised"], CELLS["activations"]], ids=["normalised", "activations"])
@torch.no_grad()
def test_a_cell_is_the_same_in_any_batch_and_with_any_number_of_threads(options):
    """With some 5 million multiply-adds a row, so that each of the threads is used, and units that divide unevenly."""
    cell, x, h = GRUCell(700, 531, **options), torch.randn(30, 700), torch.randn(30, 531)
    want = cell(x, h)
    for n in (1, 2, 5):
        torch.set_num_threads(n)
        assert torch.equal(cell(x, h), want) and torch.equal(cell(x[4:5], h[4:5]), want[4:5])


def test_a_cell_whose_units_all_stay():
    cell, h = GRUCell(3, 4, zoneout=1.0), torch.randn(2, 4)
    assert torch.equal(cell(torch.randn(2, 3), h), h)


def test_gains_that_do_not_fit_are_named():
    layer, x = GRU(3, 4, layer_norm=True), torch.randn(5, 2, 3)
    gains = [[layer.layer_norm_ih_l0.double(), layer.layer_norm_hh_l0]]
    with pytest.raises(InputError, match=r"layer_norms must be torch.float32 on cpu, .* got torch.float64"):
        gru(x, None, layer.all_weights, layer_norms=gains)


def test_only_gains_are_trained():
    layer, x = GRU(3, 4, layer_norm=True).requires_grad_(False), torch.randn(5, 2, 3)
    layer.layer_norm_hh_l0.requires_grad_()
    layer(x)[0].sum().backward()
    assert layer.layer_norm_hh_l0.grad.count_nonzero() == 12 and layer.weight_hh_l0.grad is None


@pytest.mark.parametrize("options", [{"zoneout": 0.1}, {"layer_norm": True}, {"activation": "relu"}], ids=str)
def test_an_explicit_native_runs_them(options):
    layer, x = GRU(3, 4, backend="native", **options), torch.randn(5, 2, 3)
    assert layer.explain_backend(x).name == "native" and layer(x)[0].shape == (5, 2, 4)
