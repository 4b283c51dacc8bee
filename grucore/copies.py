"""Copies between our layers and torch.nn's, GRU and GRUCell: the same options, parameters, device, dtype and mode."""

from __future__ import annotations

import warnings
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

# Bound at import, so that converting still works in a program that assigns our class to torch.nn.GRU.
from torch.nn import GRU as TorchGRU
from torch.nn import GRUCell as TorchGRUCell

from grucore.errors import InputError
from grucore.kernels.heads import block_diagonal
from grucore.names import GAINS, of_weights, parameter_names
from grucore.options import OF_RUN, OF_TORCH_CELL, OF_TORCH_GRU, changed

_FLAGS = {"bias", "batch_first", "bidirectional"}
DENSE = "to_dense() makes an equal layer without heads"  # what helps where heads are refused


def from_torch(kind: type, torch_kind: type, module: nn.Module, **options: Any) -> Any:
    """A layer of `kind`, ours or a subclass, equal to one of `torch_kind`."""
    if not isinstance(module, torch_kind):
        raise TypeError(f"from_torch needs a torch.nn.{torch_kind.__name__}, got {type(module).__name__}")
    return copied(module, kind, **options)


def to_torch(layer: nn.Module) -> Any:
    """A torch.nn.GRU or GRUCell equal to one of ours."""
    check_equal_exists(layer)
    return copied(layer, TorchGRU if hasattr(layer, "num_layers") else TorchGRUCell)


def check_equal_exists(layer: nn.Module, name: str = "this layer") -> None:
    """Raises an InputError if the layer has an option that torch.nn does not have."""
    own = changed(layer, without=(*_torch_options(layer), *OF_RUN))
    if own:
        kind = "GRU" if hasattr(layer, "num_layers") else "GRUCell"
        given = ", ".join(f"{option}={value!r}" for option, value in own.items())
        advice = f". {DENSE}" if "heads" in own else ""
        raise InputError(f"torch.nn.{kind} has no {given}, so {name} cannot be converted{advice}")


def to_dense(layer: Any, kind: type) -> Any:
    """Copies a layer with heads to an equal one of `kind`, `GRU` or `GRUCell`, without heads."""
    if layer.heads > 1 and layer.layer_norm:
        raise InputError(f"layer_norm normalises each of heads={layer.heads}: no layer without heads is equal")
    weight: Any = layer.weight_ih_l0 if hasattr(layer, "num_layers") else layer.weight_ih
    options = changed(layer, without=("heads",))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about dropout, given when layer was made
        copy = kind(layer.input_size, layer.hidden_size, **options, device=weight.device, dtype=weight.dtype)
    return _filled(copy, layer)


def copied(source: nn.Module, kind: type, **options: Any) -> Any:
    """A layer of `kind` with the options and the weights of `source`; parametrised weights as currently computed."""
    weight: Any = source.weight_ih_l0 if hasattr(source, "num_layers") else source.weight_ih
    copy = alike(source, kind, device=weight.device, dtype=weight.dtype, **options)
    return _filled(copy, source)


def _filled(copy: Any, source: nn.Module) -> Any:
    """`copy` with the parameters of `source`, dense and tied as there; what a subclass has of its own stays as made."""
    copies: dict[int, tuple[Tensor, nn.Parameter]] = {}  # with the originals, so that no id is used again
    with torch.no_grad():
        for name in _parameters_of(copy):
            original, parameter = getattr(source, name), getattr(copy, name)
            values = block_diagonal(original) if original.dim() > parameter.dim() else original
            if id(original) in copies:
                setattr(copy, name, copies[id(original)][1])
            elif isinstance(parameter, nn.Parameter):
                parameter.copy_(values).requires_grad_(original.requires_grad)
                copies[id(original)] = original, parameter
            else:  # the subclass parametrises it
                setattr(copy, name, values.detach())
    return copy.train(source.training)


def _parameters_of(layer: Any) -> tuple[str, ...]:
    """The names of the parameters of one of our layers or torch.nn's, without those that a subclass adds."""
    kinds = of_weights(layer.bias) + (GAINS if getattr(layer, "layer_norm", False) else ())
    if not hasattr(layer, "num_layers"):
        return kinds
    groups = parameter_names(layer.num_layers, 2 if layer.bidirectional else 1, kinds)
    return *chain(*groups), *(("initial_state",) if getattr(layer, "learn_initial_state", False) else ())


def alike(source: nn.Module, kind: type, **options: Any) -> Any:
    """A new layer of `kind` with the options of `source` that torch.nn has."""
    names = ("input_size", "hidden_size", *_torch_options(source))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the dropout warning was given when source was made
        values = {name: getattr(source, name) for name in names}
        flags = {name: bool(values[name]) for name in _FLAGS & values.keys()}  # torch.nn takes 1 for True
        return kind(**values | flags, **options)


def _torch_options(layer: nn.Module) -> tuple[str, ...]:
    return OF_TORCH_GRU if hasattr(layer, "num_layers") else OF_TORCH_CELL
