"""Which reviews make a batch, and how a batch is padded.

Training follows torchtext's BucketIterator: a permutation each epoch, cut into chunks of 100 batches, whose batches
are visited in random order. The published pipeline left `sort_within_batch` at its default, so that nothing was
bucketed and three quarters of each batch were padding (`bucketed=False`); sorted within its chunk, a batch holds
reviews of nearly one length (`bucketed=True`). Evaluation goes through all reviews by length.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice
from typing import NamedTuple

import numpy as np
import torch
from data import PADDING, Encoded
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Sampler


class Batch(NamedTuple):
    """B reviews, padded on the right to the longest. `weights` are 0 for a row that only fills a process's share."""

    tokens: Tensor  # (B, T) int64
    lengths: Tensor  # (B,) int64
    labels: Tensor  # (B,) int64
    weights: Tensor  # (B,) float32
    total: int  # reviews in the batch of all processes


class _Reviews(Dataset):
    def __init__(self, encoded: Encoded):
        self.encoded = encoded

    def __len__(self) -> int:
        return len(self.encoded.tokens)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.encoded.tokens[index], self.encoded.labels[index]


class TrainingBatches(Sampler[list[int]]):
    """Batches of one epoch, the same for the same seed and epoch.

    Set `epoch` before each pass, and `begin` to leave out the batches that an interrupted one has seen.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int, bucketed: bool):
        self.lengths, self.batch_size, self.seed, self.bucketed = lengths, batch_size, seed, bucketed
        self.epoch = self.begin = 0

    @property
    def count(self) -> int:
        """Batches of a whole epoch."""
        return -(-len(self.lengths) // self.batch_size)

    def __len__(self) -> int:
        return self.count - self.begin

    def __iter__(self) -> Iterator[list[int]]:
        return islice(self._epoch(), self.begin, None)

    def _epoch(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(len(self.lengths)).tolist()
        size = self.batch_size
        for begin in range(0, len(order), 100 * size):
            chunk = order[begin : begin + 100 * size]
            if self.bucketed:
                chunk.sort(key=self.lengths.__getitem__)
            batches = [chunk[i : i + size] for i in range(0, len(chunk), size)]
            for i in rng.permutation(len(batches)):
                yield batches[i]


class EndlessBatches(Sampler[list[int]]):
    """Epoch after epoch of training batches; set `begin` to leave out so many of the first."""

    def __init__(self, batches: TrainingBatches):
        self.batches, self.begin = batches, 0

    def __iter__(self) -> Iterator[list[int]]:
        epoch, self.batches.begin = divmod(self.begin, self.batches.count)
        for self.batches.epoch in count(epoch):
            yield from self.batches
            self.batches.begin = 0


class EvaluationBatches(Sampler[list[int]]):
    """All reviews from short to long, the longest of each batch first."""

    def __init__(self, lengths: list[int], batch_size: int):
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        self.batches = [order[i : i + batch_size][::-1] for i in range(0, len(order), batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


class _Share(Sampler[list[tuple[int, int]]]):
    """Each batch's rows of one process out of `world_size`, as (row, rows in the whole batch); row -1 only fills."""

    def __init__(self, batches: Sampler[list[int]], rank: int, world_size: int):
        self.batches, self.rank, self.world_size = batches, rank, world_size

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self.batches:
            share = batch[self.rank :: self.world_size]
            yield [(row, len(batch)) for row in share] or [(-1, len(batch))]


class _Indexed(_Reviews):
    def __getitem__(self, index: tuple[int, int]) -> tuple[Tensor, Tensor, float, int]:
        row, total = index
        return *super().__getitem__(max(row, 0)), float(row >= 0), total


def _collate(rows: list[tuple[Tensor, Tensor, float, int]]) -> Batch:
    tokens, labels, weights, totals = zip(*rows, strict=True)
    # A review without a single word would be a row without a step: give it one <pad>.
    tokens = [row if len(row) else row.new_tensor([PADDING]) for row in tokens]
    return Batch(
        pad_sequence(tokens, batch_first=True, padding_value=PADDING),
        torch.tensor([len(row) for row in tokens]),
        torch.stack(labels),
        torch.tensor(weights),
        totals[0],
    )


def loader(
    encoded: Encoded, batches: Sampler[list[int]], rank: int = 0, world_size: int = 1, workers: int = 0
) -> DataLoader:
    """The batches of one process out of `world_size`; together the processes see each batch once.

    With `workers`, batches are made ahead of time in other processes, in the same order.
    """
    return DataLoader(
        _Indexed(encoded),
        batch_sampler=_Share(batches, rank, world_size),
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context="forkserver" if workers else None,  # a fork after CUDA has started would hang
    )
