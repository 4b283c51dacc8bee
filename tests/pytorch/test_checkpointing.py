"""Activation checkpointing and saved-tensor hooks: the gradients of a plain call, bit for bit."""

import functools

import pytest
import torch
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from grucore import GRU

pytestmark = pytest.mark.slow

CALLS = {
    "dense": {},
    "lengths": {"lengths": torch.tensor([7, 0, 3])},
    "mask": {"mask": torch.arange(21).reshape(7, 3) % 4 != 1},
    "reset": {"reset": torch.arange(21).reshape(7, 3) % 5 == 2},
}
LAYERS = {
    "two layers, two directions": {"num_layers": 2, "bidirectional": True},
    "reset before": {"reset_after": False},
    "bfloat16": {"dtype": torch.bfloat16},
    "fused": {"backend": "triton"},
}


def gradients(layer, run, x):
    """The gradients of the input and of every parameter, for run(x)."""
    x = x.detach().requires_grad_()
    layer.zero_grad()
    run(x).square().sum().backward()
    return [x.grad, *(p.grad for p in layer.parameters())]


def assert_equal(got, want):
    for g, w in zip(got, want, strict=True):
        assert torch.equal(g, w)


@pytest.fixture(params=LAYERS)
def layer(request):
    return GRU(3, 4, **LAYERS[request.param])


@pytest.fixture
def x(layer):
    return torch.randn(7, 3, 3, dtype=layer.weight_ih_l0.dtype)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("use_reentrant", [False, True], ids=["non-reentrant", "reentrant"])
def test_a_checkpointed_layer_has_the_same_gradients(layer, x, call, use_reentrant):
    def run(x):
        return layer(x, **call)[0]

    checkpointed = gradients(layer, lambda x: checkpoint(run, x, use_reentrant=use_reentrant), x)
    if use_reentrant:  # y comes from a call without gradients, which may run other kernels than one with them
        for got, want in zip(checkpointed, gradients(layer, run, x), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    else:
        assert_equal(checkpointed, gradients(layer, run, x))


@pytest.mark.parametrize("saved", [True, False], ids=["saved", "recomputed"])
def test_selective_checkpointing(layer, x, saved):
    calls = []

    def policy(context, operator, *args, **options):
        calls.append(operator)
        ours = operator == torch.ops.grucore.gru_layer.default
        return CheckpointPolicy.MUST_SAVE if saved and ours else CheckpointPolicy.PREFER_RECOMPUTE

    def run(x):
        return layer(x, lengths=CALLS["lengths"]["lengths"])[0]

    context_fn = functools.partial(create_selective_checkpoint_contexts, policy)
    selective = gradients(layer, lambda x: checkpoint(run, x, use_reentrant=False, context_fn=context_fn), x)
    assert_equal(selective, gradients(layer, run, x))
    assert torch.ops.grucore.gru_layer.default in calls


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_saved_tensors_are_unpacked_once(layer, x, call):
    """Hooks that move a saved tensor away and back do so once for each tensor."""

    def run(x):
        with saved_tensors_hooks(lambda t: [t], list.pop):  # a second pop raises
            return layer(x, **call)[0]

    assert_equal(gradients(layer, run, x), gradients(layer, lambda x: layer(x, **call)[0], x))


def test_offloading(layer, x):
    def run(x):
        with save_on_cpu():
            return layer(x)[0]

    assert_equal(gradients(layer, run, x), gradients(layer, lambda x: layer(x)[0], x))


def test_gradients_of_gradients_through_a_checkpoint():
    layer, x = GRU(3, 4, num_layers=2), torch.randn(7, 3, 3, requires_grad=True)

    def second(run):
        (first,) = torch.autograd.grad(run(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), list(layer.parameters()))

    def run(x):
        return layer(x, lengths=CALLS["lengths"]["lengths"])[0]

    for got, want in zip(second(lambda x: checkpoint(run, x, use_reentrant=False)), second(run), strict=True):
        torch.testing.assert_close(got, want)
