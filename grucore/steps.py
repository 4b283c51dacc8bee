"""What the user says of a batch of sequences (lengths, mask, reset, PackedSequence) as `Steps`, and back.

Making them never waits for a device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from grucore.compat import transformed
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
        device: where they are wanted.
        lengths: shape (B,), integers from 0 to T, any device; the values are checked where they lie on the CPU.
        mask: shape (T, B), bool, True for a real step.
        reset: shape (T, B), bool, True where the state goes back to the initial state before the step.

    Raises:
        InputError: a wrong shape, a length out of range, or both lengths and mask.
        TypeError: lengths that are not integers, or a mask or reset that is not bool.
    """
    if lengths is not None and mask is not None:
        raise InputError("give lengths or mask, not both: they say the same thing")
    real = start = None
    if lengths is not None:
        lengths = _checked_lengths(lengths, T, B)
        real = torch.arange(T, device=device).unsqueeze(1) < lengths.to(device, non_blocking=True)
    if mask is not None:
        check_step_flag("mask", mask, T=T, B=B)
        real = mask.to(device, non_blocking=True)
    if reset is not None:
        check_step_flag("reset", reset, T=T, B=B)
        start = reset.to(device, non_blocking=True)
    return Steps(real, start)


def as_lengths(lengths: Lengths | int) -> Tensor:
    """Lengths as a tensor of integers where they are: a list's lie on the CPU, whatever torch.set_default_device says.

    Raises:
        TypeError: they are not integers.
    """
    if not isinstance(lengths, Tensor):
        try:
            tensor = torch.as_tensor(lengths, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"lengths must be integers, a tensor (B,) or a list, got {lengths!r}") from error
        lengths = tensor.long() if tensor.numel() == 0 else tensor  # an empty list becomes float
    if lengths.dtype.is_floating_point or lengths.dtype.is_complex or lengths.dtype is torch.bool:
        raise TypeError(f"lengths must be integers, got {lengths.dtype}")
    return lengths


def _checked_lengths(lengths: Lengths, T: int, B: int) -> Tensor:
    lengths = as_lengths(lengths)
    if differ(lengths.shape, (B,)):
        raise InputError(f"lengths must have shape (B,) = ({B},), got {tuple(lengths.shape)}")
    # On a device the values stay unread: reading them would make the host wait. Under torch.compile and torch.vmap
    # there are none, and torch.jit.trace would write down what it read as a constant.
    readable = lengths.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.jit.is_tracing()
    if readable and B and not transformed():
        shortest, longest = int(lengths.min()), int(lengths.max())
        if shortest < 0 or longest > T:
            raise InputError(f"lengths must be between 0 and T = {T}, got {shortest if shortest < 0 else longest}")
    return lengths


def check_step_flag(name: str, flag: Tensor, **sizes: int) -> None:
    """Whether a flag has a bool for each step: `sizes` are T and, in the order of the user's layout, B.

    Raises:
        InputError: a wrong shape.
        TypeError: it is not a bool tensor.
    """
    if not isinstance(flag, Tensor):
        raise TypeError(f"{name} must be a bool tensor, got {type(flag).__name__}: torch.as_tensor makes one")
    if flag.dtype is not torch.bool:
        raise TypeError(f"{name} must be a bool tensor, got {flag.dtype}")
    if differ(flag.shape, tuple(sizes.values())):
        layout, expected = ", ".join(sizes), ", ".join(map(str, sizes.values()))
        raise InputError(f"{name} must have a flag for each step, ({layout}) = ({expected}), got {tuple(flag.shape)}")


def unpack(packed: PackedSequence) -> tuple[Tensor, Tensor]:
    """A PackedSequence as padded x (T, B, I) and lengths (B,), rows in the packed (sorted) order."""
    return pad_packed_sequence(PackedSequence(packed.data, packed.batch_sizes))


def repack(y: Tensor, lengths: Tensor, like: PackedSequence) -> PackedSequence:
    """y (T, B, H) of the rows of `unpack(like)` as a PackedSequence laid out as `like`."""
    data = pack_padded_sequence(y, lengths).data
    return PackedSequence(data, like.batch_sizes, like.sorted_indices, like.unsorted_indices)
