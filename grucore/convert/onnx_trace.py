"""What torch.onnx.export writes for a layer: the node GRU, with both exporters, and no call of the user's.

Under dynamo=True the node is an operator of torch.export's graph (`torch.onnx.ops`); under dynamo=False it is an
autograd.Function with a `symbolic`. The meaning of the operator is in `onnx_operator.py`.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from grucore import ops
from grucore.convert import onnx_operator
from grucore.errors import InputError
from grucore.kernels import variants
from grucore.kernels.variants import Variant, acting
from grucore.sequence import as_lengths

_CUT = "cut the sequence at the resets, and give each part its state as hx"
_INSTEAD = {
    "mask": "where the padding is at the end, give lengths=mask.sum(0), the number of real steps of each row",
    "reset": _CUT,
    "reset_state": _CUT,
    "return_gates": "the model to export must not return them",
}


def node_for(
    variant: Variant,
    reset_after: bool,
    dtype: torch.dtype,
    has_hx: bool,
    lengths: Tensor | Sequence[int] | None,
    others: dict[str, Any],
) -> Callable[[Tensor, Tensor, list[Any]], tuple[Tensor, Tensor, None]] | None:
    """What computes a layer as a node, from x, h0 and (w_ih, w_hh, b_ih, b_hh) of all its directions.

    Args:
        variant: what the layer has beyond the equations.
        reset_after: see `functional.gru`.
        dtype: that the layer computes in.
        has_hx: whether h0 is given, rather than zeros.
        lengths: see `functional.gru`.
        others: `mask`, `reset`, `reset_state` and `return_gates`, as `functional.gru` takes them.

    Returns:
        A function that gives y, h_n and no gates; None where the node GRU cannot say what the layer does and
        dynamo=True writes it step by step: torch.export sees to it that T is not free then.

    Raises:
        InputError: an argument or a dtype that ONNX has no place for, or a variant under dynamo=False, which would
            write it for one T without saying so.
    """
    for name, value in others.items():
        if value is not None and value is not False:
            raise InputError(f"{name} cannot be exported: the ONNX operator GRU has nothing like it; {_INSTEAD[name]}")
    if dtype not in onnx_operator.DTYPES:
        expected = ", ".join(map(str, onnx_operator.DTYPES))
        raise InputError(f"the ONNX operator GRU takes {expected}, and this one is {dtype}: convert the model first")
    names = [
        name for name in ("activation", "recurrent_activation") if getattr(variant, name) in onnx_operator.ACTIVATIONS
    ]
    unsaid = acting(variant._replace(**{name: Variant._field_defaults[name] for name in names}))
    if not unsaid:
        lengths = None if lengths is None else as_lengths(lengths)
        layer = functools.partial(_layer, has_hx=has_hx, lengths=lengths, reset_after=reset_after, variant=variant)
        return _quiet(layer) if torch.jit.is_tracing() else layer
    if torch.jit.is_tracing():
        raise InputError(
            f"{unsaid} cannot be exported with dynamo=False: the ONNX operator GRU has nothing like it; "
            "torch.onnx.export(..., dynamo=True) writes such a layer step by step, for one T"
        )
    return None


def _quiet(layer: Callable) -> Callable:
    """Without the tracer's warnings, which fear that D and H, the layer's own, are those of the input."""

    def run(*tensors: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            return layer(*tensors)

    return run


def _layer(
    x: Tensor,  # (T, B, I)
    h0: Tensor,  # (D, B, H)
    weights: list[Any],  # w_ih (D, 3H, I), w_hh (D, 3H, H), b_ih and b_hh (D, 3H) or None
    *,
    has_hx: bool,
    lengths: Tensor | None,  # (B,), integers
    reset_after: bool,
    variant: Variant,
) -> tuple[Tensor, Tensor, None]:
    """y (T, B, D*H) and h_n (D, B, H) of all directions of one layer."""
    directions, hidden = int(h0.shape[0]), int(weights[1].shape[2])
    w, r, *biases = (_swapped(kind, hidden) for kind in weights if kind is not None)
    b = torch.cat(biases, 1) if biases else None
    attributes = onnx_operator.attributes(
        hidden_size=hidden,
        directions=directions,
        reset_after=reset_after,
        activation=variant.activation,
        recurrent_activation=variant.recurrent_activation,
    )
    lengths = None if lengths is None else lengths.to(x.device, torch.int32)
    inputs = (x, w, r, b, lengths, h0 if has_hx else None)
    y, h_n = _Traced.apply(*inputs, attributes, variant) if torch.jit.is_tracing() else _exported(inputs, attributes)
    if has_hx and lengths is not None:  # ONNX leaves open what a row of length 0 ends with
        h_n = torch.where((lengths == 0).unsqueeze(-1), h0, h_n)
    return y, h_n, None


def _swapped(weight: Tensor, hidden: int) -> Tensor:
    """(D, r|z|n, ...) as (D, z|r|n, ...), and back again: one operator, which exporters compute beforehand."""
    units = range(3 * hidden)
    order = [*units[hidden : 2 * hidden], *units[:hidden], *units[2 * hidden :]]
    return weight.index_select(1, torch.tensor(order, device=weight.device))


def _exported(inputs: tuple[Any, ...], attributes: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The nodes of a layer for dynamo=True."""
    x, _, r, *_ = inputs
    (steps, batch), (directions, _, hidden) = x.shape[:2], r.shape
    shapes = ((steps, directions, batch, hidden), (directions, batch, hidden))
    y, h_n = torch.onnx.ops.symbolic_multi_out("GRU", inputs, attributes, dtypes=(x.dtype, x.dtype), shapes=shapes)
    if directions == 1:
        return y.squeeze(1), h_n
    both = (y.transpose(1, 2), torch.tensor([0, 0, -1]))  # 0: as it was
    return torch.onnx.ops.symbolic("Reshape", both, dtype=x.dtype, shape=(steps, batch, 2 * hidden)), h_n


