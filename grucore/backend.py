"""The only place that decides which implementation runs a layer."""

from __future__ import annotations

import os
from importlib.metadata import version
from importlib.util import find_spec
from typing import NamedTuple

import torch

from grucore.kernels import plan

BACKENDS = ("auto", "triton", "reference")


OLDEST_TRITON = (3, 4)


def _no_triton(installed: str | None) -> str | None:
    """Why no kernel can run with the Triton version installed, None where one can."""
    if installed is None:
        return "Triton is not installed"
    if tuple(int(part) for part in installed.split(".")[:2]) < OLDEST_TRITON:
        oldest = ".".join(map(str, OLDEST_TRITON))
        return f"the fused kernels need Triton {oldest} or newer, and {installed} is installed"
    return None


# Known once, without importing Triton: torch.compile traces `choose`, and could not look for a package.
NO_TRITON = _no_triton(version("triton") if find_spec("triton") else None)


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


def resolve_precision(precision: str | None) -> str:
    """The precision of float32 products: what is asked for, or what torch's own switch for cuDNN's layers allows.

    Raises:
        ValueError: it is not "ieee", "tf32" or None.
    """
    if precision not in (None, "ieee", "tf32"):
        raise ValueError(f"precision must be 'ieee', 'tf32' or None, got {precision!r}")
    if precision is not None:
        return precision
    switch = getattr(
        torch.backends.cudnn, "rnn", None
    )  # torch 2.9 or newer: allow_tf32 raises where conv and rnn differ
    allowed = torch.backends.cudnn.allow_tf32 if switch is None else switch.fp32_precision == "tf32"
    return "tf32" if allowed else "ieee"


def choose(
    backend: str,
    device: torch.device,
    dtype: torch.dtype,
    hidden_size: int,
    reset_after: bool,
    precision: str,
    extras: str = "",
) -> Choice:
    """The implementation for tensors of a device and dtype under the user's `backend`.

    precision is "ieee" or "tf32"; extras names what the layer has beyond the equations (`kernels/variants.py`).

    Raises:
        ValueError: the name is unknown.
        RuntimeError: it is "triton", and that cannot run here.
    """
    check(backend)
    if backend == "reference":
        return Choice("reference", "asked for")
    if backend == "auto" and device.type != "cuda":
        return Choice("reference", f"the implementation for {device.type} tensors")
    obstacle = _obstacle_to_triton(device, dtype, hidden_size, reset_after, precision, extras)
    if backend == "triton":
        if obstacle:
            raise RuntimeError(f"backend='triton' cannot run: {obstacle}. backend='auto' runs what can")
        return Choice("triton", "asked for")
    return Choice("reference", obstacle) if obstacle else Choice("triton", "the implementation for cuda tensors")


def _obstacle_to_triton(
    device: torch.device, dtype: torch.dtype, hidden_size: int, reset_after: bool, precision: str, extras: str
) -> str | None:
    if NO_TRITON:
        return NO_TRITON
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the fused kernels need a CUDA device, and the tensors are on {device}"
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"the fused kernels take float16, bfloat16 and float32, and the dtype is {dtype}"
    if extras:
        return f"the fused kernels have no {extras}"
    if not reset_after:
        return "the fused kernels have no reset_after=False"
    try:
        for recurrence in ("forward", "backward"):
            plan.plan(recurrence, 1, hidden_size, 1, plan.kind(dtype, precision), plan.device(device))
    except ValueError as error:
        return str(error)
    return None
