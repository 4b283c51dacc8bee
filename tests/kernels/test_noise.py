"""The masks of dropout and zoneout: frequencies, independence, and extreme probabilities."""

import pytest
import torch

from grucore.kernels import noise


def test_masks_are_fair_and_independent():
    """Over 400,000 elements each: frequencies, and correlations between steps, rows, units, streams and seeds."""
    shape, p = (400, 1000), 0.3
    masks = [
        noise.keep_mask(torch.tensor(seed), stream, step, shape, p).float() - (1 - p)
        for seed, stream, step in ((5, 0, 0), (5, 0, 1), (5, 1, 0), (6, 0, 0), (2**31 - 1, 0, 0))
    ]
    bound = 5 * (p * (1 - p) / 400_000) ** 0.5  # five standard errors; 2.2 measured
    assert all(mask.mean().abs() < bound for mask in masks)
    pairs = [(a, b) for i, a in enumerate(masks) for b in masks[:i]]
    first = masks[0]
    pairs += [(first[1:], first[:-1]), (first[:, 1:], first[:, :-1]), (first, first.t().reshape(shape))]
    for a, b in pairs:
        assert (a * b).mean().abs() < 5 * p * (1 - p) / 400_000**0.5


@pytest.mark.parametrize("p, kept", [(0.0, 1.0), (1.0, 0.0)])
def test_certain_masks(p, kept):
    assert (noise.keep_mask(torch.tensor(3), 0, 0, (50, 50), p) == kept).all()
