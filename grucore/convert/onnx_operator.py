"""The operator GRU of the ONNX standard, and the layer options that it supports.

It has our equations, with linear_before_reset=1 for reset_after=True and 0 for False. Its gates are in the order
z, r, h (h is our n); its weights are W (D, 3H, I), R (D, 3H, H) and B (D, 6H) = (b_ih|b_hh). Its activations are pairs
(f, g) per direction, f for the gates and g for the candidate; alpha and beta values are in two separate lists, only for
the activations that take them. Source: the operator GRU-14 of the ONNX standard.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from grucore.errors import InputError
from grucore.options import Activation

DTYPES = (torch.float16, torch.float32, torch.float64)  # of GRU-14


class _Activation(NamedTuple):
    name: str
    alpha: float | None = None
    beta: float | None = None


_ACTIVATIONS: dict[Activation, _Activation] = {  # by our names; ONNX has no "hard_tanh"
    "tanh": _Activation("Tanh"),
    "sigmoid": _Activation("Sigmoid"),
    "relu": _Activation("Relu"),
    "hard_sigmoid": _Activation("HardSigmoid", 1 / 6, 0.5),
    "softsign": _Activation("Softsign"),
    "linear": _Activation("Affine", 1.0, 0.0),
}
# ONNX's defaults of alpha and beta.
_DEFAULTS = {"hardsigmoid": (0.2, 0.5), "affine": (1.0, 0.0)}


ACTIVATIONS = tuple(_ACTIVATIONS)  # our activations that ONNX has


def attributes(
    *,
    hidden_size: int,
    directions: int,
    reset_after: bool,
    activation: Activation,
    recurrent_activation: Activation,
) -> dict[str, Any]:
    """The attributes of a node, under ONNX's names; activations only if they differ from ONNX's defaults."""
    given: dict[str, Any] = {
        "hidden_size": hidden_size,
        "linear_before_reset": int(reset_after),
        "direction": "bidirectional" if directions == 2 else "forward",
    }
    if (recurrent_activation, activation) != ("sigmoid", "tanh"):
        functions = [_ACTIVATIONS[recurrent_activation], _ACTIVATIONS[activation]] * directions
        given["activations"] = [function.name for function in functions]
        if alphas := [function.alpha for function in functions if function.alpha is not None]:
            given["activation_alpha"] = alphas
            given["activation_beta"] = [function.beta for function in functions if function.beta is not None]
    return given


def read_activations(given: Mapping[str, Any], node: str, directions: int) -> list[tuple[Activation, Activation]]:
    """(recurrent_activation, activation) of each direction, under our names.

    Args:
        given: the attributes of a node, as Python values.
        node: its name in messages.
        directions: how many it has.

    Raises:
        InputError: a function that grucore does not have, or not two for each direction.
    """
    names = [name.lower() for name in given.get("activations") or ["Sigmoid", "Tanh"] * directions]
    if len(names) != 2 * directions:
        raise InputError(f"{node} must have {2 * directions} activations, got {names}")
    values = {name: list(given.get(f"activation_{name}", [])) for name in ("alpha", "beta")}
    ours = []
    for name in names:
        alpha, beta = _DEFAULTS.get(name, (None, None))
        if name in _DEFAULTS:
            alpha, beta = (
                left.pop(0) if left else default for left, default in zip(values.values(), (alpha, beta), strict=True)
            )
        ours.append(_our_name(name, alpha, beta, node))
    if left := {name: list_ for name, list_ in values.items() if list_}:
        raise InputError(f"{node} has {left}, which activations={names} do not take")
    return list(zip(ours[::2], ours[1::2], strict=True))


def _our_name(name: str, alpha: float | None, beta: float | None, node: str) -> Activation:
    for ours, function in _ACTIVATIONS.items():
        if (name, _rounded(alpha), _rounded(beta)) == (
            function.name.lower(),
            _rounded(function.alpha),
            _rounded(function.beta),
        ):
            return ours
    values = "" if alpha is None else f" with alpha={alpha:.6g}, beta={beta:.6g}"
    raise InputError(f"{node} has the activation {name!r}{values}, which cannot be converted")


def _rounded(value: float | None) -> float | None:
    """The value after rounding to the attribute's float32."""
    return None if value is None else float(np.float32(value))
