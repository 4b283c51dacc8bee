"""Copies between our layers and torch.nn's, GRU and GRUCell: the same options, parameters, device, dtype and mode."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

# Bound here: a program that has put ours in the place of torch.nn.GRU still converts.
from torch.nn import GRU as TorchGRU
from torch.nn import GRUCell as TorchGRUCell

OPTIONS = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")
CELL_OPTIONS = ("input_size", "hidden_size", "bias")
OWN_OPTIONS: dict[str, object] = {  # what torch.nn does not have, at the values that make no difference
    "reset_after": True,
    "recurrent_dropout": 0.0,
    "zoneout": 0.0,
    "layer_norm": False,
    "learn_initial_state": False,
    "activation": "tanh",
    "recurrent_activation": "sigmoid",
}


def from_torch(kind: type, torch_kind: type, module: nn.Module, backend: str) -> Any:
    """A layer of `kind`, ours or a subclass, equal to one of `torch_kind`."""
    if not isinstance(module, torch_kind):
        raise TypeError(f"from_torch needs a torch.nn.{torch_kind.__name__}, got {type(module).__name__}")
    return copied(module, kind, backend=backend)


def to_torch(layer: nn.Module) -> Any:
    """A torch.nn.GRU or GRUCell equal to one of ours."""
    check_equal_exists(layer)
    return copied(layer, TorchGRU if hasattr(layer, "num_layers") else TorchGRUCell)


def check_equal_exists(layer: nn.Module, name: str = "this layer") -> None:
    """Raises a ValueError where a layer of ours has an option that torch.nn does not have."""
    options = {option: getattr(layer, option, none) for option, none in OWN_OPTIONS.items()}
    own = [f"{option}={value!r}" for option, value in options.items() if value != OWN_OPTIONS[option]]
    if own:
        kind = "GRU" if hasattr(layer, "num_layers") else "GRUCell"
        raise ValueError(f"torch.nn.{kind} has no {', '.join(own)}; {name} has no equal there")


def copied(source: nn.Module, kind: type, **options: Any) -> Any:
    """A layer of `kind` with the options and the weights of `source`: parametrised ones as they are now."""
    weight: Any = source.weight_ih_l0 if hasattr(source, "num_layers") else source.weight_ih
    copy = alike(source, kind, device=weight.device, dtype=weight.dtype, **options)
    with torch.no_grad():
        for name, parameter in copy.named_parameters():
            original = getattr(source, name)
            parameter.copy_(original).requires_grad_(original.requires_grad)
    return copy.train(source.training)


def alike(source: nn.Module, kind: type, **options: Any) -> Any:
    """A new layer of `kind` with the options of `source`."""
    names = OPTIONS if hasattr(source, "num_layers") else CELL_OPTIONS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the dropout warning was given when source was made
        return kind(*(getattr(source, name) for name in names), **options)
