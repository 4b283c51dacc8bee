"""Lengths, masks and resets as segments of rows, which the kernels run in parallel; see segments.cpp."""

from __future__ import annotations

import ctypes
import struct

import torch

from .. import Steps
from ..packing import Ends
from .library import LIBRARY

_PACK = struct.Struct("=11q").pack


class Segments:
    """The R segments of a batch in one direction of travel, longest first.

    Without resets a row has at most one segment, and the kernels read and write the states of the rows directly.
    Otherwise `ends` maps segments to rows.

    Raises:
        MemoryError: there is not enough memory for them.
    """

    def __init__(self, flags: Steps, reverse: bool):
        assert LIBRARY is not None
        real, start = (None if flag is None else flag.contiguous() for flag in flags)
        T, B = (start if real is None else real).shape  # type: ignore[union-attr]
        most = B if start is None else B + int(start.sum())
        index = torch.empty(T + B + most + T * B, dtype=torch.long, device="cpu")
        after_reset = torch.empty(0 if start is None else most, dtype=torch.bool, device="cpu")
        sizes = index.data_ptr()
        last, row, position = sizes + 8 * T, sizes + 8 * (T + B), sizes + 8 * (T + B + most)
        flags_at = (0 if flag is None else flag.data_ptr() for flag in (real, start))
        arguments = *flags_at, T, B, reverse, most, sizes, last, row, position, after_reset.data_ptr()
        if (steps := LIBRARY.gru_segments(_PACK(*arguments))) < 0:
            raise MemoryError(f"not enough memory for the segments of {T} x {B} steps")
        count = ctypes.c_int64.from_address(sizes).value if steps else 0  # all of them run at the first step
        self.fields = position, sizes, row if start is None else 0, steps, count  # in the order of GruCall
        self._index = index
        if start is not None:
            last_segment = index[T : T + B]
            ended = (last_segment >= 0).nonzero().squeeze(1)
            self.ends = Ends(index[T + B : T + B + count], after_reset[:count], ended, last_segment[ended])

    def __len__(self) -> int:
        return self.fields[-1]
