"""A layer of n heads as a layer of n times as many recurrences, and back; all by operators that PyTorch differentiates.

W_hh is block-diagonal: unit j belongs to head j // (H/n), whose gates see the units of that head alone. So each head is
a GRU of H/n units on the same x, and the heads' outputs stand side by side, as those of two directions do. W_ih and
both biases are laid out as without heads, gates first; W_hh is (n, 3H/n, H/n), one block after the other.

Source: Pöppel et al. 2024, FlashRNN (arXiv:2412.07752); Beck et al. 2024, xLSTM (arXiv:2405.04517).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def of_heads(groups: Sequence[Sequence[Tensor]], heads: int) -> list[list[Tensor]]:
    """Each group (w_ih, w_hh, ...) of a layer and direction as the groups of its heads; also a pair of gains."""
    return [list(head) for group in groups for head in zip(*(_parts(w, heads) for w in group), strict=True)]


def _parts(w: Tensor, heads: int) -> Sequence[Tensor]:
    """Of W_hh (n, 3H/n, H/n) the blocks; of any other (3H, ...) the rows of each head, (3H/n, ...), gates first."""
    if w.dim() == 3:
        return w.unbind()
    return w.unflatten(0, (3, heads, w.shape[0] // (3 * heads))).transpose(0, 1).flatten(1, 2).unbind()


def states_of_heads(h: Tensor, heads: int) -> Tensor:
    """States (D, B, H) as those of the heads, (D*n, B, H/n)."""
    return h.unflatten(2, (heads, h.shape[2] // heads)).permute(0, 2, 1, 3).flatten(0, 1)


def joined(h: Tensor, heads: int) -> Tensor:
    """States or gates of heads, (D*n, ..., H/n), as those of the layer, (D, ..., H)."""
    return h.unflatten(0, (h.shape[0] // heads, heads)).movedim(1, -2).flatten(-2)


def block_diagonal(w_hh: Tensor) -> Tensor:
    """W_hh (n, 3H/n, H/n) as the matrix (3H, H) of a layer without heads that is equal."""
    heads, _, units = w_hh.shape
    dense = w_hh.new_zeros(3, heads, units, heads, units)
    dense.diagonal(dim1=1, dim2=3).copy_(w_hh.unflatten(1, (3, units)).permute(1, 2, 3, 0))
    return dense.flatten(3).flatten(0, 2)
