"""Packs a batch with lengths, masks or resets: an index of the non-padding steps of every row.

Resets split the non-padding steps of a row into independent segments, each with its own initial state. All segments of
a batch, sorted by length, form a packed sequence: step k holds the k-th step of every segment that is still active. The
recurrence then needs no masks, and padding costs nothing.

The mask and resets are read on the host, so this serves only CPU tensors.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from . import State, Steps


class Ends(NamedTuple):
    """How R segments begin and end in a batch of B rows, in the direction of travel."""

    row: Tensor  # (R,) the batch row of each segment
    after_reset: Tensor  # (R,) bool, whether the segment begins after a reset
    ended: Tensor  # (E,) batch rows with at least one non-padding step
    last_segment: Tensor  # (E,) the last segment of each of those rows


class Packing(NamedTuple):
    """R segments with N steps in total, of a (T, B) batch, longest first. Flat positions are t * B + b."""

    position: Tensor  # (N,) flat position of each packed step
    sizes: list[int]  # active segments per packed step, non-increasing
    ends: Ends
    last_step: Tensor  # (E,) the packed step at which each row ends


def pack(flags: Steps, reverse: bool) -> Packing | None:
    """The packing of a batch with a mask or resets, None without."""
    real, start = flags
    given = real if real is not None else start
    if given is None:
        return None
    steps, batch = given.shape
    real = torch.ones_like(given) if real is None else real
    cut_count = torch.zeros_like(given, dtype=torch.long) if start is None else start.long().cumsum(0)
    if reverse:
        real, cut_count = real.flip(0), cut_count.flip(0)

    # Non-padding steps row by row; a segment begins where the row or its number of resets changes.
    row, step = real.t().nonzero(as_tuple=True)
    cut = cut_count[step, row]
    entry = cut_count[:1].sum(0) * int(reverse)  # the number of resets before each row is entered
    begins = torch.ones_like(row, dtype=torch.bool)
    begins[1:] = (row[1:] != row[:-1]) | (cut[1:] != cut[:-1])
    segment = begins.long().cumsum(0) - 1
    first = begins.nonzero().squeeze(1)
    rank = torch.arange(len(row), device=row.device) - first[segment]  # the index of each step in its segment

    lengths = torch.bincount(segment)
    order = torch.argsort(lengths, descending=True, stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    longest = int(lengths.max()) if len(lengths) else 0
    running = torch.bincount(lengths, minlength=longest + 1).flip(0).cumsum(0).flip(0)[1:]  # segments longer than k
    offset = running.cumsum(0) - running
    packed = offset[rank] + place[segment]  # the packed position of each step

    position = torch.empty_like(packed)
    position[packed] = (steps - 1 - step if reverse else step) * batch + row

    ends = torch.ones_like(row, dtype=torch.bool)  # the last step of each batch row
    ends[:-1] = row[1:] != row[:-1]
    return Packing(
        position=position,
        sizes=running.tolist(),
        ends=Ends(
            row=row[first][order],
            after_reset=(cut != entry[row])[first][order],
            ended=row[ends],
            last_segment=place[segment[ends]],
        ),
        last_step=packed[ends],
    )


def first_states(state: State, ends: Ends, d: int) -> Tensor:
    """The initial state of each segment of a direction, (R, H)."""
    h0 = state.h0[d, ends.row]
    if state.h_reset is None:
        return h0
    return torch.where(ends.after_reset.unsqueeze(1), state.h_reset[d, ends.row], h0)


def gradients_of_last_states(dh_n: Tensor, ends: Ends) -> Tensor:
    """The gradient of each segment's last state, (R, H), from dh_n (B, H) of a direction."""
    d_last = dh_n.new_zeros(len(ends.row), dh_n.shape[1])
    d_last[ends.last_segment] = dh_n[ends.ended]
    return d_last


def gradients_of_first_states(
    d_first: Tensor,  # (R, H), of each segment's initial state
    dh_n: Tensor | None,  # (B, H): the final state of a row of padding is its initial state
    state: State,
    ends: Ends,
) -> tuple[Tensor, Tensor | None]:
    """The gradients of h0 and h_reset, each (B, H), the latter None without h_reset."""
    B, H = state.h0.shape[1:]
    dh0 = d_first.new_zeros(B, H) if dh_n is None else dh_n.index_fill(0, ends.ended, 0)
    if state.h_reset is None:
        return dh0.index_add_(0, ends.row, d_first), None
    after_reset = ends.after_reset.unsqueeze(1)
    dh0.index_add_(0, ends.row, d_first.masked_fill(after_reset, 0))
    dh_reset = torch.zeros_like(dh0).index_add_(0, ends.row, d_first.masked_fill(~after_reset, 0))
    return dh0, dh_reset
