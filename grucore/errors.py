"""The error for arguments of a wrong size, shape or value, and the checks that layers share."""

import numbers


class InputError(ValueError, RuntimeError):
    """An argument whose shape or value does not fit.

    torch.nn.GRU raises RuntimeError for some of these and ValueError for others: code that catches either still does.
    """


def check_size(name: str, size: int) -> None:
    """A layer's size is a positive int.

    Raises:
        TypeError: it is no int.
        ValueError: it is below 1.
    """
    if not isinstance(size, int) or isinstance(size, bool):
        raise TypeError(f"{name} should be of type int, got: {type(size).__name__}")
    if size <= 0:
        raise ValueError(f"{name} must be greater than zero, got {size}")


def check_flag(name: str, flag: bool) -> None:
    """A flag is a bool.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(flag, bool):
        raise TypeError(f"{name} should be of type bool, got: {type(flag).__name__}")


def check_probability(name: str, p: float) -> None:
    """A probability is a number from 0 to 1.

    Raises:
        InputError: it is not.
    """
    if isinstance(p, bool) or not isinstance(p, numbers.Number) or not 0 <= p <= 1:
        raise InputError(
            f"{name} should be a number in range [0, 1] representing the probability of an element being zeroed, "
            f"got {p!r}"
        )
