"""The segments from C++ equal those of `packing.py` in PyTorch, which is tested by hand."""

import ctypes

import pytest
import torch

from grucore.kernels import Steps
from grucore.kernels.native.library import LIBRARY, UNAVAILABLE
from grucore.kernels.packing import pack

pytestmark = pytest.mark.skipif(LIBRARY is None, reason=str(UNAVAILABLE))

T, B = 13, 6
LENGTHS = torch.arange(T).unsqueeze(1) < torch.tensor([T, 0, 4, 4, 1, 9])
REAL, START = torch.rand(T, B, generator=torch.manual_seed(0)) < 0.6, torch.rand(T, B) < 0.3
FLAGS = {
    "lengths": Steps(LENGTHS),
    "padding on the left": Steps(LENGTHS.flip(0)),
    "any mask": Steps(REAL),
    "resets": Steps(None, START),
    "resets everywhere": Steps(None, torch.ones(T, B, dtype=torch.bool)),
    "both": Steps(REAL, START),
    "all padding": Steps(torch.zeros(T, B, dtype=torch.bool), START),
    "no steps": Steps(REAL[:0]),
    "no rows": Steps(REAL[:, :0], START[:, :0]),
    "transposed": Steps(REAL.t().contiguous().t(), START.t().contiguous().t()),
}


def numbers(address, count):
    return list((ctypes.c_int64 * count).from_address(address))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_the_segments_are_those_of_packing(flags, reverse):
    """Segments of equal length may come in any order: each has its row, its beginning and its steps."""
    from grucore.kernels.native.segments import Segments

    made, expected = Segments(flags, reverse), pack(flags, reverse)
    position, sizes, row, steps, count = made.fields
    sizes = numbers(sizes, steps)
    assert (sizes, count) == (expected.sizes, len(expected.ends.row)) and len(made) == count
    positions = torch.tensor(numbers(position, sum(sizes)), dtype=torch.long)
    assert bool(row) == (flags.start is None)
    if flags.start is None:
        rows, begins = numbers(row, count), [False] * count
    else:
        rows, begins = made.ends.row.tolist(), made.ends.after_reset.tolist()
        ends = dict(zip(made.ends.ended.tolist(), made.ends.last_segment.tolist(), strict=True))
    ours = walks(positions, sizes, rows, begins)
    assert sorted(ours) == sorted(
        walks(expected.position, sizes, expected.ends.row.tolist(), expected.ends.after_reset.tolist())
    )
    if flags.start is not None:
        last = zip(expected.ends.ended.tolist(), expected.ends.last_segment.tolist(), strict=True)
        theirs = walks(expected.position, sizes, expected.ends.row.tolist(), expected.ends.after_reset.tolist())
        assert {b: ours[s] for b, s in ends.items()} == {b: theirs[s] for b, s in last}


def walks(positions, sizes, rows, begins):
    """(row, begins after a reset, positions) of each segment."""
    steps = positions.split(sizes)
    return [
        (row, begin, [int(step[s]) for step in steps if s < len(step)])
        for s, (row, begin) in enumerate(zip(rows, begins, strict=True))
    ]
