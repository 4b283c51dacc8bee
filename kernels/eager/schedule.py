"""The rows of a flat (N, features) sequence that each step reads, and how steps are grouped into chunks of time.

A dense sequence (T, B) consists of T blocks of B rows. A packed one holds at step t only the active rows, longest
first, like torch.nn.utils.rnn.PackedSequence. Both are described by a list of block sizes; in reverse the blocks of a
dense sequence are visited from the end. Block sizes never increase in the direction of travel.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Target rows per chunk, chosen so that its intermediate results (about 8H floats per row) stay in cache: 1024 rows at
# H = 256 are 8 MiB.
CHUNK_ROWS = 1024


class Chunk(NamedTuple):
    """Consecutive steps with adjacent blocks."""

    first_step: int  # in the direction of travel
    sizes: list[int]  # rows of each step, in the direction of travel
    rows: slice  # of the flat sequence


class Schedule(NamedTuple):
    """The steps of a flat sequence in the direction of travel."""

    sizes: list[int]  # rows of each step
    reverse: bool = False  # the first step is the last block; needs blocks of one size

    def chunks(self, rows: int = CHUNK_ROWS) -> Iterator[Chunk]:
        """Splits the steps into chunks of at most `rows` rows (at least one step), in the direction of travel."""
        total, first, begin = sum(self.sizes), 0, 0
        while first < len(self.sizes):
            last, end = first + 1, begin + self.sizes[first]
            while last < len(self.sizes) and end + self.sizes[last] - begin <= rows:
                end += self.sizes[last]
                last += 1
            span = slice(total - end, total - begin) if self.reverse else slice(begin, end)
            yield Chunk(first, self.sizes[first:last], span)
            first, begin = last, end

    def blocks(self, chunk: Chunk, rows: Tensor) -> tuple[Tensor, ...]:
        """The chunk's rows of a tensor as views, one per step, in the direction of travel."""
        blocks = torch.split_with_sizes(rows, chunk.sizes)
        return blocks[::-1] if self.reverse else blocks

    def states_before(self, chunk: Chunk, y: Tensor, h0: Tensor) -> Tensor:
        """The state before each of the chunk's steps, in the layout of its rows, from all states y."""
        if chunk.first_step == 0:
            before = h0
        else:
            size = self.sizes[chunk.first_step - 1]
            begin = chunk.rows.stop if self.reverse else chunk.rows.start - size
            before = y[begin : begin + size]
        sources = (before, *self.blocks(chunk, y[chunk.rows])[:-1])
        states = [source[:size] for source, size in zip(sources, chunk.sizes, strict=True)]
        return torch.cat(states[::-1] if self.reverse else states)
