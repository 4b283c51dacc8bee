"""Recurrent dropout and zoneout in the fused kernels, against the equations of `regularised.py` in float64.

Natively on a GPU, in Triton's interpreter everywhere else.
"""

import pytest
import torch
from contract import DEVICE, IMPLEMENTATIONS, Case, check, draw

from grucore import GRU
from grucore.kernels import noise, regularised
from grucore.kernels.triton import launch, plan
from grucore.kernels.triton.noise import dropout_factors, zone_out

pytestmark = pytest.mark.gpu if DEVICE == "cuda" else []

f32, f16, bf16 = torch.float32, torch.float16, torch.bfloat16
BOTH = {"dropout": 0.3, "zoneout": 0.4}
CASES = {  # a case, a dtype, and whether it takes over two seconds
    "dropout": (Case(4, 3, 3, 10, dropout=0.3), f32, False),
    "zoneout": (Case(4, 3, 3, 10, zoneout=0.4), f32, False),
    "expectation": (Case(4, 3, 3, 10, zoneout=0.4, dropout=0.3, training=False), f32, False),
    "expectation, flags": (Case(3, 3, 3, 10, flags="lengths", zoneout=0.4, training=False), f32, True),
    "all dropped": (Case(2, 3, 3, 10, dropout=1.0, zoneout=0.4, loss="y"), f32, True),
    "heads, flags": (Case(3, 5, 3, 5, two_way=True, heads=2, flags="gaps resets state", **BOTH), f32, True),
    "one step": (Case(1, 3, 3, 10, **BOTH), f32, False),
    "no bias, no dx": (Case(2, 3, 3, 16, bias=False, need_dx=False, **BOTH), f32, True),
    "bfloat16": (Case(3, 17, 3, 33, **BOTH), bf16, True),
    "float16": (Case(2, 5, 3, 33, **BOTH), f16, True),
    "no row": (Case(3, 0, 3, 10, **BOTH), f32, False),
    "no step": (Case(0, 3, 3, 10, **BOTH), f32, False),
}


@pytest.mark.parametrize(
    "case, dtype",
    [pytest.param(*each, id=name, marks=[pytest.mark.slow] * slow) for name, (*each, slow) in CASES.items()],
)
def test_equals_the_equations(case, dtype):
    check(IMPLEMENTATIONS["triton"], case, dtype)


EXCHANGES = {
    "data, two-way": (False, "data", {"two_way": True}),
    "counter, streamed": (True, "counter", {}),
    "expectation": (False, "data", {"dropout": 0.0, "training": False}),
}


@pytest.mark.slow
@pytest.mark.parametrize("streamed, exchange, others", EXCHANGES.values(), ids=EXCHANGES)
def test_exchanged_and_in_chunks(streamed, exchange, others, monkeypatch):
    """Chunks of two steps; two programs share 32 units."""
    case = Case(3, 2, 3, 30, flags="gaps resets", **BOTH)._replace(**others)
    monkeypatch.setattr(launch, "plan", lambda *_: plan.Plan(16, 16, 16, streamed, exchange, 4, 1, 0))
    monkeypatch.setattr(launch, "chunk_steps", lambda *_: 2)
    check(IMPLEMENTATIONS["triton"], case, f32)


@pytest.mark.parametrize("p", [1e-10, 0.4, 0.5 + 2**-32, 1.0])
def test_the_bits_are_those_of_noise(p):
    """Checks a chunk that begins at step 3, with rows and units beyond a tile, and the extreme seeds."""
    C, B, H, d, first = 2, 9, 272, 3, 3
    for seed, dtype in ((0, f16), (12345, bf16), (2**31 - 1, f32)):
        seed, gx = torch.tensor(seed, device=DEVICE), torch.zeros(C * B, 3 * H, device=DEVICE, dtype=dtype)
        zone_out(gx, seed, p, d, B, H, first)
        got = gx.view(C, B, 3, H)
        takes_new = torch.stack([noise.keep_mask(seed, 2 * d + 1, first + t, (B, H), p) for t in range(C)])
        assert torch.equal(got[:, :, 1].isposinf(), ~takes_new) and got[:, :, 1][takes_new].count_nonzero() == 0
        assert got[:, :, [0, 2]].count_nonzero() == 0
    h = torch.zeros(2, B, H, device=DEVICE)
    keep, want = dropout_factors(seed, p, *h.shape), [regularised.dropout_of_state(seed, p, h[d], d) for d in range(2)]
    torch.testing.assert_close(keep, torch.stack(want), rtol=1e-6, atol=0)


