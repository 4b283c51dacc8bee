"""The only place that decides which implementation runs a layer."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import NamedTuple

import torch

BACKENDS = ("auto", "triton", "reference")

# The largest hidden size whose recurrent weights stay on one multiprocessor, by bytes of an element.
MAX_FUSED_HIDDEN_SIZE = {2: 128, 4: 64}


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


def choose(backend: str, device: torch.device, dtype: torch.dtype, hidden_size: int, reset_after: bool) -> Choice:
    """The implementation for tensors of a device and dtype under the user's `backend`.

    Raises:
        ValueError: the name is unknown.
        RuntimeError: it is "triton", and that cannot run here.
    """
    check(backend)
    if backend == "reference":
        return Choice("reference", "asked for")
    obstacle = _obstacle_to_triton(device, dtype, hidden_size, reset_after)
    if backend == "triton":
        if obstacle:
            raise RuntimeError(f"backend='triton' cannot run: {obstacle}. backend='auto' runs what can")
        return Choice("triton", "asked for")
    if device.type != "cuda":
        return Choice("reference", f"the implementation for {device.type} tensors")
    return Choice("reference", obstacle) if obstacle else Choice("triton", "the implementation for cuda tensors")


def _obstacle_to_triton(device: torch.device, dtype: torch.dtype, hidden_size: int, reset_after: bool) -> str | None:
    if find_spec("triton") is None:
        return "Triton is not installed"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the fused kernels need a CUDA device, and the tensors are on {device}"
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"the fused kernels take float16, bfloat16 and float32, and the dtype is {dtype}"
    if not reset_after:
        return "the fused kernels have no reset_after=False"
    largest = MAX_FUSED_HIDDEN_SIZE[dtype.itemsize]
    if hidden_size > largest:
        return f"the fused kernels hold up to {largest} hidden units in {dtype}, and hidden_size is {hidden_size}"
    return None
