"""Opacus: per-sample gradients equal those of torch.nn.GRU on single rows, in float64."""

import pytest
import torch
from oracle import assert_near, quantity
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from grucore import GRU, GRUCell, InputError

f64 = torch.float64
T, B = 5, 4

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Secure RNG turned off:UserWarning"),  # Opacus', of every engine
    pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning"),  # PyTorch's, without dx
]


@pytest.fixture
def opacus():
    import grucore.integrations.opacus  # slow to import, so only for these tests

    return grucore.integrations.opacus


@pytest.fixture
def grad_sample(opacus):
    import opacus.grad_sample

    return opacus.grad_sample


def loss(y, h_n):
    """The loss of each row; y is (T, B, D*H)."""
    return y.square().sum((0, 2)) + h_n.sin().sum((0, 2))


def flags(kind):
    """Arguments of a call."""
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[2, 1] = reset[4, 3] = True
    return {
        "dense": {},
        "lengths": {"lengths": torch.tensor([5, 0, 2, 3])},
        "mask": {"mask": torch.arange(T).unsqueeze(1) >= torch.tensor([0, 4, 2, 5])},
        "reset": {"reset": reset},
    }[kind]


def steps_of(row, lengths=None, mask=None, reset=None):
    """The non-padding steps of a row, in pieces split at resets."""
    real = torch.ones(T, dtype=torch.bool)
    if lengths is not None:
        real = torch.arange(T) < lengths[row]
    if mask is not None:
        real = mask[:, row]
    cuts = [] if reset is None else reset[:, row].nonzero().squeeze(1).tolist()
    pieces = torch.arange(T).tensor_split(cuts)
    return [kept for piece in pieces if len(kept := piece[real[piece]])]


