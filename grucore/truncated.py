"""Truncated backpropagation through time: runs a long batch in parts and detaches the state between them.

Source: Williams & Peng 1990, "An Efficient Gradient-Based Algorithm for On-Line Training of Recurrent Network
Trajectories"; parts do not overlap, so gradients reach back at most `steps` steps.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from grucore.errors import InputError, check_size, check_tensor
from grucore.module import GRU
from grucore.steps import Lengths, check_step_flag, checked_lengths


class Part(NamedTuple):
    """A part of a batch: which steps, their outputs, and the state after them."""

    steps: slice
    y: Tensor  # (steps, B, D*H), or (B, steps, D*H) if batch_first
    h_n: Tensor  # (K, B, H)


def truncated_bptt(
    model: GRU,
    input: Tensor,
    hx: Tensor | None = None,
    *,
    steps: int,
    lengths: Lengths | None = None,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
) -> Iterator[Part]:
    """Runs a batch `steps` steps at a time; the state is carried from part to part, the gradient is not.

    Call `backward()` before asking for the next part, so that only one part needs memory. The outputs are those of one
    call on the whole batch, unless weights change in between or dropout is random.

    Args:
        model: a unidirectional layer.
        input: shape (T, B, I), or (B, T, I) if the model is batch_first.
        hx: the initial state, shape (K, B, H). It receives a gradient from the first part, and from each later part
            with a reset to it. If hx was itself computed, pass `hx.detach()`, or call `backward(retain_graph=True)`.
        steps: the number of steps per part; the last part may have fewer.
        lengths: shape (B,), of the whole sequences.
        mask: shape (T, B) or (B, T), as `GRU.forward` takes it.
        reset: shape as mask, as `GRU.forward` takes it; resets go to hx in every part.
        reset_state: shape (K, B, H): the state that resets go to instead of hx, for a batch that itself continues an
            earlier one.

    Yields:
        `Part`: the slice of steps, y, and h_n.

    Raises:
        TypeError: steps that are not an integer, a model that is not a `grucore.GRU` or a `QuantizedGRU`.
        InputError: steps below 1, a bidirectional model, input that is not a batch, lengths out of range. These come
            from the call itself; what only `forward` checks comes with the first part.

    Example:
        >>> import torch
        >>> model = GRU(3, 4)
        >>> x, target = torch.randn(10, 2, 3), torch.randn(10, 2, 4)
        >>> for part in truncated_bptt(model, x, steps=4):
        ...     (part.y - target[part.steps]).square().mean().backward()
        >>> part.steps, part.h_n.shape
        (slice(8, 10, None), torch.Size([1, 2, 4]))
    """
    steps = check_size("steps", steps)
    if not hasattr(model, "learn_initial_state"):  # a compiled GRU has it, and no layer of torch.nn
        raise TypeError(f"model must be a grucore.GRU, got {type(model).__module__}.{type(model).__qualname__}")
    if model.bidirectional:
        raise InputError("truncated_bptt requires a unidirectional layer: backwards, no state is carried over")
    check_tensor("input", input)
    if input.dim() != 3:
        raise InputError(f"input must have 3 dimensions, got {input.dim()}: {tuple(input.shape)}")
    time = 1 if model.batch_first else 0
    total, batch = input.shape[time], input.shape[1 - time]
    for name, flag in (("mask", mask), ("reset", reset)):
        if flag is not None:
            check_step_flag(name, flag, **({"B": batch, "T": total} if model.batch_first else {"T": total, "B": batch}))
    if lengths is not None:
        lengths = checked_lengths(lengths, total, batch)
    if mask is not None and reset is not None and total:
        reset = _off_padding(reset, mask, time)
    first = hx if reset_state is None else reset_state
    if first is None and reset is not None:
        first = input.new_zeros(model.num_layers, batch, model.hidden_size)
        if model.learn_initial_state:
            first = model.initial_state.unsqueeze(1).expand(-1, batch, -1)

    def parts(hx: Tensor | None) -> Iterator[Part]:
        for begin in range(0, total, steps):
            part = slice(begin, min(begin + steps, total))
            flags = {name: _part(flag, time, part) for name, flag in (("mask", mask), ("reset", reset))}
            if reset_state is not None or reset is not None:
                flags["reset_state"] = first
            if lengths is not None:
                flags["lengths"] = (lengths - begin).clamp(0, part.stop - begin)
            x = input.narrow(time, begin, part.stop - begin)
            y, h_n = model(x, hx, **flags)
            yield Part(part, y, h_n)
            hx = h_n.detach()

    return parts(hx)


def _off_padding(reset: Tensor, mask: Tensor, time: int) -> Tensor:
    """Moves each reset at padding to its row's next non-padding step, which may be in a later part."""
    count = reset.cumsum(time)
    at_last = torch.where(mask, count, 0).cummax(time).values  # the resets up to the last non-padding step
    before = torch.cat(
        [torch.zeros_like(at_last.narrow(time, 0, 1)), at_last.narrow(time, 0, at_last.shape[time] - 1)], time
    )
    return mask & (count > before)


def _part(tensor: Tensor | None, dim: int, part: slice) -> Tensor | None:
    return None if tensor is None else tensor.narrow(dim, part.start, part.stop - part.start)
