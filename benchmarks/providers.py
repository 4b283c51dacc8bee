"""The implementations compared, each as a function from a torch.nn.GRU to a layer with the same weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from grucore import GRU

PROVIDERS: dict[str, Callable[[nn.GRU], nn.Module]] = {
    "grucore-reference": lambda layer: GRU.from_torch(layer, backend="reference"),
    "grucore-triton": lambda layer: GRU.from_torch(layer, backend="triton"),
    "torch": lambda layer: layer,
}
DEFAULTS = {"cpu": ["grucore-reference", "torch"], "cuda": ["grucore-triton", "torch"]}


def outputs(layer: nn.Module, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """y (T, B, H) and h_n of a padded batch, lengths said in the way that the layer has for them."""
    if lengths is None:
        return layer(x)
    if isinstance(layer, GRU):
        return layer(x, lengths=lengths)
    y, h_n = layer(pack_padded_sequence(x, lengths, enforce_sorted=False))
    return pad_packed_sequence(y, total_length=len(x))[0], h_n


def error_rms(layer: nn.Module, oracle: nn.GRU, x: Tensor, lengths: Tensor | None, train: bool) -> float:
    """The largest RMS error of the outputs and, if `train`, the gradients, against torch.nn.GRU in float64."""
    results = []
    for module, dtype in ((layer, x.dtype), (oracle, torch.float64)):
        x_ = x.detach().to(dtype).requires_grad_(train)
        y, h_n = outputs(module, x_, lengths)
        tensors = [y, h_n]
        if train:
            tensors += torch.autograd.grad(y, [x_, *module.parameters()], torch.ones_like(y))
        results.append([t.detach().double() for t in tensors])
    errors = [
        (got - want).square().mean().sqrt() / want.square().mean().sqrt() for got, want in zip(*results, strict=True)
    ]
    return float(torch.stack(errors).max())
