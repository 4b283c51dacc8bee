"""Keeps packed weights for many calls, for as long as the caller asks.

This module keeps the packed form of a group of weights together with PyTorch's version counter of each tensor: after an
in-place write, as by `load_state_dict`, the next call packs again. Fused optimizers do not raise the counter, so a step
of any optimizer counts as well. Weights are found by address. A write through `.data` or NumPy goes unnoticed.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook


class _Held:
    """A group of weights, kept alive, and their packed form."""

    def __init__(self, group: Sequence[Tensor]):
        self.weights = [w.detach() for w in group]  # they share their version with the parameters
        self.holders = 0
        self.made: tuple[object, Tensor | None] = None, None  # of which versions and form, and what; replaced as one


HELD: dict[int, _Held] = {}  # by the address of w_ih
_LOCK = threading.Lock()  # of the dictionary and the numbers of holders
_optimizer_steps = 0


@functools.cache
def _count_optimizer_steps() -> None:
    """Counts the steps of all optimizers from now on."""

    def count(*_: Any) -> None:
        global _optimizer_steps
        _optimizer_steps += 1

    register_optimizer_step_post_hook(count)


class Hold(AbstractContextManager[None]):
    """A context that keeps the packed form of each group (w_ih, w_hh) or (w_ih, w_hh, b_ih, b_hh).

    It is not a generator: Python would close one that is dropped, which ends the context, or fails as the program ends.
    """

    def __init__(self, groups: Sequence[Sequence[Tensor]]):
        # A write in inference mode, or by a process that shares the memory, goes uncounted.
        self.groups = [group for group in groups if not any(w.is_inference() or w.is_shared() for w in group)]
        self.addresses: list[list[int]] = []  # of each time that it was entered

    def __enter__(self) -> None:
        _count_optimizer_steps()
        with _LOCK:
            self.addresses.append([group[0].data_ptr() for group in self.groups])
            for address, group in zip(self.addresses[-1], self.groups, strict=True):
                HELD.setdefault(address, _Held(group)).holders += 1

    def __exit__(self, *_: object) -> None:
        with _LOCK:
            for address in self.addresses.pop():
                HELD[address].holders -= 1
                if not HELD[address].holders:
                    del HELD[address]


def packed(group: Sequence[Tensor | None], call: bytes, library: ctypes.CDLL, reset_after: bool) -> Tensor | None:
    """The up-to-date packed form of a call's weights, or None if it is not kept."""
    w_ih = group[0]
    held = None if w_ih is None else HELD.get(w_ih.data_ptr())
    given = [w for w in group if w is not None]
    if held is None or [(w.data_ptr(), w.shape, w.dtype) for w in given] != [
        (w.data_ptr(), w.shape, w.dtype) for w in held.weights
    ]:
        return None
    of = (reset_after, _optimizer_steps, *(w._version for w in held.weights))
    made_of, buffer = held.made
    if made_of != of or buffer is None:  # another thread may read the former one, or make the same
        buffer = torch.empty(library.gru_packed_bytes(call), dtype=torch.uint8, device="cpu")
        library.gru_pack(call, buffer.data_ptr())
        held.made = of, buffer
    return buffer
