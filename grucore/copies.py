"""Copies between `grucore.GRU` and torch.nn.GRU: the same options, parameters, device, dtype and mode."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

OPTIONS = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")
OWN_OPTIONS: dict[str, object] = {  # what torch.nn.GRU does not have, at the values that make no difference
    "reset_after": True,
    "recurrent_dropout": 0.0,
    "zoneout": 0.0,
    "layer_norm": False,
    "learn_initial_state": False,
    "activation": "tanh",
    "recurrent_activation": "sigmoid",
}


def from_torch(kind: type, module: nn.GRU, backend: str) -> Any:
    """A layer of `kind`, `grucore.GRU` or a subclass, equal to a torch.nn.GRU."""
    if not isinstance(module, nn.GRU):
        raise TypeError(f"from_torch needs a torch.nn.GRU, got {type(module).__name__}")
    return copied(module, kind, backend=backend)


def to_torch(layer: nn.Module) -> nn.GRU:
    """A torch.nn.GRU equal to a `grucore.GRU`."""
    own = [f"{name}={getattr(layer, name)!r}" for name, none in OWN_OPTIONS.items() if getattr(layer, name) != none]
    if own:
        raise ValueError(f"torch.nn.GRU has no {', '.join(own)}; this layer has no equal there")
    return copied(layer, nn.GRU)


def copied(source: nn.Module, kind: type, **options: Any) -> Any:
    """A layer of `kind` with the options and the weights of `source`: parametrised ones as they are now."""
    weight: Any = source.weight_ih_l0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the dropout warning was given when source was made
        copy = kind(*(getattr(source, name) for name in OPTIONS), device=weight.device, dtype=weight.dtype, **options)
    with torch.no_grad():
        for name, parameter in copy.named_parameters():
            original = getattr(source, name)
            parameter.copy_(original).requires_grad_(original.requires_grad)
    return copy.train(source.training)
