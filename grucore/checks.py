"""Checks that the tensors of a call agree in size, dtype and device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from grucore import compat
from grucore.errors import InputError, check_tensor, differ

# w_ih (3H, I), w_hh (3H, H), with n heads (n, 3H/n, H/n), and, unless there are no biases, b_ih and b_hh (3H,)
Group = Sequence[Tensor]
NAMES = ("w_ih", "w_hh", "b_ih", "b_hh")


def check_sequence(
    input: Tensor,
    hx: Tensor | None,
    reset_state: Tensor | None,
    weights: Sequence[Group],
    directions: int,
    heads: int,
) -> tuple[int, int, int]:
    """T, B and H of a time-major batch.

    Raises:
        InputError: a size does not match.
        TypeError: a dtype does not match.
    """
    check_tensor("input", input)
    if input.dim() != 3:
        raise InputError(f"input must have 3 dimensions (T, B, I), got {input.dim()}: {tuple(input.shape)}")
    hidden_size = check_groups(weights, directions, heads)
    steps, batch, input_size = input.shape
    for i, group in enumerate(weights):
        check_weights(group, input_size if i < directions else directions * hidden_size, hidden_size, heads)
    check_alike(input, hx, weights[0][0], reset_state)
    expected = (len(weights), batch, hidden_size)
    if hx is not None and differ(hx.shape, expected):
        raise InputError(
            f"Expected hidden size {expected}, got {list(hx.shape)}: "
            "hx is (num_layers * directions, batch, hidden_size)"
        )
    return steps, batch, hidden_size


def check_alike(input: Tensor, hx: Tensor | None, w_ih: Tensor, reset_state: Tensor | None = None) -> None:
    """Raises if the input or a state differs from the weights in dtype or device."""
    for name, tensor in (("input", input), ("hx", hx), ("reset_state", reset_state)):
        if tensor is None:
            continue
        check_tensor(name, tensor)
        differs = tensor.dtype != w_ih.dtype and (name == "input" or not tensor.is_floating_point())
        if differs and compat.autocast_dtype(w_ih, tensor) is None:
            advice = f"Convert it: {name}.to({w_ih.dtype})"
            if tensor.is_floating_point():
                advice += f", or convert the model: model.to({tensor.dtype})"
            raise InputError(f"{name} dtype ({tensor.dtype}) does not match weight dtype ({w_ih.dtype}). {advice}")
        if tensor.device != w_ih.device:
            raise InputError(
                f"{name} is on {tensor.device} and the weights are on {w_ih.device}. "
                f"Move it: {name}.to({str(w_ih.device)!r}), or move the model: model.to({str(tensor.device)!r})"
            )


def check_groups(weights: Sequence[Group], directions: int, heads: int) -> int:
    """Returns H; raises if weights are not groups of tensors, one per layer and direction."""
    if not isinstance(weights, Sequence):
        raise TypeError(f"weights must be a list of groups of tensors, got {type(weights).__name__}")
    if not weights or len(weights) % directions:
        raise InputError(f"weights must hold {directions} group(s) per layer, got {len(weights)} group(s)")
    for group in weights:
        if len(group) not in (2, 4):
            raise InputError(f"weights must be (w_ih, w_hh) or (w_ih, w_hh, b_ih, b_hh), got {len(group)} tensors")
        if len(group) != len(weights[0]):
            raise InputError(f"either all groups of weights have biases or none, got {[len(each) for each in weights]}")
        for name, w in zip(NAMES[: len(group)], group, strict=True):  # Dynamo of 2.8 takes strict=False for True
            check_tensor(name, w)
    shape = tuple(weights[0][1].shape)
    if len(shape) != (2 if heads == 1 else 3):
        expected = "(3H, H)" if heads == 1 else f"({heads}, 3H/{heads}, H/{heads})"
        raise InputError(f"w_hh must have shape {expected}, got {shape}")
    return heads * shape[-1]


def check_recordable(*tensors: Tensor) -> None:
    """Raises if gradients are wanted for inference tensors: autograd would silently give none."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        return
    if any(t.requires_grad and t.is_inference() for t in tensors):
        raise InputError(
            "Inference tensors cannot be saved for backward: weights or input that require a gradient were created, "
            "copied, cast or loaded inside torch.inference_mode(). Do that outside, or clone them. If you need no "
            "gradient, call under torch.no_grad()"
        )


def check_reset_state(
    reset_state: Tensor | None, reset: Tensor | None, bidirectional: bool, shape: tuple[int, int, int]
) -> None:
    """Raises if reset_state does not have the shape of hx, or the call cannot use it."""
    if reset_state is None:
        return
    check_tensor("reset_state", reset_state)
    if reset is None:
        raise InputError("reset_state requires reset")
    if bidirectional:
        raise InputError("reset_state requires a unidirectional layer: backwards, no state is carried over")
    if differ(reset_state.shape, shape):
        raise InputError(f"Expected reset_state of shape {shape}, as hx, got {tuple(reset_state.shape)}")


def check_gains(layer_norms: Sequence[Group], weights: Sequence[Group]) -> None:
    """Raises unless there is a pair of gains for each group of weights, of their dtype and on their device."""
    for pair in layer_norms:
        for gain in pair:
            check_tensor("layer_norms", gain)
    expected = [((w_ih.shape[0],),) * 2 for w_ih, *_ in weights]
    if differ(got := [tuple(tuple(gain.shape) for gain in pair) for pair in layer_norms], expected):
        raise InputError(f"layer_norms must hold gains of shapes {expected}, a pair per group, got {got}")
    for pair, (w_ih, *_) in zip(layer_norms, weights, strict=True):
        for gain in pair:
            if gain.device != w_ih.device or (gain.dtype != w_ih.dtype and compat.autocast_dtype(w_ih, gain) is None):
                raise InputError(
                    f"layer_norms must be {w_ih.dtype} on {w_ih.device}, like the weights, "
                    f"got {gain.dtype} on {gain.device}"
                )


def check_weights(weights: Group, input_size: int, hidden_size: int, heads: int) -> None:
    """Raises if a group of weights has other sizes, or more than one dtype or device."""
    if any(type(w).__name__ == "ExpandedWeight" for w in weights):
        raise InputError(
            "torch.nn.utils' call_for_per_sample_grads (ExpandedWeights, Opacus' grad_sample_mode='ew') only knows "
            "torch.nn's layers. For per-sample gradients use vmap(grad(...)) of torch.func, or "
            "grucore.integrations.opacus"
        )
    gates, w_ih = 3 * hidden_size, weights[0]
    blocks = (gates, hidden_size) if heads == 1 else (heads, gates // heads, hidden_size // heads)
    expected = ((gates, input_size), blocks, (gates,), (gates,))[: len(weights)]
    names = NAMES[: len(weights)]
    if differ([w.shape for w in weights], expected):
        name, w, shape = next(each for each in zip(names, weights, expected, strict=True) if each[1].shape != each[2])
        raise InputError(f"{name} must have shape {shape}, got {tuple(w.shape)}")
    for name, w in zip(names, weights, strict=True):
        if w.device != w_ih.device or (w.dtype != w_ih.dtype and compat.autocast_dtype(w_ih, w) is None):
            raise InputError(
                f"all weights must have one dtype and be on one device: w_ih is {w_ih.dtype} on {w_ih.device}, "
                f"{name} is {w.dtype} on {w.device}"
            )
