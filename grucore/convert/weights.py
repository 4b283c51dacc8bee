"""Helpers of all converters: gate order, arrays, building a layer from weights, and checking a layer to export."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grucore.copies import DENSE
from grucore.errors import InputError, check_flag
from grucore.module import GRU
from grucore.options import OF_RUN, OF_TORCH_GRU, Activation, changed

_ACTIVATIONS = ("activation", "recurrent_activation")
_TRAINING_OPTIONS = ("dropout", "recurrent_dropout")  # without effect in eval mode
_WRITTEN = (*OF_TORCH_GRU, *OF_RUN, "reset_after", *_TRAINING_OPTIONS)  # written, or without effect
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def require(module: str, package: str) -> Any:
    """Imports a module.

    Raises:
        ImportError: it cannot be imported; names the pip package that contains it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"this converter needs {module}: pip install {package} ({error})") from error


@contextmanager
def reading(source: str) -> Iterator[None]:
    """Turns the many errors that HDF5, zip, JSON and protobuf raise on a damaged file into one that names the file.

    Raises:
        InputError: for every error, except our own, files that cannot be opened and missing libraries.
    """
    try:
        yield
    except (InputError, ImportError, FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:
        what = str(error).strip().partition("\n")[0]
        raise InputError(f"{source} is damaged or has another format: {type(error).__name__}: {what}") from error


def swap_gates(weight: Tensor) -> Tensor:
    """Swaps (r|z|n) and (z|r|n), the order of Keras and ONNX; shape (3H, ...)."""
    first, second, n = weight.chunk(3)
    return torch.cat([second, first, n])


def to_tensor(array: Any) -> Tensor:
    """A copy of a NumPy or JAX array, or of a tensor, on the CPU, bit for bit.

    Raises:
        InputError: it is not an array of numbers.
    """
    if isinstance(array, Tensor):
        return array.detach().cpu().clone()
    given, array = array, np.array(array)
    if array.dtype == object:
        boxed = " (flax.core.meta.unbox unboxes a tree)" if hasattr(given, "unbox") else ""
        raise InputError(f"weights must be arrays of numbers, got {type(given).__name__}{boxed}")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype.name == "bfloat16":  # from ml_dtypes, which PyTorch cannot read
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def to_array(tensor: Tensor) -> np.ndarray:
    """A copy of a tensor, bit for bit; bfloat16 is that of ml_dtypes, on which Keras, JAX and ONNX depend."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(require("ml_dtypes", "ml_dtypes").bfloat16).copy()
    return tensor.numpy().copy()


def gru_of(
    groups: Sequence[Sequence[Tensor]],
    *,
    bidirectional: bool,
    reset_after: bool,
    batch_first: bool,
    activation: Activation = "tanh",
    recurrent_activation: Activation = "sigmoid",
) -> GRU:
    """Builds a layer with these weights.

    Args:
        groups: K*D groups (w_ih, w_hh) or (w_ih, w_hh, b_ih, b_hh), as `GRU.all_weights`. If only some groups have
            biases, the others get zeros.
        bidirectional: whether there are two groups per layer.
        reset_after: see `GRU`.
        batch_first: see `GRU`.
        activation: see `GRU`.
        recurrent_activation: see `GRU`.

    Raises:
        InputError: a shape that does not match the others.
        TypeError: dtypes that differ, or that are not floating-point.
    """
    directions = 2 if bidirectional else 1
    bias = any(len(group) == 4 for group in groups)
    if bias:
        groups = [
            group if len(group) == 4 else [*group, *(group[0].new_zeros(len(w)) for w in group)] for group in groups
        ]
    w_ih, w_hh = groups[0][:2]
    if w_ih.dim() != 2 or w_hh.dim() != 2 or w_ih.shape[1] == 0 or w_hh.shape[1] == 0:
        raise InputError(f"weights must be (3H, I) and (3H, H), got {tuple(w_ih.shape)} and {tuple(w_hh.shape)}")
    if w_ih.dtype not in _DTYPES:
        raise TypeError(f"weights must be one of {', '.join(map(str, _DTYPES))}, got {w_ih.dtype}")
    gru = GRU(
        w_ih.shape[1],
        w_hh.shape[1],
        num_layers=len(groups) // directions,
        bias=bias,
        batch_first=batch_first,
        bidirectional=bidirectional,
        device="cpu",
        dtype=w_ih.dtype,
        reset_after=reset_after,
        activation=activation,
        recurrent_activation=recurrent_activation,
    )
    with torch.no_grad():
        for i, (parameters, group) in enumerate(zip(gru.all_weights, groups, strict=True)):
            for name, parameter, given in zip(("w_ih", "w_hh", "b_ih", "b_hh"), parameters, group, strict=False):
                what = f"{name} of layer {i // directions}"
                if given.shape != parameter.shape:
                    raise InputError(f"{what} must have shape {tuple(parameter.shape)}, got {tuple(given.shape)}")
                if given.dtype != parameter.dtype:
                    raise TypeError(f"{what} must be {parameter.dtype}, as the weights before, got {given.dtype}")
                parameter.copy_(given)
    return gru


def check_model(model: GRU, target: str, *, ignore_dropout: bool, activations: Collection[str] = ()) -> None:
    """Raises unless a layer can be written for the target without change.

    Args:
        model: the layer.
        target: the name of the format or class that is written.
        ignore_dropout: leave out dropout instead of refusing it.
        activations: the activations that the target supports besides its defaults, under our names.

    Raises:
        TypeError: it is not a `grucore.GRU`, or ignore_dropout is not a bool.
        InputError: it has an option that the target lacks; dropout counts as one unless ignored.
    """
    if not isinstance(model, GRU):
        raise TypeError(f"expected a grucore.GRU (GRU.from_torch converts a torch.nn.GRU), got {type(model).__name__}")
    check_flag("ignore_dropout", ignore_dropout)
    own = changed(model, without=_WRITTEN)
    own = {name: value for name, value in own.items() if name not in _ACTIVATIONS or value not in activations}
    if own:
        given = ", ".join(f"{name}={value!r}" for name, value in own.items())
        advice = f". {DENSE}" if "heads" in own else ""
        raise InputError(f"{given} cannot be written for {target}{advice}")
    if not ignore_dropout and (names := [name for name in _TRAINING_OPTIONS if getattr(model, name, 0.0) > 0]):
        given = ", ".join(f"{name}={getattr(model, name)!r}" for name in names)
        raise InputError(f"{given} cannot be written for {target}; ignore_dropout=True leaves it out")
