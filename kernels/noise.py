"""Counter-based random masks: each bit is a hash of (seed, stream, step, row, unit).

A bit can be recomputed anywhere, in any order and any number of times, so no mask has to be stored. The hash chains the
32-bit finaliser "lowbias32" (Chris Wellons, 2018, https://nullprogram.com/blog/2018/07/31/) over those numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def _mixed(x: Any) -> Any:
    """A bijection of 32-bit numbers, as int or held in int64; each bit of x changes about half of the result's."""
    x = x & 0xFFFFFFFF
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & 0xFFFFFFFF
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)


def new_seed(device: torch.device) -> Tensor:
    """A seed, () int64, from the device's generator, which torch.manual_seed sets; without host-device sync."""
    return torch.randint(2**31, (), device=device)


def seed_of(seed: Any, stream: int) -> Any:
    """The seed of a stream."""
    return _mixed(_mixed(seed) + stream)


def threshold(p: float) -> int:
    """The bound below which a 32-bit number means False in `keep_mask`."""
    return round(p * 2**32)


def keep_mask(seed: Tensor, stream: int, step: int, shape: tuple[int, int], p: float) -> Tensor:
    """(B, H) bool, each element True with probability 1 - p.

    Args:
        seed: () int64.
        stream: the purpose of the mask; masks of different streams are independent.
        step: t.
        shape: B and H.
        p: the probability of False.
    """
    rows, units = (torch.arange(n, device=seed.device) for n in shape)
    at = _mixed(seed_of(seed, stream) + step)
    at = _mixed(at + rows)  # (B,)
    at = _mixed(at.unsqueeze(-1) + units)  # (B, H)
    return at >= threshold(p)
