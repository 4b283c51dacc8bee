"""Converts lengths, masks, resets and PackedSequences to `Steps`, and back, without host-device synchronisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from grucore.compat import has_values, in_make_fx, transformed
from grucore.errors import InputError, differ
from grucore.kernels import Steps

Lengths = Tensor | Sequence[int]  # (B,)


def steps_of(
    T: int,
    B: int,
    device: torch.device,
    lengths: Lengths | None = None,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
) -> Steps:
    """The steps of a padded batch, on the device.

    Args:
        T: the number of steps.
        B: the number of rows.
        device: the device of the result.
        lengths: shape (B,), integers from 0 to T, any device; the values are checked if they are on the CPU.
        mask: shape (T, B), bool, False at padding.
        reset: shape (T, B), bool, True where the state goes back to the initial state before the step.

    Raises:
        InputError: a wrong shape, a length out of range, or both lengths and mask.
        TypeError: lengths that are not integers, or a mask or reset that is not bool.
    """
    if lengths is not None and mask is not None:
        raise InputError("give lengths or mask, not both")
    real = start = None
    if lengths is not None:
        lengths = checked_lengths(lengths, T, B)
        real = torch.arange(T, device=device).unsqueeze(1) < lengths.to(device, non_blocking=True)
    if mask is not None:
        check_step_flag("mask", mask, T=T, B=B)
        real = mask.to(device, non_blocking=True)
    if reset is not None:
        check_step_flag("reset", reset, T=T, B=B)
        start = reset.to(device, non_blocking=True)
    return Steps(real, start)


def as_lengths(lengths: Lengths | int) -> Tensor:
    """Lengths as a tensor of int64, on their own device; a list becomes a CPU tensor, whatever the default device.

    Raises:
        TypeError: they are not integers.
    """
    if not isinstance(lengths, Tensor):
        try:
            tensor = torch.as_tensor(lengths, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"lengths must be integers, a tensor (B,) or a list, got {lengths!r}") from error
        lengths = tensor if tensor.numel() else tensor.long()  # an empty list becomes float
    if lengths.dtype.is_floating_point or lengths.dtype.is_complex or lengths.dtype is torch.bool:
        raise TypeError(f"lengths must be integers, got {lengths.dtype}")
    return lengths.long()  # a narrow dtype would wrap, and an unsigned one has no minimum


def checked_lengths(lengths: Lengths, T: int, B: int) -> Tensor:
    """Lengths as int64 (B,), on their own device; the values are checked if they are on the CPU.

    Raises:
        InputError: a wrong shape, or a length out of range.
        TypeError: they are not integers.
    """
    lengths = as_lengths(lengths)
    if differ(lengths.shape, (B,)):
        raise InputError(f"lengths must have shape (B,) = ({B},), got {tuple(lengths.shape)}")
    # Reading values on another device would synchronise with it. Under torch.compile and torch.vmap there are none, and
    # torch.jit.trace would record them as constants.
    readable = lengths.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.jit.is_tracing()
    if readable and B and has_values(lengths) and not (transformed() or in_make_fx()):
        shortest, longest = int(lengths.min()), int(lengths.max())
        if shortest < 0 or longest > T:
            raise InputError(f"lengths must be between 0 and T = {T}, got {shortest if shortest < 0 else longest}")
    return lengths


def check_step_flag(name: str, flag: Tensor, **sizes: int) -> None:
    """Raises unless a mask or reset has a bool for each step; `sizes` are T and B in the order of the user's layout.

    Raises:
        InputError: a wrong shape.
        TypeError: it is not a bool tensor.
    """
    if not isinstance(flag, Tensor):
        raise TypeError(f"{name} must be a bool tensor, got {type(flag).__name__}; convert it with torch.as_tensor")
    if flag.dtype is not torch.bool:
        raise TypeError(f"{name} must be a bool tensor, got {flag.dtype}")
    if differ(flag.shape, tuple(sizes.values())):
        layout, expected = ", ".join(sizes), ", ".join(map(str, sizes.values()))
        raise InputError(f"{name} must have shape ({layout}) = ({expected}), got {tuple(flag.shape)}")


def unpack(packed: PackedSequence) -> tuple[Tensor, Tensor]:
    """Pads a PackedSequence: x (T, B, I) and lengths (B,), with the rows in packed (sorted) order."""
    return pad_packed_sequence(PackedSequence(packed.data, packed.batch_sizes))


def repack(y: Tensor, lengths: Tensor, like: PackedSequence) -> PackedSequence:
    """Packs y (T, B, H), whose rows are in the order of `unpack(like)`, in the layout of `like`."""
    data = pack_padded_sequence(y, lengths).data
    return PackedSequence(data, like.batch_sizes, like.sorted_indices, like.unsorted_indices)
