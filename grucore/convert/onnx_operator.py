"""The operator GRU of the ONNX standard, and what of a layer it can say.

It has our equations, with linear_before_reset=1 for reset_after=True and 0 for False. Its gates stand in the order
z, r, h (h is our n), W (D, 3H, I), R (D, 3H, H) and B (D, 6H) = (b_ih|b_hh). Its activations are named (f, g): f of the
gates, g of the candidate, a pair for each direction; those that take an alpha or a beta find theirs in lists of their
own, one after the other. Source: the operator GRU-14 of the ONNX standard.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

DTYPES = (torch.float16, torch.float32, torch.float64)  # of GRU-14


class _Activation(NamedTuple):
    name: str
    alpha: float | None = None
    beta: float | None = None


_ACTIVATIONS = {  # ONNX has no name for "hard_tanh"
    "tanh": _Activation("Tanh"),
    "sigmoid": _Activation("Sigmoid"),
    "relu": _Activation("Relu"),
    "hard_sigmoid": _Activation("HardSigmoid", 1 / 6, 0.5),
    "softsign": _Activation("Softsign"),
    "linear": _Activation("Affine", 1.0, 0.0),
}
# What an alpha and a beta are where a node does not say.
_DEFAULTS = {"hardsigmoid": (0.2, 0.5), "affine": (1.0, 0.0)}


def can_say(activation: str) -> bool:
    """Whether ONNX has a function of ours."""
    return activation in _ACTIVATIONS


def attributes(
    *, hidden_size: int, directions: int, reset_after: bool, activation: str, recurrent_activation: str
) -> dict[str, Any]:
    """The attributes of a node, under ONNX's names; activations only where they are not ONNX's defaults."""
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


def read_activations(given: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(recurrent_activation, activation) of each direction, from a node's attributes.

    Raises:
        ValueError: a function that we do not have; the message says which.
    """
    names = [name.lower() for name in given.get("activations") or ["Sigmoid", "Tanh"]]
    alphas, betas = list(given.get("activation_alpha", [])), list(given.get("activation_beta", []))
    ours = []
    for name in names:
        alpha, beta = _DEFAULTS.get(name, (None, None))
        if name in _DEFAULTS:
            alpha = alphas.pop(0) if alphas else alpha
            beta = betas.pop(0) if betas else beta
        ours.append(_ours(name, alpha, beta))
    if alphas or betas:
        raise ValueError(f"has activation_alpha or activation_beta that activations={names} do not take")
    if len(ours) % 2:
        raise ValueError(f"has activations={names}, which must come in pairs")
    return list(zip(ours[::2], ours[1::2], strict=True))


def _ours(name: str, alpha: float | None, beta: float | None) -> str:
    for ours, function in _ACTIVATIONS.items():
        if function.name.lower() == name and all(
            a is b or (a is not None and b is not None and abs(a - b) <= 1e-7)
            for a, b in ((alpha, function.alpha), (beta, function.beta))
        ):
            return ours
    values = "" if alpha is None else f" with alpha={alpha:.6g} and beta={beta:.6g}"
    raise ValueError(f"has the activation {name!r}{values}, which cannot be converted")
