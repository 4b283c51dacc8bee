"""Resets to another state than the one a batch begins with, as a batch of twice as many rows.

A row's steps before its first reset go from hx, those from there on from the other state: as two rows, each with its
steps marked real. Implementations that pass over steps that are not real do no more work than for one row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from grucore.kernels.reference import Gates
from grucore.sequence import Flags


def doubled(x: Tensor, hx: Tensor, reset_state: Tensor, per_step: Flags) -> tuple[Tensor, Tensor, Flags]:
    """x (T, 2B, I), hx (K, 2B, H) and flags of the rows before their first reset, then of those from it on."""
    real, start = per_step
    if start is None:
        raise ValueError("no step is a reset")
    anew = start.cumsum(0) > 0
    real = torch.ones_like(start) if real is None else real
    parts = Flags(torch.cat([real & ~anew, real & anew], 1), torch.cat([torch.zeros_like(start), start], 1))
    return torch.cat([x, x], 1), torch.cat([hx, reset_state.to(hx.dtype)], 1), parts


def merged(results: tuple[Any, ...], parts: Flags) -> tuple[Any, ...]:
    """y, h_n and whatever else `gru` returns for the rows that `doubled` made two of."""
    y, h_n, *others = results
    batch = y.shape[1] // 2

    def joined(tensor: Tensor, dim: int) -> Tensor:  # where one half is real the other is 0
        return tensor.narrow(dim, 0, batch) + tensor.narrow(dim, batch, batch)

    assert parts.real is not None
    later = parts.real[:, batch:].any(0).unsqueeze(-1)
    h_n = torch.where(later, h_n[:, batch:], h_n[:, :batch])
    others = [Gates(*(joined(g, 2) for g in each)) if isinstance(each, Gates) else joined(each, 2) for each in others]
    return (joined(y, 1), h_n, *others)
