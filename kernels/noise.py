"""Random masks that are functions of a seed and of where they apply, not of when they are drawn.

A bit depends on the seed, a stream, the step, the row and the unit alone: whoever needs it computes it, in any order
and as often as wanted, and nothing has to be kept. The mixing function is the 32-bit finaliser "lowbias32" (Chris
Wellons, 2018, https://nullprogram.com/blog/2018/07/31/), chained over those numbers.
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
    """A seed, () int64, from the device's generator, which torch.manual_seed sets; nothing waits for the device."""
    return torch.randint(2**31, (), device=device)


def seed_of(seed: Any, stream: int) -> Any:
    """What the masks of a stream begin from."""
    return _mixed(_mixed(seed) + stream)


def threshold(p: float) -> int:
    """Numbers of 32 bits below it are a False of `keep_mask`."""
    return round(p * 2**32)


def keep_mask(seed: Tensor, stream: int, step: int, shape: tuple[int, int], p: float) -> Tensor:
    """(B, H) bool, each element True with probability 1 - p.

    Args:
        seed: () int64.
        stream: what the mask is for; masks of two streams are independent.
        step: t.
        shape: B and H.
        p: the probability of False.
    """
    rows, units = (torch.arange(n, device=seed.device) for n in shape)
    at = _mixed(seed_of(seed, stream) + step)
    at = _mixed(at.unsqueeze(-1) + rows)  # (B,)
    at = _mixed(at.unsqueeze(-1) + units)  # (B, H)
    return at >= threshold(p)
