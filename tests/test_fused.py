"""The Triton kernels against torch.nn.GRU in float64: natively on a GPU, in Triton's interpreter everywhere else."""

import pytest
import torch
from oracle import FUSED_LIMITS, assert_near, compare, to_oracle

from grucore import GRU
from grucore.kernels import Steps
from grucore.kernels.triton import flags, launch, plan
from grucore.kernels.triton.plan import H100

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]

pytestmark = pytest.mark.gpu if DEVICE == "cuda" else []


def fused_layer(I, H, dtype, **options):  # noqa: E741
    return GRU(I, H, device=DEVICE, dtype=dtype, precision="ieee", backend="triton", **options)


def randn(*shape, dtype):
    return torch.randn(*shape, device=DEVICE, dtype=dtype)


SHAPES = {  # T, B, I, H, layers, two-way, bias
    "one step, one row": (1, 1, 3, 16, 1, False, True),
    "odd sizes, two tiles, two-way": (5, 17, 3, 33, 1, True, True),
    "two layers, two-way, no bias": (4, 2, 5, 20, 2, True, False),
    "no power of two": (3, 2, 3, 60, 1, False, True),
    "long": (101, 1, 3, 8, 1, False, True),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_equals_nn_gru(shape, dtype):
    T, B, I, H, layers, two_way, bias = shape  # noqa: E741
    layer = fused_layer(I, H, dtype, num_layers=layers, bidirectional=two_way, bias=bias)
    hx = randn(layers * layer.num_directions, B, H, dtype=dtype)
    compare(layer, to_oracle(layer), randn(T, B, I, dtype=dtype), hx, limits=FUSED_LIMITS)


@pytest.mark.parametrize("T, B", [(1, 1), (20, 9)])
def test_one_unit(T, B):
    """In float32 alone: in 16 bits a gradient of one number, or three, is off by 10 % where its terms cancel."""
    layer = fused_layer(1, 1, torch.float32)
    compare(layer, to_oracle(layer), randn(T, B, 1, dtype=torch.float32), limits=FUSED_LIMITS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("H", [100, 128])
def test_largest_hidden_sizes(H, dtype):
    layer = fused_layer(8, H, dtype)
    compare(layer, to_oracle(layer), randn(4, 3, 8, dtype=dtype), limits=FUSED_LIMITS)


def random_flags(kind, T, B):
    generator = torch.Generator().manual_seed(1)
    options = {}
    if "lengths" in kind:
        options["lengths"] = torch.randint(0, T, (B,), generator=generator)
    if "mask" in kind:
        options["mask"] = torch.rand(T, B, generator=generator) < 0.6
        options["mask"][:, 0] = False
    if "reset" in kind:
        options["reset"] = torch.rand(T, B, generator=generator) < 0.3
        options["reset"][:, -1] = True
    return {name: value.to(DEVICE) for name, value in options.items()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["lengths", "reset", "mask and reset"])
def test_flags_equal_the_unfused_layer(kind, dtype):
    """That one is held against nn.GRU on packed and cut sequences in test_sequence.py."""
    T, B = 7, 19
    layer = fused_layer(3, 10, dtype, bidirectional=True)
    unfused = GRU.from_torch(layer.to_torch(), backend="eager").double()
    options = random_flags(kind, T, B)
    real = options.get("mask")
    if "lengths" in options:
        real = torch.arange(T, device=DEVICE).unsqueeze(1) < options["lengths"]
    x = randn(T, B, 3, dtype=dtype)
    if real is not None:
        x = x.masked_fill(~real.unsqueeze(-1), float("nan"))
    call = lambda m, x, h: m(x, h, **options)  # noqa: E731
    compare(layer, unfused, x, randn(2, B, 10, dtype=dtype), call, call, limits=FUSED_LIMITS)


def test_reset_states_equal_the_unfused_layer():
    T, B = 6, 3
    layer = fused_layer(3, 10, torch.float32, num_layers=2)
    unfused = GRU.from_torch(layer.to_torch(), backend="eager").double()
    begin, reset = randn(2, B, 10, dtype=torch.float32), random_flags("reset", T, B)["reset"]
    call = lambda m, x, h: m(x, h, reset=reset, reset_state=begin.to(x.dtype))  # noqa: E731
    x, hx = randn(T, B, 3, dtype=torch.float32), randn(2, B, 10, dtype=torch.float32)
    compare(layer, unfused, x, hx, call, call, limits=FUSED_LIMITS)


@pytest.mark.parametrize("kind", ["dense", "mask and reset"])
def test_chunks_do_not_change_the_result(kind, monkeypatch):
    """Chunks of 1, 4 and all steps; products of other heights may round in another order, so not bit for bit."""
    layer = fused_layer(3, 10, torch.float32, bidirectional=True)
    x, hx = randn(9, 3, 3, dtype=torch.float32).requires_grad_(), randn(2, 3, 10, dtype=torch.float32)
    options = random_flags(kind, 9, 3)
    states = []
    for steps in (1, 4, 9):
        monkeypatch.setattr(launch, "CHUNK_BYTES", steps * 2 * 3 * 16 * 4)
        y, h_n = layer(x, hx, **options)
        (dx,) = torch.autograd.grad(y.square().sum() + h_n.sum(), x)
        states.append((y, h_n, dx))
    for got in states[:-1]:
        for a, b in zip(got, states[-1], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=2e-6)  # 5e-7 measured


SPLIT = {  # T, B, I, H, two-way, dtype, weights streamed: hidden units shared by groups of programs
    "two tiles, two-way": (3, 17, 3, 130, True, torch.float16, False),
    "whole width": (3, 2, 3, 256, False, torch.bfloat16, False),
    "several products": (2, 2, 3, 300, False, torch.float16, False),
    "streamed, float32": (5, 2, 3, 65, True, torch.float32, True),
    "streamed, wider tiles": (3, 33, 3, 100, True, torch.float32, True),
    "streamed, wide": (2, 2, 3, 1030, False, torch.float16, True),
    "streamed, wide, wider tiles": (2, 33, 3, 1030, False, torch.bfloat16, True),
}


@pytest.mark.parametrize("shape", SPLIT.values(), ids=SPLIT)
def test_split_equals_nn_gru(shape):
    T, B, I, H, two_way, dtype, streamed = shape  # noqa: E741
    layer = fused_layer(I, H, dtype, bidirectional=two_way)
    for recurrence in ("forward", "backward"):
        chosen = launch.plan(recurrence, B, H, 1, plan.kind(dtype, "ieee"), H100)
        assert chosen.block_j > 0 and chosen.streamed is streamed
    hx = randn(layer.num_directions, B, H, dtype=dtype)
    compare(layer, to_oracle(layer), randn(T, B, I, dtype=dtype), hx, limits=FUSED_LIMITS)


@pytest.mark.parametrize("streamed", [False, True], ids=["kept", "streamed"])
@pytest.mark.parametrize("exchange", ["data", "counter"])
def test_both_exchanges_with_flags_and_chunks(exchange, streamed, monkeypatch):
    """Whatever the table chooses; chunks of two steps, so that states and gradients cross them."""
    T, B = 5, 18
    chosen = plan.Plan(16, 16, 16, streamed, exchange, 4, 1, 0)
    monkeypatch.setattr(launch, "plan", lambda *_: chosen)
    monkeypatch.setattr(launch, "CHUNK_BYTES", 2 * 2 * B * 48 * 4)
    layer = fused_layer(3, 40, torch.float32, bidirectional=True)
    unfused = GRU.from_torch(layer.to_torch(), backend="eager").double()
    options = random_flags("mask and reset", T, B)
    call = lambda m, x, h: m(x, h, **options)  # noqa: E731
    x, hx = randn(T, B, 3, dtype=torch.float32), randn(2, B, 40, dtype=torch.float32)
    compare(layer, unfused, x, hx, call, call, limits=FUSED_LIMITS)


@pytest.mark.parametrize("kind", ["lengths", "mask and reset"])
def test_split_flags_and_chunks(kind, monkeypatch):
    """Chunks of two steps, so that states and gradients cross them."""
    T, B = 5, 3
    monkeypatch.setattr(launch, "CHUNK_BYTES", 2 * 2 * B * 192 * 2)
    layer = fused_layer(3, 130, torch.float16, bidirectional=True)
    unfused = GRU.from_torch(layer.to_torch(), backend="eager").double()
    options = random_flags(kind, T, B)
    call = lambda m, x, h: m(x, h, **options)  # noqa: E731
    x, hx = randn(T, B, 3, dtype=torch.float16), randn(2, B, 130, dtype=torch.float16)
    compare(layer, unfused, x, hx, call, call, limits=FUSED_LIMITS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_nan_with_the_bits_of_the_filling_does_not_stop_a_group(dtype):
    """Held from step to step in one row, beside rows that go on."""
    layer = fused_layer(3, 130, dtype)
    hx = randn(1, 3, 130, dtype=dtype)
    filling = torch.full((130,), -1, dtype=torch.int16, device=DEVICE).view(dtype)
    assert filling.isnan().all()
    hx[0, 1] = filling
    mask = torch.tensor([[True, False, True]], device=DEVICE).expand(3, 3)
    x = randn(3, 3, 3, dtype=dtype)
    y, h_n = layer(x, hx, mask=mask)
    assert h_n[0, 1].isnan().all() and y[:, 1].count_nonzero() == 0
    others = [0, 2]
    want, _ = layer(x[:, others], hx[:, others])
    torch.testing.assert_close(y[:, others], want, rtol=0, atol=0)


@pytest.mark.parametrize("loss", ["h_n", "y", "strided"])
def test_partial_and_strided_gradients(loss):
    layer = fused_layer(3, 8, torch.float32, batch_first=True)
    oracle = to_oracle(layer)
    wide = randn(3, 5, 7, dtype=torch.float32)
    grads = []
    for module, dtype in ((layer, torch.float32), (oracle, torch.float64)):
        base = wide.to(dtype).requires_grad_()
        y, h_n = module(base[:, :, 1::2])
        value = {"h_n": h_n.square().sum(), "y": y.square().sum(), "strided": (y.transpose(0, 2)[1::2] * 3).sum()}[loss]
        grads.append(torch.autograd.grad(value, [base, *module.parameters()]))
    for got, want in zip(*grads, strict=True):
        assert_near("dx", got, want, FUSED_LIMITS)


@pytest.mark.parametrize("T, B", [(0, 3), (4, 0), (0, 0)])
def test_empty(T, B):
    layer = fused_layer(3, 4, torch.float32, bidirectional=True)
    x, h = randn(T, B, 3, dtype=torch.float32).requires_grad_(), randn(2, B, 4, dtype=torch.float32).requires_grad_()
    y, h_n = layer(x, h)
    assert y.shape == (T, B, 8) and torch.equal(h_n, h)
    (y.sum() + h_n.sum()).backward()
    assert x.grad.shape == x.shape and torch.equal(h.grad, torch.ones_like(h))


def test_inputs_are_not_written_to():
    """float32 and H = 16: nothing is padded or cast, so that kernels could reach the caller's memory."""
    layer = fused_layer(16, 16, torch.float32)
    x, hx = randn(5, 16, 16, dtype=torch.float32), randn(1, 16, 16, dtype=torch.float32)
    kept = [t.clone() for t in (x, hx, *layer.parameters())]
    x.requires_grad_()
    y, h_n = layer(x, hx)
    dy, dh_n = torch.ones_like(y), torch.ones_like(h_n)
    torch.autograd.grad([y, h_n], [x, *layer.parameters()], [dy, dh_n])
    assert all(torch.equal(a, b) for a, b in zip(kept, (x, hx, *layer.parameters()), strict=True))
    assert dy.eq(1).all() and dh_n.eq(1).all()


def test_saved_for_backward_is_x_and_y_alone():
    layer, x = fused_layer(32, 32, torch.float32), randn(40, 8, 32, dtype=torch.float32).requires_grad_()
    seen = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.setdefault((t.data_ptr(), t.numel()), t), lambda t: t):
        layer(x)
    needed = 4 * (2 * x.numel() + 8 * 32 + sum(p.numel() for p in layer.parameters()))
    assert sum(t.numel() * t.element_size() for t in seen.values()) <= needed * 1.02


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_all_products_have_the_layers_precision(precision, monkeypatch):
    """Whatever the switch for products outside says, which is put back."""
    switch = torch.backends.cuda.matmul

    def now():
        return switch.fp32_precision if hasattr(switch, "fp32_precision") else switch.allow_tf32  # before torch 2.9

    seen, outside, wanted = set(), now(), precision if hasattr(switch, "fp32_precision") else precision == "tf32"
    for name in ("mm", "addmm"):
        product = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, p=product, **k: (seen.add(now()), p(*a, **k))[1])
    layer = GRU(3, 4, device=DEVICE, precision=precision, backend="triton")
    layer(randn(2, 2, 3, dtype=torch.float32))[0].sum().backward()
    assert seen == {wanted} and now() == outside


def test_second_derivatives():
    layer = fused_layer(2, 3, torch.float32)
    oracle = to_oracle(layer)
    x = randn(4, 2, 2, dtype=torch.float32)
    results = []
    for module, dtype in ((layer, torch.float32), (oracle, torch.float64)):
        x_ = x.to(dtype).requires_grad_()
        with torch.backends.cudnn.flags(enabled=False):
            (dx,) = torch.autograd.grad(module(x_)[0].sin().sum(), x_, create_graph=True)
        results.append(torch.autograd.grad(dx.square().sum(), [x_, *module.parameters()]))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)


