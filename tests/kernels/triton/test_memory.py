"""The memory of a layer on a GPU, counted without one: what is allocated while its kernels do nothing."""

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from grucore.kernels import Form, State, Steps, Weights
from grucore.kernels.triton import layer


class Peak(TorchDispatchMode):
    """Counts the bytes of the tensors that operators make."""

    def __init__(self):
        super().__init__()
        self.held, self.most = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        before = {t.untyped_storage()._cdata for t in _tensors((args, kwargs))}
        out = function(*args, **(kwargs or {}))
        for t in _tensors(out):
            if t.untyped_storage()._cdata not in before:
                self.held.append((StorageWeakRef(t.untyped_storage()), t.untyped_storage().nbytes()))
        self.held = [one for one in self.held if not one[0].expired()]
        self.most = max(self.most, sum(size for _, size in self.held))
        return out


def _tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class Nothing:
    """A kernel that is not run."""

    def __getitem__(self, grid):
        return lambda *args, **kwargs: None


@pytest.mark.parametrize(
    "hidden_size, directions, flags, forward, backward",
    [
        (64, 1, False, 4.1, 4.4),
        (512, 1, False, 5.1, 5.4),
        (512, 1, True, 6.1, 6.4),
        (256, 2, False, 5.1, 5.4),
    ],
)
def test_peak(hidden_size, directions, flags, forward, backward, monkeypatch):
    """In bytes of y, beyond the inputs: 512 steps of 64 rows in bfloat16.

    For training an H200 took 14 to 16 with nn.GRU (`benchmarks/results/gpu-h200-quick.csv`).
    """
    for name in dir(layer):
        if name.endswith("_kernel"):
            monkeypatch.setattr(layer, name, Nothing())
    T, B, H, D = 512, 64, hidden_size, directions

    def new(*shape):
        return torch.empty(shape, dtype=torch.bfloat16, device="meta")

    x, dy = new(T, B, H), new(T, B, D * H)
    steps = Steps(torch.empty(T, B, dtype=torch.bool, device="meta")) if flags else Steps()
    weights = Weights(*(new(D, 3 * H, n) for n in (H, H)), *(new(D, 3 * H) for _ in range(2)))
    values = (State(new(D, B, H)), weights, steps, Form())
    with Peak() as peak:
        y, _ = layer.gru_forward(x, *values)
    size = T * B * D * H * 2
    assert peak.most < forward * size
    with Peak() as peak:
        layer.gru_backward(dy, None, y, x, *values, True)
    assert peak.most + size < backward * size  # with y