@pytest.mark.parametrize("with_hx", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time-first", "batch-first"])
@pytest.mark.parametrize("kind, two_way", [("dense", True), ("lengths", True), ("mask", True), ("reset", False)])
def test_equals_a_loop_over_rows(kind, two_way, batch_first, with_hx, opacus, grad_sample):
    layer = opacus.DPGRU(3, 4, 2, batch_first=batch_first, bidirectional=two_way, dtype=f64)
    oracle = layer.to_torch()
    oracle.batch_first = False
    x, hx = torch.randn(T, B, 3, dtype=f64), torch.randn(4 if two_way else 2, B, 4, dtype=f64) if with_hx else None
    options = flags(kind)
    swapped = lambda t: t.transpose(0, 1) if batch_first and t.dim() > 1 else t  # noqa: E731
    model = grad_sample.GradSampleModule(layer)
    y, h_n = model(swapped(x), hx, **{name: swapped(flag) for name, flag in options.items()})
    loss(swapped(y), h_n).mean().backward()
    for row in range(B):
        value, begin = oracle.weight_hh_l0.sum() * 0, None if hx is None else hx[:, row : row + 1]
        h_row = oracle.weight_hh_l0.new_zeros(len(h_n), 1, 4) if hx is None else begin
        for steps in steps_of(row, **options):
            y_row, h_row = oracle(x[steps, row : row + 1], begin)
            value = value + y_row.square().sum()
        oracle.zero_grad()
        (value + h_row.sin().sum()).backward()
        for name, parameter in oracle.named_parameters():
            got = getattr(layer, name).grad_sample[row]
            assert_near(quantity(name), got, torch.zeros_like(got) if parameter.grad is None else parameter.grad)


OWN = [
    {"heads": 2, "bidirectional": True},
    {"layer_norm": True},
    {"learn_initial_state": True, "bidirectional": True},
    {"activation": "relu", "reset_after": False},
    {"bias": False},
]


@pytest.mark.parametrize("options", OWN, ids=str)
def test_what_nn_gru_lacks(options, opacus, grad_sample):
    """Against autograd on single rows; some parameters are not trained."""
    layer, plain = opacus.DPGRU(3, 4, dtype=f64, **options), GRU(3, 4, dtype=f64, **options)
    layer.weight_ih_l0.requires_grad_(False)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(T, B, 3, dtype=f64)
    loss(*grad_sample.GradSampleModule(layer)(x)).mean().backward()
    trained = [name for name, parameter in layer.named_parameters() if parameter.requires_grad]
    for row in range(B):
        wanted = torch.autograd.grad(loss(*plain(x[:, row : row + 1])).sum(), [getattr(plain, n) for n in trained])
        for name, want in zip(trained, wanted, strict=True):
            assert_near(quantity(name), getattr(layer, name).grad_sample[row], want)
    assert not hasattr(layer.weight_ih_l0, "grad_sample")


class Model(nn.Module):
    """A batch-first model of words, with a loss on each row's final state."""

    def __init__(self, layer):
        super().__init__()
        self.embedding = nn.Embedding(10, 3, dtype=f64)
        self.gru = layer
        self.head = nn.Linear(8, 1, dtype=f64)

    def forward(self, words, lengths):
        _, h_n = self.gru(self.embedding(words), lengths=lengths)
        return self.head(self.gru.final_state(h_n)).squeeze(-1)


def model_of(options):
    return Model(GRU(3, 4, 2, batch_first=True, bidirectional=True, dtype=f64, **options))


def test_a_private_step_without_noise_or_clipping_is_a_plain_one(opacus):
    """From `ModuleValidator.fix` to the optimizer's step; the oracle is nn.GRU on packed sequences."""
    from opacus import PrivacyEngine
    from opacus.validators import ModuleValidator

    plain = model_of({})
    words, lengths, target = torch.randint(0, 10, (B, T)), torch.tensor([5, 1, 2, 3]), torch.randn(B, dtype=f64)
    assert "ModuleValidator.fix" in str(ModuleValidator.validate(plain))
    model = ModuleValidator.fix_and_validate(plain)
    assert type(model.gru) is opacus.DPGRU and repr(model.gru)[2:] == repr(plain.gru)

    oracle, embedding, head = plain.gru.to_torch(), plain.embedding, plain.head
    optimizer = torch.optim.SGD([*oracle.parameters(), *embedding.parameters(), *head.parameters()], lr=0.1)
    packed = nn.utils.rnn.pack_padded_sequence(embedding(words), lengths, batch_first=True, enforce_sorted=False)
    (head(oracle(packed)[1][-2:].transpose(0, 1).flatten(1)).squeeze(-1) - target).square().mean().backward()
    optimizer.step()

    model, optimizer, loader = PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=torch.utils.data.DataLoader(list(zip(words, lengths, target, strict=True)), batch_size=B),
        noise_multiplier=0.0,
        max_grad_norm=1e9,
        poisson_sampling=False,
    )
    for words, lengths, target in loader:
        (model(words, lengths) - target).square().mean().backward()
        optimizer.step()
    for name, want in oracle.named_parameters():
        assert_near(quantity(name), model.state_dict()[f"_module.gru.{name}"], want)


def test_a_batch_without_rows(opacus, grad_sample):
    """Poisson sampling can draw an empty batch."""
    layer = opacus.DPGRU(3, 4)
    loss(*grad_sample.GradSampleModule(layer, loss_reduction="sum")(torch.randn(T, 0, 3))).sum().backward()
    assert layer.weight_hh_l0.grad_sample.shape == (0, 12, 4)


def test_without_opacus_hooks_it_is_a_gru(opacus):
    layer, x = opacus.DPGRU(3, 4, 2), torch.randn(T, B, 3)
    plain = GRU(3, 4, 2)
    plain.load_state_dict(layer.state_dict())
    for kind in ("dense", "lengths", "mask", "reset"):
        for got, want in zip(layer(x, **flags(kind)), plain(x, **flags(kind)), strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=0)