@pytest.mark.slow
def test_a_seed_means_the_same_to_a_layer():
    """In a stack in both directions."""
    options = {"num_layers": 2, "bidirectional": True, "recurrent_dropout": 0.2, "zoneout": 0.1}
    layer, x = GRU(3, 8, backend="triton", device=DEVICE, precision="ieee", **options), torch.randn(3, 4, 3)
    x = x.to(DEVICE)
    assert layer.explain_backend(x).name == "triton"
    results = []
    for module, input in ((layer, x), (GRU(3, 8, device=DEVICE, **options).double(), x.double())):
        module.load_state_dict(layer.state_dict())
        torch.manual_seed(3)
        y, _ = module(input, lengths=[3, 0, 2, 1])
        results.append([y, *torch.autograd.grad(y.square().sum(), list(module.parameters()))])
    for got, want in zip(*results, strict=True):
        assert (got - want).norm() <= 2e-6 * want.norm()  # 4.0e-7 at worst


def test_a_unit_that_is_held_is_held_exactly():
    """Even where the candidate is so much larger that adding and subtracting it would lose the state."""
    layer = GRU(3, 4, zoneout=1.0, backend="triton", device=DEVICE, precision="ieee")
    hx = torch.randn(1, 2, 4, device=DEVICE) * 1e-9
    y, h_n = layer(torch.randn(3, 2, 3, device=DEVICE), hx)
    assert torch.equal(h_n, hx) and torch.equal(y, hx.expand(3, 2, 4))


@pytest.mark.slow
def test_gradients_of_gradients():
    """Under one seed, the same as those of the equations."""
    results = []
    torch.manual_seed(0)
    x, h0 = torch.randn(3, 2, 2), torch.randn(1, 2, 3)
    options = {"recurrent_dropout": 0.3, "zoneout": 0.4}
    layer = GRU(2, 3, backend="triton", device=DEVICE, precision="ieee", **options)
    for module, dtype in ((layer, f32), (GRU(2, 3, device=DEVICE, **options).double(), torch.float64)):
        module.load_state_dict(layer.state_dict())
        inputs = [t.to(DEVICE, dtype).requires_grad_() for t in (x, h0)]
        torch.manual_seed(1)
        y, _ = module(*inputs)
        first = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), [*inputs, *module.parameters()])
        results.append(second)
    for got, want in zip(*results, strict=True):
        assert (got - want).norm() <= 2e-6 * want.norm()


def test_without_noise_nothing_is_launched_for_it(monkeypatch):
    """Neither in evaluation nor for a plain layer."""
    monkeypatch.setattr(launch, "zone_out", lambda *_: 1 / 0)
    monkeypatch.setattr(launch, "dropout_factors", lambda *_: 1 / 0)
    x = torch.randn(2, 2, 3, device=DEVICE)
    for options, training in (({}, True), ({"recurrent_dropout": 0.3}, False), ({"zoneout": 0.3}, False)):
        layer = GRU(3, 4, backend="triton", device=DEVICE, **options).train(training)
        layer(x)[0].sum().backward()


def test_calls_are_not_changed_by_their_noise():
    call = draw(Case(3, 2, 3, 16, **BOTH), f32).to(DEVICE)
    before = [t.clone() for t in (call.x, call.state.h0, *call.weights, call.noise[1])]
    IMPLEMENTATIONS["triton"].run(call)
    for a, b in zip(before, (call.x, call.state.h0, *call.weights, call.noise[1]), strict=True):
        assert torch.equal(a, b)
