"""Schedules: the rows that a step reads, and chunks of time, which do not change results."""

import pytest
import torch
from contract import IMPLEMENTATIONS, Case, check

from grucore.kernels.eager.schedule import Schedule


@pytest.mark.parametrize("rows", [1, 7, 10_000])
@pytest.mark.parametrize("flags", ["", "gaps resets"], ids=["dense", "packed"])
def test_chunks_do_not_change_the_result(flags, rows, monkeypatch):
    """One step per chunk, a few, and all."""
    whole = Schedule.chunks
    monkeypatch.setattr(Schedule, "chunks", lambda self: whole(self, rows))
    check(IMPLEMENTATIONS["eager"], Case(T=23, two_way=True, flags=flags), torch.float64)


def test_chunks_of_a_packed_sequence():
    """At most 5 rows each, but at least one step."""
    chunks = [(chunk.first_step, chunk.sizes, chunk.rows) for chunk in Schedule([6, 3, 2, 1]).chunks(5)]
    assert chunks == [(0, [6], slice(0, 6)), (1, [3, 2], slice(6, 11)), (3, [1], slice(11, 12))]


def test_chunks_in_reverse():
    chunks = [(chunk.first_step, chunk.sizes, chunk.rows) for chunk in Schedule([2] * 3, reverse=True).chunks(4)]
    assert chunks == [(0, [2, 2], slice(2, 6)), (2, [2], slice(0, 2))]


@pytest.mark.parametrize("reverse, want", [(False, [[9, 0], [1, 2]]), (True, [[3, 9], [1, 2]])], ids=["on", "back"])
def test_states_before(reverse, want):
    """One row with initial state 9 and states 0 to 3, in chunks of two steps."""
    schedule, y, h0 = Schedule([1] * 4, reverse), torch.arange(4.0).unsqueeze(1), torch.full((1, 1), 9.0)
    assert [schedule.states_before(chunk, y, h0).flatten().tolist() for chunk in schedule.chunks(2)] == want
