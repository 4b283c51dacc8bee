"""Replaces every GRU and GRUCell of torch.nn inside a model by grucore's, in place, and back again."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from grucore import copies, dispatch
from grucore.cell import GRUCell
from grucore.module import GRU

_OURS: dict[type, type] = {copies.TorchGRU: GRU, copies.TorchGRUCell: GRUCell}
_THEIRS: dict[type, type] = {ours: theirs for theirs, ours in _OURS.items()}


def replace_torch(model: nn.Module, *, backend: dispatch.Backend = "auto") -> list[str]:
    """Turns every torch.nn.GRU and torch.nn.GRUCell inside a model into a grucore layer, in place.

    Each layer stays the same object, with its parameters, hooks, parametrisations and mode, so that optimizers, tied
    weights and other references keep working. Subclasses are left unchanged: their own code would be lost.

    Args:
        model: any module, or such a layer itself.
        backend: of the new layers, see `GRU`.

    Returns:
        The names of the replaced layers, as in `named_modules` ("" for the model itself); a shared layer appears once.

    Raises:
        TypeError: model is not a module.
        InputError: an unknown backend, or sizes that ours do not have. The model is left unchanged.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.GRU(3, 4))
        >>> replace_torch(model)
        ['1']
        >>> model
        Sequential(
          (0): Linear(in_features=2, out_features=3, bias=True)
          (1): GRU(3, 4)
        )
    """
    dispatch.check(backend)
    found = list(_found(model, _OURS))
    made = [_attributes(layer, _OURS[_kind(layer)]) for _, layer in found]  # before any is changed: one may be refused
    for (_, layer), attributes in zip(found, made, strict=True):
        _become(layer, _OURS[_kind(layer)], *attributes, backend=backend)
    return [name for name, _ in found]


def restore_torch(model: nn.Module) -> list[str]:
    """Turns every `grucore.GRU` and `grucore.GRUCell` inside a model into torch.nn's, in place; undoes `replace_torch`.

    For tools that only know torch.nn's layers: torch.jit.script, torch.fx, quantisation, FLOP and parameter counters.

    Args:
        model: any module, or such a layer itself. Subclasses are left unchanged.

    Returns:
        The names of the replaced layers, as in `named_modules` ("" for the model itself); a shared layer appears once.

    Raises:
        TypeError: model is not a module.
        InputError: a layer has an option that torch.nn does not have; both are named. The model is left unchanged.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), GRU(3, 4))
        >>> restore_torch(model), type(model[1])
        (['1'], <class 'torch.nn.modules.rnn.GRU'>)
    """
    found = list(_found(model, _THEIRS))
    for name, layer in found:
        copies.check_equal_exists(layer, f"{name!r}" if name else "the model")
    for _, layer in found:
        _become(layer, _THEIRS[_kind(layer)], *_attributes(layer, _THEIRS[_kind(layer)]))
        if isinstance(layer, copies.TorchGRU):
            layer._init_flat_weights()
    return [name for name, _ in found]


def _found(model: nn.Module, kinds: dict[type, type]) -> Iterator[tuple[str, nn.Module]]:
    """Finds the layers of those kinds by name, each once."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}")
    return ((name, layer) for name, layer in model.named_modules() if _kind(layer) in kinds)


def _kind(layer: nn.Module) -> type:
    """A layer's class, without the subclass that torch.nn.utils.parametrize creates."""
    return type(layer).__bases__[0] if parametrize.is_parametrized(layer) else type(layer)


def _attributes(layer: nn.Module, kind: type) -> tuple[Collection[str], dict[str, Any]]:
    """The names of a layer's attributes that its class has made, and the attributes of the new class."""
    state = vars(nn.Module()).keys()  # parameters, hooks, mode: these stay
    before, after = (vars(copies.alike(layer, each, device="meta")) for each in (_kind(layer), kind))
    return before.keys() - state, {name: value for name, value in after.items() if name not in state}


def _become(layer: nn.Module, kind: type, names: Collection[str], attributes: dict[str, Any], **options: Any) -> None:
    """Changes a layer's class, and its attributes to those of the new class."""
    for name in names:
        vars(layer).pop(name, None)
    vars(layer).update(attributes | options)
    if parametrize.is_parametrized(layer):
        own = {name: value for name, value in vars(type(layer)).items() if name not in ("__dict__", "__weakref__")}
        kind = type(type(layer).__name__, (kind,), own)
    layer.__class__ = kind