class _Traced(torch.autograd.Function):
    """The nodes of a layer for dynamo=False, and the values that torch.jit.trace goes on with."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        """y and h_n, step by step."""
        x, w, r, b, lengths, h0, attributes, variant = arguments
        weights = [w, r, *((None, None) if b is None else b.chunk(2, 1))]
        weights = [None if kind is None else _swapped(kind, r.shape[2]) for kind in weights]
        h0 = x.new_zeros(len(r), x.shape[1], r.shape[2]) if h0 is None else h0
        real = None if lengths is None else torch.arange(len(x), device=x.device).unsqueeze(1) < lengths
        reset_after = bool(attributes["linear_before_reset"])
        if acting(variant):
            return variants.gru_layers(x, h0, *weights, None, None, real, None, reset_after, variant)[:2]
        return ops.gru_layer(x, h0, *weights, real, None, reset_after, "ieee", "reference")

    @staticmethod
    def symbolic(g: Any, *arguments: Any) -> tuple[Any, Any]:
        """The same as nodes of ONNX."""
        from torch.onnx import symbolic_opset9  # slow to import, and there already

        *inputs, attributes, _ = arguments
        kinds = {int: "i", float: "f", str: "s"}
        named = {
            f"{name}_{kinds[type(value[0] if isinstance(value, list) else value)]}": value
            for name, value in attributes.items()
        }
        given = [symbolic_opset9.unused(g) if each is None else each for each in inputs]
        y, h_n = g.op("GRU", *given, **named, outputs=2)
        if attributes["direction"] == "forward":
            return g.op("Squeeze", y, g.op("Constant", value_t=torch.tensor([1]))), h_n
        shape = g.op("Constant", value_t=torch.tensor([0, 0, -1]))  # 0: as it was
        return g.op("Reshape", g.op("Transpose", y, perm_i=[0, 2, 1, 3]), shape), h_n