REFUSED = {
    "dropout": (lambda o, g: o.DPGRU(3, 4, 2, dropout=0.1), r"must be 0, got \{'dropout': 0.1"),
    "zoneout": (lambda o, g: o.DPGRU(3, 4, zoneout=0.1), "draws no random numbers"),
    "no batch": (lambda o, g: o.DPGRU(3, 4)(torch.randn(T, 3)), "a padded batch of 3 dimensions"),
    "step": (lambda o, g: o.DPGRU(3, 4).step(torch.randn(B, 3)), "on a sequence of one step"),
    "hx": (
        lambda o, g: o.DPGRU(3, 4)(torch.randn(T, B, 3), torch.zeros(1, 2, 4)),
        r"Expected hidden size \(1, 4, 4\), got \[1, 2, 4\]",
    ),
    "time first": (
        lambda o, g: g.GradSampleModule(o.DPGRU(3, 4), batch_first=False)(torch.randn(T, B, 3))[0].sum().backward(),
        "pass Opacus batch_first=True",
    ),
    "trace": (lambda o, g: o.DPGRU(3, 4).trace(torch.randn(T, B, 3)), "trace a GRU with the same state_dict"),
    "a parametrised layer": (
        lambda o, g: (
            g.GradSampleModule(weight_norm(GRU(3, 4), "weight_ih_l0"))(torch.randn(T, B, 3))[0].sum().backward()
        ),
        "a subclass of DPGRU",
    ),
    "a parametrised one of its own": (
        lambda o, g: (
            g.GradSampleModule(weight_norm(o.DPGRU(3, 4), "weight_ih_l0"))(torch.randn(T, B, 3))[0].sum().backward()
        ),
        "has no per-sample gradients",
    ),
    "not fixed": (
        lambda o, g: g.GradSampleModule(GRU(3, 4))(torch.randn(T, B, 3))[0].sum().backward(),
        "ModuleValidator.fix",
    ),
}


@pytest.mark.parametrize("call, message", REFUSED.values(), ids=REFUSED)
def test_what_is_refused(call, message, opacus, grad_sample):
    with pytest.raises((InputError, TypeError), match=message):
        call(opacus, grad_sample)


def test_subclasses_are_what_their_class_is(opacus, grad_sample):
    """Opacus looks up exact classes, and would take its own way without a word."""
    validators = pytest.importorskip("opacus.validators")
    assert "a subclass of DPGRU" in str(
        validators.ModuleValidator.validate(nn.Sequential(type("Own", (GRU,), {})(3, 4)))
    )
    layer, plain = type("Own", (opacus.DPGRU,), {})(3, 4, dtype=f64), GRU(3, 4, dtype=f64)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(T, B, 3, dtype=f64)
    loss(*grad_sample.GradSampleModule(layer)(x)).mean().backward()
    loss(*plain(x)).mean().backward()
    for name, parameter in plain.named_parameters():
        assert_near(quantity(name), getattr(layer, name).grad_sample.mean(0), parameter.grad)


def test_a_layer_with_heads_is_fixed(opacus):
    validators = pytest.importorskip("opacus.validators")
    model, x = nn.Sequential(GRU(3, 4, heads=2)), torch.randn(T, B, 3)
    fixed = validators.ModuleValidator.fix(model)
    assert repr(fixed[0]) == "DPGRU(3, 4, heads=2)" and torch.equal(fixed(x)[0], model(x)[0])


@pytest.mark.parametrize("kind", [GRUCell, type("Own", (GRUCell,), {})])
def test_cells_are_refused(kind, opacus, grad_sample):
    """Opacus' own sampler would ignore the state that a cell begins from."""
    model = grad_sample.GradSampleModule(kind(3, 4))
    with pytest.raises(TypeError, match=r"no grad sampler for grucore\.GRUCell"):
        model(torch.randn(2, 3), torch.randn(2, 4)).sum().backward()
    validators = pytest.importorskip("opacus.validators")
    assert "no grad sampler for grucore.GRUCell" in str(validators.ModuleValidator.validate(nn.Sequential(kind(3, 4))))
