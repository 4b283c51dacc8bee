"""Integrated gradients: how far each token's embedding moved a model's score away from that of a blank review.

    contribution_t = x_t . (integral over a from 0 to 1 of d score(a x) / d(a x_t))

Source: Sundararajan et al. 2017 (arXiv:1703.01365), with the baseline 0. The contributions add up to
score(x) - score(0). A trained GRU saturates, so that its score turns over within a small part of the path, and a rule
with evenly spread points misses that. But what must add up on the whole path must do so on every piece of it: each
piece's error is known, and pieces are halved where it is large.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# Gauss-Lobatto on [0, 1]: five points, exact for polynomials of degree 7. Its first and last are the ends of the piece,
# whose scores say what its contributions must add up to.
POINTS = torch.tensor([0.0, (1 - (3 / 7) ** 0.5) / 2, 0.5, (1 + (3 / 7) ** 0.5) / 2, 1.0])
WEIGHTS = torch.tensor([1 / 20, 49 / 180, 16 / 45, 49 / 180, 1 / 20])

TOLERANCE = 0.02  # of the sum, in units of the score


class Attribution(NamedTuple):
    """Contributions and how far to trust them."""

    contributions: Tensor  # (T,) float32
    score: float  # of x
    baseline: float  # of zeros
    error: float  # the sum over all pieces of the path of what does not add up


class _Pieces(NamedTuple):
    """P pieces of the path."""

    ends: Tensor  # (P, 2)
    contributions: Tensor  # (P, T)
    scores: Tensor  # (P, 2), at the ends

    @property
    def errors(self) -> Tensor:
        return (self.contributions.sum(1) - (self.scores[:, 1] - self.scores[:, 0])).abs()


def integrated_gradients(
    score: Callable[[Tensor], Tensor], x: Tensor, tolerance: float = TOLERANCE, max_points: int = 1500
) -> Attribution:
    """The contribution of each token to score(x) - score(0).

    Args:
        score: maps embedded reviews (N, T, E) to scores (N,), one independent of the others.
        x: the embedded review, shape (T, E), float32.
        tolerance: halve pieces until `error` is no more than this ...
        max_points: ... or until the gradient has been taken at so many points.
    """
    edges = torch.linspace(0, 1, 9, device=x.device)
    pieces = _integrate(score, x, torch.stack([edges[:-1], edges[1:]], 1))
    points = pieces.ends.shape[0] * len(POINTS)
    while pieces.errors.sum() > tolerance and points < max_points:
        poor = pieces.errors > tolerance / len(pieces.ends)  # one at least, as the sum is above the tolerance
        begin, end = pieces.ends[poor].unbind(1)
        middle = (begin + end) / 2
        halves = torch.cat([torch.stack([begin, middle], 1), torch.stack([middle, end], 1)])
        points += len(halves) * len(POINTS)
        parts = zip(pieces, _integrate(score, x, halves), strict=True)
        pieces = _Pieces(*(torch.cat([old[~poor], new]) for old, new in parts))
    first, last = pieces.ends[:, 0].argmin(), pieces.ends[:, 1].argmax()
    return Attribution(
        pieces.contributions.sum(0),
        score=pieces.scores[last, 1].item(),
        baseline=pieces.scores[first, 0].item(),
        error=pieces.errors.sum().item(),
    )


def _integrate(score: Callable[[Tensor], Tensor], x: Tensor, ends: Tensor) -> _Pieces:
    """The integral over each piece, whose ends are (P, 2)."""
    begin, end = ends[:, :1], ends[:, 1:]
    places = begin + (end - begin) * POINTS.to(x)  # (P, 5)
    batch = max(1, 16_384 // len(x))  # of whole reviews, to bound the memory
    scores, slopes = [], []
    for some in places.flatten().split(batch):
        at = (some[:, None, None] * x).requires_grad_()
        value = score(at)
        (gradient,) = torch.autograd.grad(value.sum(), at)
        scores.append(value.detach())
        slopes.append((gradient * x).sum(2))  # d score / d a, by token
    by_point = torch.cat(slopes).view(*places.shape, len(x))  # (P, 5, T)
    contributions = (end - begin) * (WEIGHTS.to(x)[:, None] * by_point).sum(1)
    return _Pieces(ends, contributions, torch.cat(scores).view(places.shape)[:, [0, -1]])
