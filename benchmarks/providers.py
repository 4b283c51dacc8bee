"""The implementations compared, each as a function from a torch.nn.GRU to a layer with the same weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from grucore import GRU

PROVIDERS: dict[str, Callable[[nn.GRU], nn.Module]] = {
    "grucore-reference": lambda layer: GRU.from_torch(layer, backend="reference"),
    "torch": lambda layer: layer,
}


def error_rms(layer: nn.Module, oracle: nn.GRU, x: torch.Tensor, train: bool) -> float:
    """The largest RMS error of the outputs and, if `train`, the gradients, against torch.nn.GRU in float64."""
    results = []
    for module, dtype in ((layer, x.dtype), (oracle, torch.float64)):
        x_ = x.detach().to(dtype).requires_grad_(train)
        y, h_n = module(x_)
        tensors = [y, h_n]
        if train:
            tensors += torch.autograd.grad(y, [x_, *module.parameters()], torch.ones_like(y))
        results.append([t.detach().double() for t in tensors])
    errors = [
        (got - want).square().mean().sqrt() / want.square().mean().sqrt() for got, want in zip(*results, strict=True)
    ]
    return float(torch.stack(errors).max())
