"""The flags, one byte per step and row, and the values derived from them."""

import torch

from grucore.kernels import Steps
from grucore.kernels.triton import flags


def test_spans_of_tiles():
    """Tiles of 2 rows: the second is empty, the third has one row."""
    real = torch.tensor([[0, 0, 0, 0, 1], [0, 1, 0, 0, 0], [1, 0, 0, 0, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)
    spans = flags.tile_spans(flags.step_flags(Steps(real), 1), 2)
    assert spans.tolist() == [[1, 3], [0, 0], [0, 3]]


def test_bits_by_hand():
    """One row of five steps, the third padding with a reset: step 3 begins from h_reset, and step 1 in reverse."""
    real = torch.tensor([[1], [1], [0], [1], [1]], dtype=torch.bool)
    start = torch.tensor([[0], [0], [1], [0], [0]], dtype=torch.bool)
    bits = flags.step_flags(Steps(real, start), 2).squeeze(1)
    assert (bits & 1).tolist() == [1, 1, 0, 1, 1]
    assert [flags.began_at(bits, d).nonzero().tolist() for d in (0, 1)] == [[[3]], [[1]]]
    restarts = [((bits >> flags.RESTARTS.value + d) & 1).nonzero().tolist() for d in (0, 1)]
    assert restarts == [[[2]], [[2]]]  # after the step before, padding or not
    assert flags.step_flags(Steps(), 2) is None


def test_states_by_hand():
    """The same row: h0 is 9, h_reset 7, the state after step t is t, and none after padding."""
    real = torch.tensor([[1], [1], [0], [1], [1]], dtype=torch.bool)
    start = torch.tensor([[0], [0], [1], [0], [0]], dtype=torch.bool)
    bits, y = flags.step_flags(Steps(real, start), 2), torch.tensor([0.0, 1, 0, 3, 4]).view(5, 1, 1)
    h0, h_reset = torch.full((1, 1), 9.0), torch.full((1, 1), 7.0)
    before = [
        flags.states_before(flags.real_before(bits, d), y, h0, h_reset, bits, d).flatten().tolist() for d in (0, 1)
    ]
    assert [[state for state, is_real in zip(states, real, strict=True) if is_real] for states in before] == [
        [9, 0, 7, 3],
        [1, 7, 4, 9],
    ]
    states = [t.expand(2, 1, 1) for t in (h0, h_reset)]
    assert flags.first_states(*states, bits).flatten().tolist() == [9, 9]
    bits = flags.step_flags(Steps(real, torch.ones_like(start)), 2)
    assert flags.first_states(*states, bits).flatten().tolist() == [7, 9]
