"""Makes torch.onnx.export write a layer as a GRU node, with both exporters and without help from the user.

With dynamo=True the node is an operator of torch.export's graph (`torch.onnx.ops`); with dynamo=False it is an
autograd.Function with a `symbolic` method. `onnx_operator.py` describes the operator.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from grucore import ops
from grucore.convert import onnx_operator
from grucore.copies import DENSE
from grucore.errors import InputError
from grucore.kernels import Form, State, Steps, Weights, regularised
from grucore.kernels.regularised import Variant, acting
from grucore.options import Options, variant_of
from grucore.steps import Lengths, as_lengths

_CUT = "split the sequence at the resets, and pass each part its state as hx"
_INSTEAD = {
    "mask": "if the padding is at the end, pass lengths=mask.sum(0), the number of non-padding steps per row",
    "reset": _CUT,
    "reset_state": _CUT,
    "gates": "call the layer instead of trace in the exported model",
}


def says(variant: Variant, heads: int, dtype: torch.dtype, call: Any, wants_gates: bool) -> bool:
    """Whether the node GRU can express the layer.

    If not, dynamo=True writes the layer step by step, and torch.export makes sure that T is not dynamic.

    Args:
        variant: the layer's options beyond the equations.
        heads: the number of heads.
        dtype: the dtype that the layer computes in.
        call: the `functional.Call`.
        wants_gates: whether the gates are wanted.

    Raises:
        InputError: an argument or a dtype that ONNX cannot express, or a variant with dynamo=False, which would
            silently fix T.
    """
    for name, advice in _INSTEAD.items():
        if wants_gates if name == "gates" else getattr(call, name) is not None:
            raise InputError(f"{name} cannot be exported: the ONNX operator GRU cannot express it; {advice}")
    if heads > 1:
        raise InputError(f"heads={heads} cannot be exported: the ONNX operator GRU cannot express it; {DENSE}")
    if dtype not in onnx_operator.DTYPES:
        expected = ", ".join(map(str, onnx_operator.DTYPES))
        raise InputError(f"the ONNX operator GRU takes {expected}, but this one is {dtype}: convert the model first")
    names = [
        name for name in ("activation", "recurrent_activation") if getattr(variant, name) in onnx_operator.ACTIVATIONS
    ]
    unsaid = acting(variant._replace(**{name: Variant._field_defaults[name] for name in names}))
    if unsaid and torch.jit.is_tracing():
        raise InputError(
            f"{' and '.join(unsaid)} cannot be exported with dynamo=False: the ONNX operator GRU cannot express it; "
            "torch.onnx.export(..., dynamo=True) writes such a layer step by step, for a fixed T"
        )
    return not unsaid


def layer(
    x: Tensor,  # (T, B, I)
    h0: Tensor,  # (D, B, H)
    weights: Weights,
    lengths: Lengths | None,
    has_hx: bool,  # whether h0 is given, rather than zeros
    options: Options,
) -> tuple[Tensor, Tensor]:
    """y (T, B, D*H) and h_n (D, B, H) of all directions of one layer, as a node."""
    lengths = None if lengths is None else as_lengths(lengths).to(x.device, torch.int32)
    with warnings.catch_warnings():
        if torch.jit.is_tracing():  # the tracer warns that D and H might depend on the input; they do not
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
        directions, hidden = int(h0.shape[0]), int(weights.w_hh.shape[2])
        w, r, *biases = (_swapped(kind, hidden) for kind in weights if kind is not None)
        b = torch.cat(biases, 1) if biases else None
        attributes = onnx_operator.attributes(
            hidden_size=hidden,
            directions=directions,
            reset_after=options.reset_after,
            activation=options.activation,
            recurrent_activation=options.recurrent_activation,
        )
        inputs = (x, w, r, b, lengths, h0 if has_hx else None)
        if torch.jit.is_tracing():
            y, h_n = _Traced.apply(*inputs, attributes, variant_of(options, training=False))
        else:
            y, h_n = _exported(inputs, attributes)
        if has_hx and lengths is not None:  # ONNX leaves h_n of a row of length 0 undefined
            h_n = torch.where((lengths == 0).unsqueeze(-1), h0, h_n)
    return y, h_n


def _swapped(weight: Tensor, hidden: int) -> Tensor:
    """Swaps (D, r|z|n, ...) and (D, z|r|n, ...) with a single operator, which exporters fold into the weights."""
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
    both = (y.transpose(1, 2), torch.tensor([0, 0, -1], device="cpu"))  # 0: unchanged
    return torch.onnx.ops.symbolic("Reshape", both, dtype=x.dtype, shape=(steps, batch, 2 * hidden)), h_n


class _Traced(torch.autograd.Function):
    """The nodes of a layer for dynamo=False, and the values that torch.jit.trace continues with."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        """y and h_n, step by step."""
        x, w, r, b, lengths, h0, attributes, variant = arguments
        weights = Weights(*(_swapped(kind, r.shape[2]) for kind in (w, r, *(() if b is None else b.chunk(2, 1)))))
        state = State(x.new_zeros(len(r), x.shape[1], r.shape[2]) if h0 is None else h0)
        steps = Steps(None if lengths is None else torch.arange(len(x), device=x.device).unsqueeze(1) < lengths)
        form = Form(bool(attributes["linear_before_reset"]))
        if acting(variant):
            return regularised.gru_layer(x, state, weights, None, steps, form, variant)[:2]
        return ops.layer(x, state, weights, None, steps, form, "eager")

    @staticmethod
    def symbolic(g: Any, *arguments: Any) -> tuple[Any, Any]:
        """The layer as nodes of ONNX."""
        from torch.onnx import symbolic_opset9  # slow to import, but already imported here

        *inputs, attributes, _ = arguments
        kinds = {int: "i", float: "f", str: "s"}
        named = {
            f"{name}_{kinds[type(value[0] if isinstance(value, list) else value)]}": value
            for name, value in attributes.items()
        }
        given = [symbolic_opset9.unused(g) if each is None else each for each in inputs]
        y, h_n = g.op("GRU", *given, **named, outputs=2)
        shape = g.op("Constant", value_t=torch.tensor([0, 0, -1], device="cpu"))  # 0: unchanged
        return g.op("Reshape", g.op("Transpose", y, perm_i=[0, 2, 1, 3]), shape), h_n
