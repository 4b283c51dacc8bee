"""The layer of a program, and arguments for its calls, as text."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Layer:
    """The properties of a program's layer that a correct call needs."""

    I: int  # noqa: E741
    H: int
    layers: int
    two_way: bool
    bias: bool
    batch_first: bool
    dtype: str = "torch.float32"
    heads: int = 1

    @property
    def arguments(self) -> str:
        given = f"{self.I}, {self.H}, num_layers={self.layers}, bias={self.bias}, batch_first={self.batch_first}"
        given += f", bidirectional={self.two_way}" + f", dtype={self.dtype}" * (self.dtype != "torch.float32")
        return given + f", heads={self.heads}" * (self.heads > 1)

    @property
    def states(self) -> int:
        return self.layers * (1 + self.two_way)

    @property
    def numbers(self) -> str:
        """The end of a call of `r`."""
        return f", dtype={self.dtype}" * (self.dtype != "torch.float32")

    def shape(self, T: int, B: int, features: int | None = None) -> str:
        sizes = (B, T) if self.batch_first else (T, B)
        return ", ".join(map(str, (*sizes, self.I if features is None else features)))


Statement = Callable[[random.Random, Layer], str]


def seed_in(numbers: random.Random) -> int:
    """A seed for `r`."""
    return numbers.randrange(99)


def x_for(n: random.Random, layer: Layer, T: int, B: int, grad: str = "") -> str:
    """An input of T steps and B rows."""
    text = f"r({seed_in(n)}, {layer.shape(T, B)}{layer.numbers}{grad})"
    if not grad and n.random() < 0.2:
        first, second, _ = layer.shape(T, B).split(", ")
        return f"r({seed_in(n)}, {layer.I}, {second}, {first}{layer.numbers}).permute(2, 1, 0)"
    return text


def hx_for(n: random.Random, layer: Layer, B: int) -> str:
    """A state of B rows as a second argument, or none."""
    return n.choice(["", f", r({seed_in(n)}, {layer.states}, {B}, {layer.H}{layer.numbers})"])


def arguments_for(n: random.Random, layer: Layer, grad: str = "") -> str:
    """The arguments of a correct call."""
    T, B = n.randint(1, 6), n.randint(1, 4)
    if not grad and n.random() < 0.15:
        hx = n.choice(["", f", r({seed_in(n)}, {layer.states}, {layer.H}{layer.numbers})"])
        return f"r({seed_in(n)}, {T}, {layer.I}{layer.numbers}){hx}"
    if not grad and n.random() < 0.2:
        lengths = [n.randint(1, T) for _ in range(B)]
        rows = f"r({seed_in(n)}, {layer.shape(max(lengths), B)}{layer.numbers})"
        packed = f"pack_padded_sequence({rows}, torch.tensor({lengths}), {layer.batch_first}, enforce_sorted=False)"
        return packed + hx_for(n, layer, B)
    return x_for(n, layer, T, B, grad) + hx_for(n, layer, B)
