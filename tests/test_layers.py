"""GRU against torch.nn.GRU in float64: outputs and every gradient, over pairs of options and odd shapes."""

import pytest
import torch
from allpairspy import AllPairs
from oracle import assert_near, compare, to_oracle

import grucore.kernels.eager.bptt as bptt
from grucore import GRU
from grucore.kernels import Form, State, Steps, Weights, reference
from grucore.kernels.eager.schedule import Schedule

OPTIONS = {
    "T": [1, 2, 7, 31],
    "B": [1, 2, 5],
    "I": [1, 6, 33],
    "H": [1, 8, 33],
    "num_layers": [1, 2],
    "bias": [True, False],
    "batch_first": [False, True],
    "bidirectional": [False, True],
    "hx": [False, True],
    "dtype": [torch.float64, torch.float32],
}
PAIRS = [dict(zip(OPTIONS, case, strict=True)) for case in AllPairs(OPTIONS.values())]


def readable(case: dict) -> str:
    return "-".join(f"{name}{str(value).removeprefix('torch.')}" for name, value in case.items())


def layer_and_input(T, B, I, H, hx, dtype, **options):  # noqa: E741
    layer = GRU(I, H, dtype=dtype, **options)
    x = torch.randn(*((B, T) if layer.batch_first else (T, B)), I, dtype=dtype)
    h = torch.randn(layer.num_layers * layer.num_directions, B, H, dtype=dtype) if hx else None
    return layer, x, h


@pytest.mark.parametrize("case", PAIRS, ids=readable)
def test_equals_nn_gru(case):
    layer, x, h = layer_and_input(**case)
    compare(layer, to_oracle(layer), x, h)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(1009, 2, 3, 5), (3, 1500, 4, 6), (40, 64, 128, 256), (5, 300, 7, 100)], ids=str)
def test_long_wide_and_large(shape, dtype):
    """Several chunks of time, chunks of one step, and products large enough for oneDNN."""
    T, B, I, H = shape  # noqa: E741
    layer, x, h = layer_and_input(T, B, I, H, True, dtype, bidirectional=True)
    compare(layer, to_oracle(layer), x, h)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (9, 3, 4, 5), (70, 33, 5, 100), (5, 64, 128, 256)], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_reset_before_equals_the_reference(shape, bias, dtype):
    """nn.GRU has no such form: the oracle is the reference, which PyTorch differentiates."""
    T, B, I, H = shape  # noqa: E741
    weights = [torch.randn(3 * H, n) / n**0.5 for n in (I, H)]
    weights += [torch.randn(3 * H) if bias else None for _ in range(2)]
    tensors = [torch.randn(T, B, I), torch.randn(B, H), *weights]
    got_in, want_in = (
        [None if t is None else t.to(kind).requires_grad_() for t in tensors] for kind in (dtype, torch.float64)
    )
    got_d, want_d = ([None if t is None else t.unsqueeze(0) for t in ts[1:]] for ts in (got_in, want_in))
    got = torch.ops.grucore.gru_layer(got_in[0], got_d[0], None, *got_d[1:], None, None, False, "ieee", "eager")
    want = reference.gru_layer(want_in[0], State(want_d[0]), Weights(*want_d[1:]), Steps(), Form(False))[:2]
    d = [torch.randn_like(t) for t in want]
    for a, b in zip(got, want, strict=True):
        assert_near("output", a, b)
    got_in, want_in = ([t for t in ts if t is not None] for ts in (got_in, want_in))
    grads = torch.autograd.grad(got, got_in, [t.to(dtype) for t in d])
    grads_want = torch.autograd.grad(want, want_in, d)
    for name, a, b in zip(("dx", "dh0", "dw", "dw", "db", "db"), grads, grads_want, strict=False):
        assert_near(name, a, b)


