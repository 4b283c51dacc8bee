"""The equations in PyTorch's operators, for whatever the kernels leave to autograd, and for gradients of gradients.

float16 and bfloat16 are computed in float32, as in the kernels: only the results are rounded. Autocast changes nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from grucore import compat
from grucore.kernels import Form, Gates, Gradients, State, Steps, Weights, reference, regularised
from grucore.kernels.regularised import Gains, Variant

_OF_16_BITS = (torch.float16, torch.bfloat16)


def layer(
    x: Tensor,
    state: State,
    weights: Weights,
    gains: Gains | None,
    steps: Steps,
    form: Form,
    variant: Variant | None = None,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor, Gates]:
    """y (T, B, D*H), h_n (D, B, H) and the gates, each (D, T, B, H), of `regularised`, or of `reference`."""
    dtype = x.dtype
    if dtype in _OF_16_BITS:
        x, state, weights = x.float(), State(*_in_float32(state)), Weights(*_in_float32(weights))
        gains = None if gains is None else Gains(*_in_float32(gains))
    with compat.without_autocast(x):
        if variant is None:
            y, h_n, gates = reference.gru_layer(x, state, weights, steps, form)
        else:
            y, h_n, gates = regularised.gru_layer(x, state, weights, gains, steps, form, variant, seed)
    if dtype in _OF_16_BITS:
        y, h_n, gates = y.to(dtype), h_n.to(dtype), Gates(*(gate.to(dtype) for gate in gates))
    return y, h_n, gates


def _in_float32(tensors: tuple[Tensor | None, ...]) -> list[Any]:
    return [None if t is None else t.float() for t in tensors]


def gradients(
    dy: Tensor | None,
    dh_n: Tensor | None,
    x: Tensor,
    state: State,
    weights: Weights,
    gains: Gains | None,
    steps: Steps,
    form: Form,
    variant: Variant | None = None,
    seed: Tensor | None = None,
) -> tuple[Gradients, Gains | None]:
    """The gradients by PyTorch's autograd, so that they can be differentiated again, and vmapped."""
    create_graph = torch.is_grad_enabled()
    with compat.without_autocast(x), torch.enable_grad():
        leaves: list[Any] = [alias(t) for t in (x, *state, *weights, *(gains or ()))]
        norms = None if gains is None else Gains(*leaves[7:])
        of_leaves = leaves[0], State(*leaves[1:3]), Weights(*leaves[3:7])
        y, h_n, _ = layer(*of_leaves, norms, steps, form, variant, seed)
        outs, d_outs = zip(*((out, d) for out, d in ((y, dy), (h_n, dh_n)) if d is not None), strict=True)
        given = [t for t in leaves if t is not None]
        made = iter(torch.autograd.grad(outs, given, d_outs, create_graph=create_graph, materialize_grads=True))
    found: list[Any] = [None if t is None else next(made) for t in leaves]
    return Gradients(*found[:7]), None if gains is None else Gains(*found[7:])


def alias(t: Tensor | None) -> Tensor | None:
    """A separate graph node per input, so that gradients stop here even if one input was computed from another."""
    if t is None:
        return None
    return t.view_as(t) if t.requires_grad else t.detach().requires_grad_()