def test_spans_of_tiles():
    """Tiles of 2 rows: the second is empty, the third has one row."""
    real = torch.tensor([[0, 0, 0, 0, 1], [0, 1, 0, 0, 0], [1, 0, 0, 0, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)
    spans = flags.tile_spans(flags.step_flags(Steps(real), 1), 2)
    assert spans.tolist() == [[1, 3], [0, 0], [0, 3]]


@pytest.mark.parametrize("H", [10, 130], ids=["whole", "split"])
def test_nan_stays_in_its_row(H):
    """An input that is NaN at one step of one row: the other rows' outputs and gradients are what they were."""
    layer = fused_layer(3, H, torch.float16)
    x, others = randn(4, 3, 3, dtype=torch.float16), [0, 2]
    results = []
    for value in (1.0, float("nan")):
        x_ = x.clone()
        x_[1, 1] = value
        y, h_n = layer(x_.requires_grad_())
        (dx,) = torch.autograd.grad(y[:, others].float().square().sum() + h_n[:, others].float().sum(), x_)
        results.append((y, h_n, dx))
    y, h_n, _ = results[1]
    assert y[1:, 1].isnan().all() and h_n[:, 1].isnan().all() and not y[0].isnan().any()
    for got, want in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got[:, others], want[:, others], rtol=0, atol=0)