@pytest.mark.parametrize("reset_after", [True, False], ids=["reset-after", "reset-before"])
def test_reference_is_the_equations(reset_after):
    """One step, written out with scalars."""
    T, B, H = 1, 1, 1
    x, h, w, u, b, c = (torch.randn(3, dtype=torch.float64) for _ in range(6))
    x, h = x[:1], h[:1]
    r = 1 / (1 + torch.exp(-(w[0] * x + b[0] + u[0] * h + c[0])))
    z = 1 / (1 + torch.exp(-(w[1] * x + b[1] + u[1] * h + c[1])))
    inner = r * (u[2] * h + c[2]) if reset_after else u[2] * (r * h) + c[2]
    n = torch.tanh(w[2] * x + b[2] + inner)
    want = (1 - z) * n + z * h
    weights = Weights(w.view(1, 3, 1), u.view(1, 3, 1), b.view(1, 3), c.view(1, 3))
    y, h_n, gates = reference.gru_layer(x.view(T, B, 1), State(h.view(1, B, H)), weights, Steps(), Form(reset_after))
    torch.testing.assert_close(y.view(1), want, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(h_n.view(1), want, rtol=1e-14, atol=1e-14)
    for gate, value in zip(gates, (r, z, n), strict=True):
        torch.testing.assert_close(gate.view(1), value, rtol=1e-14, atol=1e-14)


def test_chunks_do_not_change_the_result(monkeypatch):
    """Chunks of 1 to all rows give the same values; h_n alone, y alone and strided gradients too."""
    layer = GRU(3, 4, dtype=torch.float64, bidirectional=True)
    x = torch.randn(23, 3, 3, dtype=torch.float64)
    whole = Schedule.chunks
    for rows in (1, 7, 10_000):
        monkeypatch.setattr(Schedule, "chunks", lambda self, rows=rows: whole(self, rows))
        compare(layer, to_oracle(layer), x, torch.randn(2, 3, 4, dtype=torch.float64))


@pytest.mark.parametrize("loss", ["h_n", "y", "strided", "first step"])
def test_partial_and_strided_gradients(loss):
    layer = GRU(3, 4, dtype=torch.float64, num_layers=2, batch_first=True)
    oracle = to_oracle(layer)
    wide = torch.randn(6, 5, 7, dtype=torch.float64)
    grads = []
    for module in (layer, oracle):
        base = wide.clone().requires_grad_()
        x = base[:, :, 1::2]  # strides that no row-major tensor has
        y, h_n = module(x)
        value = {
            "h_n": lambda y, h_n: h_n.square().sum(),
            "y": lambda y, h_n: y.square().sum(),
            "strided": lambda y, h_n: (y.transpose(0, 2)[1::2] * 3).sum(),
            "first step": lambda y, h_n: y[:, 0].sum(),
        }[loss](y, h_n)
        grads.append(torch.autograd.grad(value, [base, *module.parameters()]))
    for got, want in zip(*grads, strict=True):
        assert_near("dx", got, want)


@pytest.mark.parametrize("T, B", [(0, 3), (4, 0), (0, 0)])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one-way", "two-way"])
def test_empty(T, B, bidirectional):
    """No steps: the state stays hx. No rows: nothing. (torch.nn.GRU refuses T = 0.)"""
    layer = GRU(3, 4, num_layers=2, bidirectional=bidirectional)
    directions = 2 if bidirectional else 1
    x, h = torch.randn(T, B, 3, requires_grad=True), torch.randn(2 * directions, B, 4, requires_grad=True)
    y, h_n = layer(x, h)
    assert y.shape == (T, B, 4 * directions)
    assert torch.equal(h_n, h) if T == 0 else h_n.shape == h.shape
    (y.sum() + h_n.sum()).backward()
    assert x.grad.shape == x.shape
    assert torch.equal(h.grad, torch.ones_like(h) if T == 0 else torch.zeros_like(h))
    assert all(p.grad.count_nonzero() == 0 for p in layer.parameters())


def test_saved_for_backward_is_x_and_y_alone():
    """Bytes kept between forward and backward: x, h0, y and the parameters, where nn.GRU keeps every gate."""

    def saved_bytes(module, x):
        seen = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: seen.setdefault((t.data_ptr(), t.numel()), t), lambda t: t
        ):
            module(x)
        return sum(t.numel() * t.element_size() for t in seen.values())

    layer, x = GRU(64, 64), torch.randn(50, 8, 64, requires_grad=True)
    needed = 4 * (2 * x.numel() + 8 * 64 + sum(p.numel() for p in layer.parameters()))
    assert saved_bytes(layer, x) <= needed * 1.02
    assert saved_bytes(layer.to_torch(), x) > 2 * needed


def test_training_twice_is_bitwise_equal():
    layer, x = GRU(16, 32, num_layers=2, bidirectional=True), torch.randn(50, 9, 16, requires_grad=True)

    def run():
        y, h_n = layer(x, lengths=torch.arange(9) * 5)
        return [y, h_n, *torch.autograd.grad(y.sum() + h_n.sum(), [x, *layer.parameters()])]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


def test_backward_twice_through_one_forward():
    """What is saved is not overwritten by the first backward."""
    layer, x = GRU(3, 5), torch.randn(6, 2, 3, requires_grad=True)
    y, _ = layer(x)
    first = torch.autograd.grad(y.sum(), x, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(y.sum(), x)[0])


def test_both_products_are_taken(monkeypatch):
    """The shapes of these tests reach oneDNN and the plain product alike."""
    taken = set()
    original = bptt.Weight.__init__

    def record(self, w, rows):
        original(self, w, rows)
        taken.add(self.onednn)

    monkeypatch.setattr(bptt.Weight, "__init__", record)
    GRU(128, 256)(torch.randn(2, 64, 128))
    GRU(3, 4)(torch.randn(2, 2, 3))
    assert taken == ({True, False} if torch.backends.mkldnn.is_available() else {False})
