"""To and from Keras 3: layers, and the files that Keras writes.

Keras has the gates in the order z, r, h (h is our n) and kernels (I, 3H) and (H, 3H). Its z has the same meaning as
ours: h' = z h + (1 - z) h~. With reset_after=True its bias (2, 3H) holds b_ih and b_hh; with reset_after=False there is
one bias (3H,), added to W x: b_ih. Source: keras.layers.GRUCell of Keras 3.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from grucore.convert.keras_files import KerasLayer, read_layers
from grucore.convert.weights import check_model, gru_of, reading, require, swap_gates, to_array, to_tensor
from grucore.errors import InputError, check_flag
from grucore.kernels.regularised import ACTIVATIONS
from grucore.module import GRU

# The other entries of a layer's config are ignored: `unroll`, `implementation` and `use_cudnn` choose how the same
# result is computed; initialisers, regularisers and constraints only matter in training.
_FUNCTIONS = {"activation": "tanh", "recurrent_activation": "sigmoid"}  # and their defaults
_ACTIVATIONS = tuple(ACTIVATIONS)  # Keras 3 has every one of ours, under the same names


def from_keras(
    source: Any,
    layer: str | Sequence[str] | None = None,
    *,
    reset_after: bool | None = None,
    ignore_dropout: bool = False,
    reverse: bool = False,
) -> GRU:
    """Converts Keras 3 GRU layers to a layer, exactly.

    A `.keras` file and an `.h5` model store the options of each layer, which are checked. A file that stores only
    weights does not: its layers are assumed to have Keras's defaults, tanh, sigmoid and merge_mode="concat". Files are
    read without Keras; h5py is enough. From some damaged files the HDF5 library (2.0.0) never returns: read those of
    strangers in a process that you can end.

    A layer with go_backwards=True reads its input from the last step to the first, and returns its outputs in that
    order. A unidirectional grucore layer reads from the first step to the last, so the result needs a reversed input:
    `y, h_n = gru(x.flip(1))`, with `mask=mask.flip(1)` if there is a mask. In a stack only the first layer may have
    go_backwards=True.

    Args:
        source: a keras.layers.GRU, a keras.layers.Bidirectional around one, a sequence of these (a stack, in order),
            or the path of a `.keras`, `.h5` or `.weights.h5` file.
        layer: the name of the layer in a file (or the path of its group, if the name is not unique), or several names
            for a stack. None if the file has only one.
        reset_after: required for a layer without bias in a file that stores only weights.
        ignore_dropout: accept a layer with `dropout` or `recurrent_dropout`, and leave them out. They act only in
            training, and differently from those of grucore.
        reverse: must be True if the layer, or the first layer of a stack, has go_backwards=True, and False otherwise.
            A file that stores only weights does not store go_backwards, so `reverse` is not checked.

    Returns:
        A layer on the CPU with batch_first=True, like Keras, and the dtype of the weights. At masked steps a
        unidirectional Keras layer repeats its last output, unless it has zero_output_for_mask=True; grucore gives 0,
        as Bidirectional does.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: Keras, or h5py for a file, is not installed.
        TypeError: source is none of the above, or a flag is not a bool.
        InputError: a damaged file, an option that cannot be converted, a layer that is not built or not in the file,
            layers that do not form a stack, or a go_backwards that contradicts `reverse`.

    Example:
        >>> os.environ["KERAS_BACKEND"] = "torch"  # read when Keras is imported
        >>> from_keras(to_keras(GRU(3, 4, num_layers=2)))
        GRU(3, 4, num_layers=2, batch_first=True)
    """
    check_flag("ignore_dropout", ignore_dropout)
    check_flag("reverse", reverse)
    if reset_after is not None:
        check_flag("reset_after", reset_after)
    is_file = isinstance(source, (str, os.PathLike))
    with reading(os.fspath(source)) if is_file else nullcontext():
        stack = _select(read_layers(source), layer, os.fspath(source)) if is_file else _live_layers(source, layer)
        groups, forms = _read(stack, reset_after, ignore_dropout, reverse)
    form, activation, recurrent_activation = forms
    return gru_of(
        groups,
        bidirectional=len(stack[0].weights) == 2,
        reset_after=form,
        batch_first=True,
        activation=activation,
        recurrent_activation=recurrent_activation,
    )


def _read(
    stack: Sequence[KerasLayer], reset_after: bool | None, ignore_dropout: bool, reverse: bool
) -> tuple[list[list[Tensor]], tuple[bool, Any, Any]]:
    """The weights of a stack, and the options that its layers share: the form and the two activations."""
    groups: list[list[Tensor]] = []
    forms = set()
    for k, each in enumerate(stack):
        _check_options(each, ignore_dropout, reverse=reverse and k == 0)
        for config, weights in zip(each.configs, each.weights, strict=True):
            form = _reset_after(each.name, config, weights, reset_after)
            groups.append(_group(each.name, weights, form))
            forms.add((form, *(config.get(option, default) for option, default in _FUNCTIONS.items())))
    directions = {len(each.weights) for each in stack}
    if len(forms) > 1 or len(directions) > 1:
        raise InputError(
            "the layers of a stack must agree in reset_after, in being bidirectional, in activation and in "
            "recurrent_activation"
        )
    _check_widths(stack)
    return groups, forms.pop()


def to_keras(model: GRU, *, ignore_dropout: bool = False) -> list[Any]:
    """Converts a layer to built Keras layers with its weights, in order; each returns sequences.

    With reset_after=False Keras has one bias: b_ih + b_hh. Everything else is bit for bit.

    Args:
        model: the layer, without the code of a subclass; its dtype becomes that of the Keras layers.
        ignore_dropout: leave out dropout and recurrent_dropout, which act only in training.

    Returns:
        K built keras.layers.GRU, or keras.layers.Bidirectional around them, for input (B, T, I) whatever
        `model.batch_first` is.

    Raises:
        ImportError: Keras is not installed.
        TypeError: model is not a `grucore.GRU`, or ignore_dropout is not a bool.
        InputError: an option that Keras lacks, or a dtype that its backend changes.

    Example:
        >>> os.environ["KERAS_BACKEND"] = "torch"  # read when Keras is imported
        >>> first, second = to_keras(GRU(3, 4, num_layers=2))
        >>> second(first(torch.randn(2, 5, 3))).shape
        torch.Size([2, 5, 4])
    """
    check_model(model, "keras.layers.GRU", ignore_dropout=ignore_dropout, activations=_ACTIVATIONS)
    keras = require("keras", "keras")
    dtype = str(model.weight_ih_l0.dtype).removeprefix("torch.")
    directions, weights, layers = model.num_directions, model.all_weights, []
    for k in range(model.num_layers):
        layer = keras.layers.GRU(
            model.hidden_size,
            return_sequences=True,
            use_bias=model.bias,
            reset_after=model.reset_after,
            activation=model.activation,
            recurrent_activation=model.recurrent_activation,
            recurrent_initializer="glorot_uniform",  # Keras's default, orthogonal, does not run in half precision
            dtype=dtype,
        )
        if model.bidirectional:
            layer = keras.layers.Bidirectional(layer, dtype=dtype)
        layer.build((None, None, weights[k * directions][0].shape[1]))
        parts = [layer.forward_layer, layer.backward_layer] if model.bidirectional else [layer]
        for part, group in zip(parts, weights[k * directions : (k + 1) * directions], strict=True):
            part.set_weights(_keras_weights(group, model.reset_after))
            if (kept := str(part.cell.kernel.value.dtype).removeprefix("torch.")) != dtype:
                raise InputError(f"Keras on {keras.backend.backend()} turned weights of dtype {dtype} into {kept}")
        layers.append(layer)
    return layers


def _keras_weights(group: Sequence[Tensor], reset_after: bool) -> list[Any]:
    """Kernel (I, 3H), recurrent kernel (H, 3H) and, if there is one, bias (2, 3H) or (3H,)."""
    w_ih, w_hh, *biases = (swap_gates(w.detach()) for w in group)
    weights = [w_ih.t(), w_hh.t()]
    if biases:
        weights.append(torch.stack(biases) if reset_after else biases[0] + biases[1])
    return [to_array(w) for w in weights]


def _live_layers(source: Any, layer: str | Sequence[str] | None) -> list[KerasLayer]:
    """Reads a Keras layer or a sequence of layers."""
    if layer is not None:
        raise InputError(f"layer={layer!r} requires a file as source; pass the layers themselves, or a path")
    keras = require("keras", "keras")
    stack = [_live_layer(each, keras) for each in (source if isinstance(source, (list, tuple)) else [source])]
    if not stack:
        raise InputError("from_keras needs at least one layer, got an empty sequence")
    return stack


def _live_layer(layer: Any, keras: Any) -> KerasLayer:
    """Reads a Keras layer."""
    wrapped = isinstance(layer, keras.layers.Bidirectional)
    parts = [layer.forward_layer, layer.backward_layer] if wrapped else [layer]
    if not all(isinstance(part, keras.layers.GRU) for part in parts):
        inner = f" around {type(parts[0]).__name__}" if wrapped else ""
        raise TypeError(
            f"expected a keras.layers.GRU, Bidirectional around one, or a path, got {type(layer).__name__}{inner}"
        )
    configs, weights = [], []
    for part in parts:
        if not part.built:
            raise InputError(f"Keras layer {layer.name!r} has no weights yet: call it, or layer.build((None, None, I))")
        config = part.get_config()
        for option in _FUNCTIONS:
            function = getattr(part, option)  # compared by identity: a user's function may have the same name
            names = [name for name in _ACTIVATIONS if function is getattr(keras.activations, name, None)]
            config[option] = names[0] if names else function
        configs.append(config)
        # NumPy has no bfloat16, so Keras returns float32; converting back is exact.
        dtype = getattr(torch, part.variable_dtype)
        weights.append([to_tensor(array).to(dtype) for array in part.get_weights()])
    return KerasLayer(layer.name, layer.get_config() if wrapped else {}, configs, weights, keras.__version__)


def _select(found: Mapping[str, list[KerasLayer]], layer: str | Sequence[str] | None, path: str) -> list[KerasLayer]:
    """Selects layers by name."""
    names = [layer] if isinstance(layer, str) else layer
    known = ", ".join(map(repr, found)) or "none"
    if names is None:
        everything = {id(each): each for several in found.values() for each in several}
        if len(everything) != 1:
            raise InputError(f"{path} must have one GRU layer, or `layer` must name one; it has {known}")
        return list(everything.values())
    if missing := [name for name in names if name not in found]:
        raise InputError(f"{path} has no GRU layer {', '.join(map(repr, missing))}; it has {known}")
    if twice := [name for name in names if len(found[name]) > 1]:
        raise InputError(f"{path} has more than one layer {', '.join(map(repr, twice))}; give a path of {known}")
    if not names:
        raise InputError("layer must name at least one layer, got an empty sequence")
    return [found[name][0] for name in names]


def _check_options(layer: KerasLayer, ignore_dropout: bool, reverse: bool) -> None:
    """Raises for options that cannot be converted."""
    who = f"Keras layer {layer.name!r}"
    if (mode := layer.wrapper.get("merge_mode", "concat")) != "concat":
        raise InputError(f"{who} has merge_mode={mode!r}; only 'concat' can be converted")
    for direction, config in enumerate(layer.configs):
        if config.get("stateful", False):
            raise InputError(f"{who} has stateful=True; in grucore the caller passes the state as hx")
        for option, default in _FUNCTIONS.items():
            function = config.get(option, default)
            if not isinstance(function, str) or function not in _ACTIVATIONS:
                raise InputError(f"{who} has {option}={function!r}; only {', '.join(_ACTIVATIONS)} can be converted")
            if function == "hard_sigmoid" and not layer.version.startswith("3"):
                raise InputError(
                    f"{who} has {option}='hard_sigmoid' and does not say that it is from Keras 3: older versions have "
                    "0.2 x + 0.5, grucore has x / 6 + 0.5"
                )
        _check_direction(layer, config, direction, reverse)
        for option in ("dropout", "recurrent_dropout"):
            if not ignore_dropout and (rate := config.get(option, 0.0)):
                raise InputError(
                    f"{who} has {option}={rate}, which differs from grucore's; ignore_dropout=True leaves it out"
                )


def _check_direction(layer: KerasLayer, config: Mapping[str, Any], direction: int, reverse: bool) -> None:
    """Raises for a direction that contradicts `reverse`."""
    expected = direction == 1 or reverse
    if len(layer.weights) == 2 and reverse:
        raise InputError(f"Keras layer {layer.name!r} is bidirectional: reverse=True is only for go_backwards=True")
    if (given := config.get("go_backwards", expected)) == expected:
        return
    if given and len(layer.weights) == 1:
        raise InputError(
            f"Keras layer {layer.name!r} has go_backwards=True: if it is the first of a stack, reverse=True converts "
            "it to a layer that computes the same on a reversed input, gru(x.flip(1))"
        )
    raise InputError(f"Keras layer {layer.name!r} has go_backwards={given}; only {expected} can be converted here")


def _check_widths(stack: Sequence[KerasLayer]) -> None:
    """Raises for layers that differ in units, or whose input sizes do not match the layer before."""
    for before, layer in itertools.pairwise(stack):
        units, own = before.weights[0][1].shape[0], layer.weights[0][1].shape[0]
        if units != own:
            raise InputError(
                f"Keras layer {layer.name!r} has units={own}, but the one before, {before.name!r}, has {units}: the "
                "layers of a GRU must have the same width; convert each by itself"
            )
        features, given = layer.weights[0][0].shape[0], len(before.weights) * units
        if features != given:
            raise InputError(
                f"Keras layer {layer.name!r} reads {features} features, but the one before, {before.name!r}, "
                f"gives {given}"
            )


def _reset_after(name: str, config: Mapping[str, Any], weights: Sequence[Tensor], given: bool | None) -> bool:
    """Finds reset_after from the options, the bias or the caller; they must agree."""
    told = {config["reset_after"]} if "reset_after" in config else set()
    if len(weights) == 3:
        told.add(weights[2].dim() == 2)
    if given is not None:
        told.add(given)
    if not told:
        raise InputError(f"layer {name!r} is stored without options and without bias: pass reset_after=True or False")
    if len(told) > 1:
        raise InputError(
            f"layer {name!r}: reset_after is {config.get('reset_after', 'not stored')}, the caller says {given}, "
            f"and the weights have shapes {[tuple(w.shape) for w in weights]}"
        )
    return told.pop()


def _group(name: str, weights: Sequence[Tensor], reset_after: bool) -> list[Tensor]:
    """(w_ih, w_hh[, b_ih, b_hh]) of one direction."""
    kernel, recurrent, *bias = weights
    gates = 3 * recurrent.shape[0]
    expected = [(kernel.shape[0], gates), (gates // 3, gates), ((2, gates) if reset_after else (gates,))]
    shapes = [tuple(w.shape) for w in weights]
    if shapes != expected[: len(weights)]:
        raise InputError(f"layer {name!r} must have weights of shapes {expected[: len(weights)]}, got {shapes}")
    group = [swap_gates(kernel.t()), swap_gates(recurrent.t())]
    if bias:
        both = bias[0].unbind() if reset_after else (bias[0], torch.zeros_like(bias[0]))
        group += [swap_gates(b) for b in both]
    return group
