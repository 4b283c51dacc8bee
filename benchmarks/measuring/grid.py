"""The grid of shapes for CPUs, large enough that no shape is picked for its figure, and a short one of 15 minutes.

It has sizes that do not fill a vector (37, 77, 200, 33), one row and a thousand, ten steps and two thousand, weights
that fit in a cache and weights that do not, and stacks; each with rows of equal and, for several rows, of different
lengths.
"""

from __future__ import annotations

import itertools

from benchmarks.measuring.cases import Case

SHORT = [
    Case(250, 64, 128, 256),
    Case(100, 1, 128, 256),
    Case(100, 32, 512, 512),
    Case(333, 37, 77, 200),
    Case(200, 4, 1024, 1024),
    Case(100, 20, 33, 33),
    Case(10, 1, 16, 16),
    Case(100, 16, 128, 128, layers=2, bidirectional=True),
]
SHAPES = [
    *SHORT,
    Case(250, 16, 64, 128),
    Case(500, 128, 128, 128),
    Case(1000, 1, 16, 16),
    Case(50, 256, 64, 64),
    Case(64, 8, 40, 96),
    Case(400, 1, 80, 384),
    Case(100, 2, 64, 64),
    Case(50, 32, 300, 128),
    Case(1000, 8, 32, 64),
    Case(30, 1000, 16, 32),
    Case(20, 128, 256, 384),
    Case(2000, 4, 16, 48),
    Case(200, 32, 64, 128, bidirectional=True),
    Case(200, 32, 64, 128, layers=2),
]
IMDB = Case(900, 16, 128, 128, lengths="imdb")


def grid(short: bool = False) -> list[tuple[str, Case]]:
    """Returns (mode, case) of all cells."""
    shapes = SHORT if short else SHAPES
    uneven = [case._replace(lengths="uniform") for case in shapes if case.B > 1]
    cases = [*shapes, *(uneven[1::2] if short else uneven), IMDB]
    measured = list(itertools.product(("inference", "training"), cases))
    sizes = itertools.product((1, 16, 64) if short else (1, 7, 16, 32, 64), (16, 128, 256, 512))
    measured += [("step", Case(1, B, H, H)) for B, H in sizes if not short or H != 128]
    if short:
        measured.append(("step", Case(1, 32, 512, 512)))
    first = shapes[0]
    return [*measured, ("first", first._replace(T=128)), ("memory", first._replace(T=1024))]
