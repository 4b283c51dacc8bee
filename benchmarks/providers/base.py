"""The interface of a provider, and the error for what it cannot do."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn


class Unavailable(Exception):
    """The reason why a provider has no figure for a case."""


class Provider:
    """An implementation built from a torch.nn.GRU with the same weights, and timed through its own calls.

    It raises `Unavailable` with the reason for what it cannot do; results then show the reason instead of a figure.
    """

    trains = True  # computes gradients of x and of the parameters
    exact = True  # computes a GRU, so its results are compared with float64
    reset_after = True  # the form of the GRU
    own_threads = "never"  # "always", or "of several" threads: those spin, so it is built and run after the others

    def __init__(self, layer: nn.GRU):
        self.layer: nn.Module = layer

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Computes y (T, B, D*H) and h_n of a padded batch."""
        raise NotImplementedError

    def train(self, x: Tensor, lengths: Tensor | None, dy: Tensor) -> tuple[Tensor, ...]:
        """Computes y, h_n and, from dy, the gradients of x and of the parameters."""
        if not self.trains:
            raise Unavailable("inference only")
        y, h_n = self.forward(x, lengths)
        return y, h_n, *torch.autograd.grad(y, [x, *self.layer.parameters()], dy)

    def step(self, x: Tensor, hx: Tensor) -> Tensor:
        """Computes the new state (K*D, B, H) of all layers from x (1, B, I) and hx."""
        raise Unavailable("sequences only")


def one_layer(layer: nn.Module) -> list[Tensor]:
    """Returns the weights, for a provider that only has one layer in one direction."""
    assert isinstance(layer, nn.GRU)
    if layer.num_layers > 1 or layer.bidirectional:
        raise Unavailable("one layer in one direction")
    return layer.all_weights[0]


def refuse(lengths: Tensor | None) -> None:
    """Raises for lengths, for a provider without them."""
    if lengths is not None:
        raise Unavailable("rows of one length")


def imported(package: str) -> Any:
    """Imports a package that is not installed everywhere.

    Raises:
        Unavailable: it cannot be imported, with the error of its import.
    """
    try:
        return importlib.import_module(package)
    except Exception as error:  # an import may fail in any way: the row records it
        raise Unavailable(f"import {package}: {type(error).__name__}: {error}") from None
