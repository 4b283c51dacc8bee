"""The error for arguments with a wrong size, shape or value, and the checks that layers share."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import torch


class InputError(ValueError, RuntimeError):
    """An argument has a wrong shape or value.

    torch.nn.GRU raises RuntimeError for some of these and ValueError for others; code that catches either still works.
    Wrong types raise TypeError, and an explicit backend that cannot run raises RuntimeError.
    """


def differ(sizes: Sequence[Any], expected: Sequence[Any]) -> bool:
    """Whether sizes differ from those expected; always False in torch.jit.trace, where sizes stay open."""
    return not torch.jit.is_tracing() and tuple(sizes) != tuple(expected)


def check_size(name: str, size: Any, least: int = 1) -> int:
    """A layer's size as an int; NumPy integers are accepted.

    Raises:
        TypeError: it is not an integer.
        InputError: it is below `least`.
    """
    if not isinstance(size, numbers.Integral) or isinstance(size, bool):
        raise TypeError(f"{name} should be of type int, got: {type(size).__name__}")
    if size < least:
        raise InputError(f"{name} must be {'greater than zero' if least == 1 else f'at least {least}'}, got {size}")
    return int(size)


def check_flag(name: str, flag: Any) -> bool:
    """Returns a flag that is a bool.

    Raises:
        TypeError: it is anything else, such as the string "no", which Python takes for true.
    """
    if not isinstance(flag, bool):
        kind = type(flag).__name__
        raise TypeError(f"{name} should be of type bool, got: {'numpy.bool' if kind == 'bool' else kind}")
    return flag


def check_probability(name: str, p: Any, of: str = "an element being zeroed") -> float:
    """A probability as a float.

    Args:
        name: the name of the argument.
        p: a number from 0 to 1.
        of: the event, for the message.

    Raises:
        InputError: it is anything else.
    """
    if isinstance(p, bool) or not isinstance(p, numbers.Real) or not 0 <= float(p) <= 1:
        raise InputError(f"{name} should be a number in range [0, 1] representing the probability of {of}, got {p!r}")
    return float(p)


def check_tensor(name: str, tensor: Any) -> None:
    """Raises a TypeError for anything but a tensor."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")
