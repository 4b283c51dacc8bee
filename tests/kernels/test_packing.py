"""Packing: the non-padding steps of every row as one sequence; test_contract.py tests the results."""

import pytest
import torch

from grucore.kernels import Steps
from grucore.kernels.packing import pack

# Two rows: one of steps 0, 2 and 3 with a reset before step 2, one of steps 1 and 2.
REAL = torch.tensor([[1, 0], [0, 1], [1, 1], [1, 0]], dtype=torch.bool)
START = torch.tensor([[0, 0], [0, 0], [1, 0], [0, 0]], dtype=torch.bool)


def test_a_packing_by_hand():
    """Segments, the longest first: steps 2 and 3 of row 0, 1 and 2 of row 1, 0 of row 0; positions are 2 t + b."""
    packing = pack(Steps(REAL, START), reverse=False)
    assert packing.sizes == [3, 2]
    assert packing.ends.row.tolist() == [0, 1, 0] and packing.ends.after_reset.tolist() == [True, False, False]
    assert packing.position.tolist() == [4, 3, 0, 6, 5]
    assert packing.ends.ended.tolist() == [0, 1]
    assert packing.ends.last_segment.tolist() == [0, 1] and packing.last_step.tolist() == [3, 4]


def test_a_packing_in_reverse_by_hand():
    """Row 0 is entered at step 3 and ends at step 0, which follows a reset."""
    packing = pack(Steps(REAL, START), reverse=True)
    assert packing.sizes == [3, 2]
    assert packing.ends.row.tolist() == [0, 1, 0] and packing.ends.after_reset.tolist() == [False, False, True]
    assert packing.position.tolist() == [6, 5, 0, 4, 3]
    assert packing.ends.last_segment.tolist() == [2, 1] and packing.last_step.tolist() == [2, 4]


@pytest.mark.parametrize("reverse", [False, True])
def test_real_steps_only(reverse):
    """Padding costs nothing: the packed sequence contains each non-padding step once."""
    real, cut = torch.rand(11, 5) < 0.6, torch.rand(11, 5) < 0.3
    packing = pack(Steps(real, cut), reverse)
    assert sorted(packing.position.tolist()) == real.flatten().nonzero().squeeze(1).tolist()
    assert packing.sizes == sorted(packing.sizes, reverse=True) and sum(packing.sizes) == int(real.sum())


def test_nothing_to_pack():
    assert pack(Steps(), reverse=False) is None
    packing = pack(Steps(torch.zeros(3, 2, dtype=torch.bool)), reverse=False)
    assert packing.sizes == [] and len(packing.position) == len(packing.ends.ended) == 0
