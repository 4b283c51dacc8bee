"""To and from Flax: the parameters of flax.linen.GRUCell, and flax.nnx.GRUCell.

Flax has our equations with reset_after=True and fewer biases: r and z have one each; n has both in linen, and only the
input's in nnx. linen keeps one kernel (in, out) per gate, named ir, iz, in, hr, hz and hn; nnx concatenates them in our
order. Source: GRUCell in flax.linen and flax.nnx, Flax 0.12.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grucore.convert.weights import check_model, gru_of, require, to_array, to_tensor
from grucore.errors import InputError, check_flag
from grucore.module import GRU

_INPUT, _HIDDEN = ("ir", "iz", "in"), ("hr", "hz", "hn")  # linen's names, in the order r, z, n


def from_flax(source: Any, *, batch_first: bool = True) -> GRU:
    """Converts Flax GRU cells to a layer, exactly.

    A tree of parameters does not store the cell's functions; they are assumed to be Flax's defaults, sigmoid and tanh.

    Args:
        source: a layer, or a list of layers in order. A layer is a cell, or for two directions a tuple of the forward
            and the reverse cell. A cell is the parameters of a flax.linen.GRUCell (nested under any names, such as
            {"params": {"cell": ...}}), or a flax.nnx.GRUCell. The parameters of a flax.linen.Bidirectional count as
            both of its cells.
        batch_first: of the layer; True, like Flax's RNN.

    Returns:
        A layer on the CPU with the dtype of the parameters, and with biases (those that Flax lacks are 0).

    Raises:
        ImportError: source is not a tree of parameters, and Flax is not installed.
        TypeError: source is none of the above, or batch_first is not a bool.
        InputError: parameters are missing or have wrong shapes, or a function is neither sigmoid nor tanh.

    Example:
        >>> kernels = {name: {"kernel": np.ones((3, 4))} for name in ("ir", "iz", "in")}
        >>> kernels |= {name: {"kernel": np.ones((4, 4))} for name in ("hr", "hz", "hn")}
        >>> biases = {name: {"bias": np.zeros(4)} for name in ("ir", "iz", "in", "hn")}
        >>> from_flax({name: kernels[name] | biases.get(name, {}) for name in kernels})
        GRU(3, 4, batch_first=True)
    """
    check_flag("batch_first", batch_first)
    layers = list(source) if isinstance(source, list) else [source]
    if not layers:
        raise InputError("from_flax needs at least one layer, got an empty list")
    stack = [_directions(layer) for layer in layers]
    counts = {len(cells) for cells in stack}
    if counts not in ({1}, {2}):
        raise InputError(f"all layers must have one cell, or all a pair, got {[len(cells) for cells in stack]}")
    groups = [_group(cell) for cells in stack for cell in cells]
    return gru_of(groups, bidirectional=counts == {2}, reset_after=True, batch_first=batch_first)


def to_flax(model: GRU, *, api: str = "linen", ignore_dropout: bool = False) -> list[Any]:
    """Converts a layer to Flax cells.

    The outputs are those of the model. Flax has one bias instead of b_ir and b_hr, and one instead of b_iz and b_hz:
    their sums. Everything else is bit for bit; from_flax of the result gives a layer whose b_hr and b_hz are 0.

    Args:
        model: the layer; a subclass's own code stays behind, here and in the other converters.
        api: "linen" for trees of parameters with NumPy arrays (Flax is not needed), "nnx" for flax.nnx.GRUCell.
        ignore_dropout: leave out dropout and recurrent_dropout, which act only in training.

    Returns:
        K cells, as `from_flax` takes them; K tuples (forward, reverse) if the model is bidirectional. With linen, pass
        each as {"params": cell} to a flax.linen.GRUCell, or as {"params": {"cell": cell}} to a flax.linen.RNN.

    Raises:
        ImportError: api is "nnx", and Flax is not installed.
        TypeError: model is not a `grucore.GRU`, or ignore_dropout is not a bool.
        InputError: an option that Flax lacks; with nnx also a b_hn other than 0, or a dtype that JAX changes.

    Example:
        >>> [cell] = to_flax(GRU(3, 4))
        >>> cell["hn"]["kernel"].shape
        (4, 4)
    """
    makers = {"linen": _linen_cell, "nnx": _nnx_cell}
    if api not in makers:
        raise InputError(f"api must be 'linen' or 'nnx', got {api!r}")
    check_model(model, "flax GRUCell", ignore_dropout=ignore_dropout)
    if not model.reset_after:
        raise InputError("flax GRUCell has no reset_after=False, so this layer cannot be converted")
    cells = [makers[api](*(w.detach() for w in group)) for group in model.all_weights]
    return list(zip(cells[::2], cells[1::2], strict=True)) if model.bidirectional else cells


def _directions(layer: Any) -> list[Any]:
    """The cells of a layer."""
    if isinstance(layer, tuple):
        if len(layer) != 2:
            raise InputError(f"a layer of several cells must be (forward, reverse), got {len(layer)}")
        return list(layer)
    tree = _unwrapped(layer)
    if isinstance(tree, Mapping) and set(tree) == {"forward_rnn", "backward_rnn"}:
        return [tree["forward_rnn"], tree["backward_rnn"]]
    return [tree]


def _unwrapped(tree: Any) -> Any:
    """Removes nesting with a single name per level, such as {"params": {"cell": ...}}."""
    while isinstance(tree, Mapping) and len(tree) == 1:
        (tree,) = tree.values()
    return tree


def _group(cell: Any) -> list[Tensor]:
    """(w_ih, w_hh, b_ih, b_hh)."""
    tree = _unwrapped(cell)
    return _linen_group(tree) if isinstance(tree, Mapping) else _nnx_group(tree)


def _linen_group(tree: Mapping[str, Any]) -> list[Tensor]:
    expected = {name: {"kernel", "bias"} for name in (*_INPUT, "hn")} | {"hr": {"kernel"}, "hz": {"kernel"}}
    found = {name: set(part) if isinstance(part, Mapping) else {} for name, part in tree.items()}
    if found != expected:
        wanted = "kernel of ir, iz, in, hr, hz, hn and bias of ir, iz, in, hn"
        raise InputError(
            f"a flax.linen.GRUCell has {wanted}; got { {name: sorted(part) for name, part in found.items()} }"
        )
    kernels = {name: to_tensor(tree[name]["kernel"]) for name in tree}
    for name, kernel in kernels.items():
        if kernel.dim() != 2:
            raise InputError(f"the kernel of {name} must have two dimensions, got shape {tuple(kernel.shape)}")
    kernels = {name: kernel.t() for name, kernel in kernels.items()}
    biases = {name: to_tensor(tree[name]["bias"]) for name in (*_INPUT, "hn")}
    b_hh = [torch.zeros_like(biases["hn"]), torch.zeros_like(biases["hn"]), biases["hn"]]
    return [
        torch.cat([kernels[name] for name in _INPUT]),
        torch.cat([kernels[name] for name in _HIDDEN]),
        torch.cat([biases[name] for name in _INPUT]),
        torch.cat(b_hh),
    ]


def _nnx_group(cell: Any) -> list[Tensor]:
    nnx = require("flax.nnx", "flax")
    if not isinstance(cell, nnx.GRUCell):
        raise TypeError(
            f"expected the parameters of a flax.linen.GRUCell or a flax.nnx.GRUCell, got {type(cell).__name__}"
        )
    for option, name in (("gate_fn", "sigmoid"), ("activation_fn", "tanh")):
        if (function := getattr(cell, option)) is not getattr(nnx, name):
            raise InputError(f"flax.nnx.GRUCell has {option}={function!r}; only {name} can be converted")
    w_ih, w_hh = (to_tensor(linear.kernel[...]).t() for linear in (cell.dense_i, cell.dense_h))
    b_ih, b_hh = (
        w_ih.new_zeros(len(w_ih)) if linear.bias is None else to_tensor(linear.bias[...])
        for linear in (cell.dense_i, cell.dense_h)
    )
    return [w_ih, w_hh, b_ih, b_hh]


def _linen_cell(w_ih: Tensor, w_hh: Tensor, *biases: Tensor) -> dict[str, dict[str, np.ndarray]]:
    b_ih, b_hh = biases or (w_ih.new_zeros(len(w_ih)),) * 2
    b_ir, b_iz, b_in = b_ih.chunk(3)
    b_hr, b_hz, b_hn = b_hh.chunk(3)
    kernels = dict(zip((*_INPUT, *_HIDDEN), (*w_ih.chunk(3), *w_hh.chunk(3)), strict=True))
    cell = {name: {"kernel": to_array(kernel.t())} for name, kernel in kernels.items()}
    for name, bias in (("ir", b_ir + b_hr), ("iz", b_iz + b_hz), ("in", b_in), ("hn", b_hn)):
        cell[name]["bias"] = to_array(bias)
    return cell


def _nnx_cell(w_ih: Tensor, w_hh: Tensor, *biases: Tensor) -> Any:
    nnx, jnp = require("flax.nnx", "flax"), require("jax.numpy", "jax")
    b_ih, b_hh = biases or (w_ih.new_zeros(len(w_ih)),) * 2
    b_hr, b_hz, b_hn = b_hh.chunk(3)
    if b_hn.count_nonzero():
        raise InputError("flax.nnx.GRUCell has no b_hn, but that of this layer is not 0; api='linen' has one")
    arrays = [to_array(w) for w in (w_ih.t(), b_ih + torch.cat([b_hr, b_hz, b_hn]), w_hh.t())]
    values = [jnp.asarray(array) for array in arrays]
    if values[0].dtype != arrays[0].dtype:
        raise InputError(f"JAX turned {arrays[0].dtype} into {values[0].dtype}; set jax_enable_x64 to keep float64")
    # The initial values are overwritten, but Flax's default initializer, orthogonal, does not run in half precision.
    options = {"param_dtype": values[0].dtype, "recurrent_kernel_init": nnx.initializers.zeros_init()}
    cell = nnx.GRUCell(w_ih.shape[1], w_hh.shape[1], rngs=nnx.Rngs(0), **options)
    for parameter, value in zip((cell.dense_i.kernel, cell.dense_i.bias, cell.dense_h.kernel), values, strict=True):
        if hasattr(parameter, "set_value"):
            parameter.set_value(value)
        else:  # Flax 0.10, the last for Python 3.10
            parameter.value = value
    return cell
