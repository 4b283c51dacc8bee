"""The only place that decides which implementation runs a layer."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

BACKENDS = ("auto", "triton", "reference")


class Choice(NamedTuple):
    """The implementation that runs, "triton" or "reference", and why."""

    name: str
    reason: str


def check(backend: str) -> str:
    """`backend` itself where it is a known name.

    Raises:
        ValueError: it is not one of "auto", "triton", "reference".
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    return backend


def choose(backend: str, x: Tensor) -> Choice:
    """The implementation for input x under the user's `backend`.

    Raises:
        ValueError: the name is unknown.
        RuntimeError: it is "triton", which cannot run here.
    """
    check(backend)
    if backend == "triton":
        raise RuntimeError(
            f"backend='triton' needs the fused Triton kernels, which this version does not have; the input is on "
            f"{x.device}. Use backend='auto' or 'reference'."
        )
    reason = "asked for" if backend == "reference" else f"the implementation for {x.device.type} tensors"
    return Choice("reference", reason)
