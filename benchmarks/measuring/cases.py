"""The cases that are measured, each a layer on a batch, and their suites except the grid (`grid.py`)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Words of the IMDB training reviews, split at spaces: percentiles 0.5, 5, 10, ..., 95 and 99. Their mean is 234.
IMDB_LENGTHS = (37, 64, 91, 110, 120, 127, 134, 142, 151, 162, 174, 188, 206, 227, 252, 284, 325, 376, 458, 598, 913)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Case(NamedTuple):
    """One layer or stack on one batch."""

    T: int
    B: int
    I: int  # noqa: E741
    H: int
    layers: int = 1
    bidirectional: bool = False
    lengths: str = "full"  # every row T long; "uniform" from 1 to T; "imdb": like IMDB's reviews, truncated at T
    dtype: str = "float32"

    def row_lengths(self) -> Tensor | None:
        """Draws the rows' lengths, (B,), or None if all are T."""
        if self.lengths == "full":
            return None
        generator = torch.Generator().manual_seed(0)
        if self.lengths == "uniform":
            return torch.randint(1, self.T + 1, (self.B,), generator=generator)
        drawn = torch.rand(self.B, generator=generator) * (len(IMDB_LENGTHS) - 1)
        known, low = torch.tensor(IMDB_LENGTHS, dtype=torch.float32), drawn.long()
        return known[low].lerp(known[low + 1], drawn - low).long().clamp(max=self.T)


SMOKE = [Case(5, 2, 8, 16), Case(5, 3, 8, 16, lengths="uniform")]
CPU_QUICK = [
    Case(250, 64, 128, 256),
    Case(100, 1, 128, 256),
    Case(250, 16, 64, 128),
    Case(100, 32, 512, 512),
    Case(500, 128, 128, 128),
    Case(1000, 1, 16, 16),
    Case(50, 256, 64, 64),
    Case(100, 16, 128, 128, layers=2, bidirectional=True),
    Case(250, 64, 128, 256, lengths="uniform"),
    Case(250, 16, 64, 128, lengths="uniform"),
    Case(900, 16, 128, 128, lengths="imdb"),
]
GPU_QUICK = [
    *(Case(512, B, H, H, dtype="bfloat16") for B, H in itertools.product((16, 64), (64, 128, 256, 512, 1024))),
    *(Case(512, 64, H, H) for H in (64, 256, 1024)),
    Case(512, 256, 512, 512, dtype="bfloat16"),
    Case(1024, 16, 768, 768, dtype="float16"),
    Case(512, 64, 256, 256, layers=2, bidirectional=True, dtype="bfloat16"),
    Case(900, 64, 128, 256, lengths="imdb", dtype="bfloat16"),
]


def gpu_full() -> Iterator[Case]:
    """Yields the whole grid: I = H, all dtypes; and long sequences, lengths, stacks."""
    for dtype, T, B, H in itertools.product(DTYPES, (128, 512, 2048), (1, 16, 64, 256), (64, 128, 256, 512, 1024)):
        yield Case(T, B, H, H, dtype=dtype)
    for dtype, H in itertools.product(("bfloat16", "float32"), (128, 512)):
        yield Case(65_536, 4, H, H, dtype=dtype)
        yield Case(900, 64, H, H, lengths="imdb", dtype=dtype)
        yield Case(512, 64, H, H, layers=2, bidirectional=True, dtype=dtype)


def suite(name: str, device: str) -> list[tuple[str, Case]]:
    """Returns (mode, case) of a suite; the modes are `benchmarks.results.Row`'s, but "epoch"."""
    cases = {
        ("smoke", "cpu"): SMOKE,
        ("smoke", "cuda"): SMOKE,
        ("quick", "cpu"): CPU_QUICK,
        ("quick", "cuda"): GPU_QUICK,
        ("full", "cpu"): CPU_QUICK,
        ("full", "cuda"): list(gpu_full()),
    }[name, device]
    measured = [(mode, case) for mode, case in itertools.product(("inference", "training"), cases)]
    one = [case._replace(T=1, lengths="full") for case in cases if case.lengths == "full" and not case.bidirectional]
    measured += [("step", case) for case in dict.fromkeys(one)]
    if name != "smoke":
        measured += [("first", cases[0]._replace(T=128)), ("memory", cases[0]._replace(T=1024))]
    return measured
