"""torch.func and forward mode: against the same transformation of torch.nn.GRU's own equations, in float64."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads
from torch.utils._python_dispatch import TorchDispatchMode

from grucore import GRU, GRUCell

# torch's own rules for forward mode are scripts.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

f64 = torch.float64
CONFIGURATIONS = [(1, False, True), (2, True, True), (1, True, False)]


def pair(layers=1, two_way=False, bias=True, cell=False):
    """A layer, and torch.nn's own, whose CPU operators torch.func differentiates."""
    if cell:
        ours = GRUCell(3, 4, bias, dtype=f64)
        theirs = nn.GRUCell(3, 4, bias, dtype=f64)
        theirs.load_state_dict(ours.state_dict())
        return ours, theirs
    ours = GRU(3, 4, layers, bias, bidirectional=two_way, dtype=f64)
    return ours, ours.to_torch()


def close(got, want):
    torch.utils._pytree.tree_map(lambda a, b: torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12), got, want)


def loss(model):
    return lambda p, x: functional_call(model, p, (x,))[0].sin().sum()


def output(model):
    return lambda p, x: functional_call(model, p, (x,))[0]


TRANSFORMS = {
    "grad": lambda m, p, x: grad(loss(m))(p, x),
    "jvp over x": lambda m, p, x: jvp(lambda x: output(m)(p, x), (x,), (x.cos(),)),
    "jvp over weights": lambda m, p, x: jvp(lambda p: output(m)(p, x), (p,), ({k: v.cos() for k, v in p.items()},)),
    "jacrev": lambda m, p, x: jacrev(lambda x: output(m)(p, x).sum(0))(x),
    "jacfwd": lambda m, p, x: jacfwd(lambda x: output(m)(p, x).sum(0))(x),
    "hessian": lambda m, p, x: hessian(lambda x: loss(m)(p, x))(x),
    "gradient of a gradient": lambda m, p, x: grad(lambda x: grad(loss(m), 1)(p, x).square().sum())(x),
}


MAPPED = {"outputs": output, "gradients of each sample": lambda m: grad(loss(m))}


@pytest.mark.parametrize("of", MAPPED.values(), ids=MAPPED)
@pytest.mark.parametrize("cell", [False, True], ids=["layer", "cell"])
def test_vmap_over_samples(cell, of):
    """torch.nn's own cannot be mapped, so it runs on the samples one by one."""
    ours, theirs = pair(2, True) if not cell else pair(cell=True)
    shape = (4, 2, 3) if cell else (4, 5, 2, 3)
    x, p = torch.randn(shape, dtype=f64), {k: v.detach() for k, v in ours.named_parameters()}
    got = vmap(of(ours), (None, 0))(p, x)
    for i in range(len(x)):
        close(torch.utils._pytree.tree_map(lambda t, i=i: t[i], got), of(theirs)(p, x[i]))


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_layer(transform, configuration):
    ours, theirs = pair(*configuration)
    x, p = torch.randn(5, 2, 3, dtype=f64), {k: v.detach() for k, v in ours.named_parameters()}
    close(transform(ours, p, x), transform(theirs, p, x))


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_cell(transform):
    ours, theirs = pair(cell=True)
    x, p = torch.randn(2, 3, dtype=f64), {k: v.detach() for k, v in ours.named_parameters()}
    close(transform(ours, p, x), transform(theirs, p, x))


def test_an_ensemble_of_stacked_models():
    members = [GRU(3, 4, bidirectional=True, dtype=f64) for _ in range(3)]
    p, buffers = stack_module_state(members)
    x, hx = torch.randn(5, 2, 3, dtype=f64), torch.randn(2, 2, 4, dtype=f64)
    run = lambda p, b, x: functional_call(members[0], (p, b), (x, hx))  # noqa: E731
    y, h_n = vmap(run, (0, 0, None))(p, buffers, x)
    for i, member in enumerate(members):
        close((y[i], h_n[i]), member(x, hx))


def test_vmap_over_initial_states():
    ours, theirs = pair()
    x, hx = torch.randn(5, 2, 3, dtype=f64), torch.randn(6, 1, 2, 4, dtype=f64)
    y, h_n = vmap(lambda h: ours(x, h))(hx)
    for i in range(6):
        close((y[i], h_n[i]), theirs(x, hx[i]))


def test_vmap_over_lengths_and_resets():
    ours, _ = pair(1, True)
    x = torch.randn(4, 5, 2, 3, dtype=f64)
    lengths, reset = torch.tensor([[5, 0], [2, 3], [1, 5], [4, 4]]), torch.rand(4, 5, 2) < 0.4
    y, h_n = vmap(lambda x, n, r: ours(x, lengths=n, reset=r))(x, lengths, reset)
    for i in range(4):
        close((y[i], h_n[i]), ours(x[i], lengths=lengths[i], reset=reset[i]))


def test_dual_numbers():
    ours, theirs = pair(2, True)
    x, tangent = torch.randn(5, 2, 3, dtype=f64), torch.randn(5, 2, 3, dtype=f64)
    with forward_ad.dual_level():
        dual = ours(forward_ad.make_dual(x, tangent))[0]
        got = forward_ad.unpack_dual(dual).tangent
    close(got, jvp(lambda x: theirs(x)[0], (x,), (tangent,))[1])


