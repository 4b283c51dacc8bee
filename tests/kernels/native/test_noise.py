"""Recurrent dropout and zoneout in C++ against the equations in PyTorch, under the same masks."""

import itertools

import pytest
import torch
from contract import Case, draw

from grucore import GRU, GRUCell, dispatch
from grucore.kernels import regularised
from grucore.kernels.native import layer
from grucore.kernels.native.library import LIBRARY, UNAVAILABLE
from grucore.kernels.regularised import Variant

pytestmark = pytest.mark.skipif(LIBRARY is None, reason=str(UNAVAILABLE))

LIMITS = {torch.float64: 1e-12, torch.float32: 2e-6}  # 7.4e-16 and 4.5e-7 at worst
VARIANTS = {
    "dropout": Variant(recurrent_dropout=0.3, training=True),
    "zoneout": Variant(zoneout=0.4, training=True),
    "both": Variant(recurrent_dropout=0.5, zoneout=0.1, training=True),
    "zoneout of all units": Variant(zoneout=1.0, training=True),
    "zoneout's expectation": Variant(zoneout=0.4),
}
CASES = [
    Case(6, 5, 3, 19, two_way=True),
    Case(7, 70, 3, 33, flags="lengths"),
    Case(6, 3, 3, 20, flags="gaps resets state"),
    Case(6, 4, 3, 8, two_way=True, flags="resets", bias=False),
    Case(6, 9, 3, 17, two_way=True, flags="gaps resets state", heads=2),
]


@pytest.mark.parametrize("reset_after", [True, False], ids=["after", "before"])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_equals_the_equations(variant, case, reset_after):
    """Gates kept for backward, computed again, and in part; one thread and two; both dtypes."""
    for dtype in LIMITS:
        call = draw(case, dtype)
        form, seed = call.form._replace(reset_after=reset_after), torch.tensor(7) if variant.training else None
        values = [call.x.nan_to_num(), *call.state, *call.weights]
        leaves = [None if t is None else t.detach().clone().requires_grad_() for t in values]
        x, h0, h_reset, *weights = leaves
        state, weights = type(call.state)(h0, h_reset), type(call.weights)(*weights)
        y, h_n, _ = regularised.gru_layer(x, state, weights, None, call.steps, form, variant, seed)
        dy, dh_n = torch.randn_like(y), torch.randn_like(h_n)
        given = [t for t in leaves if t is not None]
        want = [y, h_n, *torch.autograd.grad([y, h_n], given, [dy, dh_n], allow_unused=True, materialize_grads=True)]
        state, weights = call.state, [call.weights.of(d) for d in range(case.D)]
        for part, threads in itertools.product((0, 1, 2), (1, 2)):
            kept = layer.new_kept(values[0], state.h0)
            kept = None if part == 0 else kept[:, : kept.shape[1] * part // 2].contiguous()
            torch.set_num_threads(threads)
            y, h_n = layer.forward_by_direction(values[0], state, weights, call.steps, form, kept, variant, seed)
            ends, others = (dy, dh_n, y, values[0]), (state, weights, call.steps, form, True, kept, variant, seed)
            gradients = layer.backward_by_direction(*ends, *others)
            got = [y, h_n, *(g for g, t in zip(gradients, leaves, strict=True) if t is not None)]
            for a, b in zip(got, want, strict=True):
                assert (a - b).norm() <= LIMITS[dtype] * b.norm()


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_a_seed_means_the_same_with_and_without_the_library(training, monkeypatch):
    """Whole layers: what a run computes does not depend on whether there is a compiler."""
    options = {"num_layers": 2, "bidirectional": True, "recurrent_dropout": 0.2, "zoneout": 0.1}
    gru, x = GRU(3, 8, **options).double().train(training), torch.randn(5, 4, 3, dtype=torch.float64)
    results = []
    for name in ("native", "regularised"):
        assert gru.explain_backend(x).name == name
        torch.manual_seed(3)
        y, _ = gru(x, lengths=[5, 0, 2, 3])
        results.append([y, *torch.autograd.grad(y.square().sum(), list(gru.parameters()))])
        monkeypatch.setattr(dispatch, "NO_NATIVE", "not built")
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("variant", ["dropout", "zoneout", "both"])
def test_gradients_of_gradients(variant):
    """By finite differences, under one seed."""
    recurrent_dropout, zoneout, *_ = VARIANTS[variant]
    gru = GRU(2, 3, recurrent_dropout=recurrent_dropout, zoneout=zoneout).double()
    x, h0 = (torch.randn(3, 2, n, dtype=torch.float64, requires_grad=True) for n in (2, 3))

    def run(x, h0):
        torch.manual_seed(1)
        return gru(x, h0[:1])

    assert torch.autograd.gradcheck(run, (x, h0)) and torch.autograd.gradgradcheck(run, (x, h0))


def test_sixteen_bits_and_a_cell():
    gru, x = GRU(3, 8, zoneout=0.3, recurrent_dropout=0.3).bfloat16(), torch.randn(5, 4, 3).bfloat16()
    torch.manual_seed(0)
    y, _ = gru(x)
    torch.manual_seed(0)
    want, _ = gru.float()(x.float())
    assert y.dtype is torch.bfloat16 and (y.float() - want).norm() <= 2e-2 * want.norm()
    cell, h = GRUCell(3, 4, zoneout=1.0), torch.randn(2, 4)
    assert torch.equal(cell(torch.randn(2, 3), h), h)


def test_an_explicit_native_runs_them_and_says_what_it_does_not():
    x = torch.randn(5, 2, 3)
    assert GRU(3, 4, zoneout=0.1, backend="native").explain_backend(x).name == "native"
    with pytest.raises(RuntimeError, match="the native kernels have no layer_norm"):
        GRU(3, 4, zoneout=0.1, layer_norm=True, backend="native")(x)