def test_forward_over_reverse_mode_of_a_gradient_penalty():
    """A Hessian-vector product: a dual number through torch.autograd.grad."""
    ours, theirs = pair()
    x, v = torch.randn(4, 2, 3, dtype=f64), torch.randn(4, 2, 3, dtype=f64)
    close(
        *(jvp(grad(lambda x, m=m: m(x)[0].sin().sum()), (x,), (v,)) for m in (ours, theirs)),
    )


OF_BACKWARD = {
    "native": lambda x: (GRU(3, 4, 2, bidirectional=True, dtype=f64), x),
    "eager": lambda x: (GRU(3, 4, backend="eager", dtype=f64), x),
    "reset before": lambda x: (GRU(3, 4, reset_after=False, dtype=f64), x),
    "heads": lambda x: (GRU(3, 4, heads=2, dtype=f64), x),
    "options": lambda x: (GRU(3, 4, layer_norm=True, zoneout=0.3, activation="relu", dtype=f64).eval(), x),
    "drawn": lambda x: (GRU(3, 4, recurrent_dropout=0.3, dtype=f64), x),
    "cell": lambda x: (GRUCell(3, 4, dtype=f64), x[0]),
}


class Watching(TorchDispatchMode):
    """Sees every operator, so that a layer runs as one."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("is_operator", [False, True], ids=["function", "operator"])
@pytest.mark.parametrize("of", OF_BACKWARD.values(), ids=OF_BACKWARD)
def test_a_backward_pass_that_is_mapped_or_differentiated_forward(of, is_operator):
    """It is linear in the output's gradients: by rows, and tangent by tangent, it gives what it gives one by one."""
    layer, x = of(torch.randn(5, 2, 3, dtype=f64, requires_grad=True))
    with Watching() if is_operator else nullcontext():
        out = layer(x)
    y = out if isinstance(layer, GRUCell) else torch.cat([each.flatten() for each in out])
    inputs, directions = [x, *layer.parameters()], torch.randn(3, *y.shape, dtype=f64)
    one_by_one = [torch.autograd.grad(y, inputs, d, retain_graph=True) for d in directions]
    mapped = torch.autograd.grad(y, inputs, directions, is_grads_batched=True, retain_graph=True)
    close(mapped, tuple(map(torch.stack, zip(*one_by_one, strict=True))))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(directions[0], directions[1])
        found = [forward_ad.unpack_dual(each) for each in torch.autograd.grad(y, inputs, dual)]
        close([tuple(each) for each in found], list(zip(one_by_one[0], one_by_one[1], strict=True)))


@pytest.mark.parametrize("of", OF_BACKWARD.values(), ids=OF_BACKWARD)
def test_a_gradient_with_a_graph_is_the_gradient_though_the_state_comes_from_the_input(of):
    layer, x = of(torch.randn(5, 2, 3, dtype=f64, requires_grad=True))
    is_cell = isinstance(layer, GRUCell)
    hx = x.mean(-1, keepdim=True) if is_cell else x.mean((0, 2))[:, None].expand(getattr(layer, "num_layers", 1), 2, 1)
    hx = hx.repeat(1 if is_cell or not layer.bidirectional else 2, *(1,) * (hx.dim() - 2), 4)
    out = layer(x, hx)
    total = (out if is_cell else out[0]).square().sum()
    (plain,) = torch.autograd.grad(total, x, retain_graph=True)
    (with_graph,) = torch.autograd.grad(total, x, create_graph=True)
    close(with_graph, plain)


def test_a_gradient_of_a_gradient_of_no_steps():
    x, hx = torch.randn(0, 2, 3, dtype=f64, requires_grad=True), torch.randn(1, 2, 4, dtype=f64, requires_grad=True)
    (dx,) = torch.autograd.grad(GRU(3, 4, dtype=f64)(x, hx)[1].square().sum(), x, create_graph=True)
    assert torch.autograd.grad(dx.sum(), hx, allow_unused=True) == (None,)


@pytest.mark.parametrize("options", [{}, {"backend": "eager"}, {"layer_norm": True}], ids=str)
def test_gradients_of_no_steps_are_zeros(options):
    layer, x = GRU(3, 4, **options), torch.randn(0, 2, 3, requires_grad=True)
    y, h_n = layer(x)
    gradients = torch.autograd.grad(y.sum() + h_n.sum(), list(layer.parameters()), create_graph=True)
    assert not any(gradient.any() for gradient in gradients)
    (dx,) = torch.autograd.grad(y, x, torch.ones(3, *y.shape), is_grads_batched=True)
    assert dx.shape == (3, 0, 2, 3)


def test_outside_of_transforms_the_kernels_run(monkeypatch):
    """Otherwise every test here would pass without them."""
    called = []
    for function in ("grucore.ops.layer", "grucore.direct.native_layer"):
        monkeypatch.setattr(function, lambda x, *a: called.append(1) or (x, x))
    ours, x = GRU(4, 4), torch.randn(5, 2, 4)
    ours(x)
    vmap(lambda x: ours(x)[0])(x.unsqueeze(0))
    assert len(called) == 1


@pytest.mark.parametrize("layer", [GRU(3, 4, batch_first=True), GRUCell(3, 4)], ids=["GRU", "GRUCell"])
def test_expanded_weights_are_refused_by_name(layer):
    """Opacus calls this grad_sample_mode="ew"; torch.nn.GRUCell does not support it either."""
    x = torch.randn(2, 5, 3) if isinstance(layer, GRU) else torch.randn(2, 3)
    with pytest.raises(RuntimeError, match=r"call_for_per_sample_grads .* only knows torch.nn's layers. .* vmap\(grad"):
        call_for_per_sample_grads(layer, batch_size=2)(x)
