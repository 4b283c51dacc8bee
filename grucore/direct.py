"""The fast path to the native kernels, for plain calls of layers without extra options.

Most calls are plain, and for a small layer the general path, `functional.run`, takes longer than the kernel. Each
function here returns None if anything is not plain; the caller then takes the general path, which also reports errors.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import Parameter

from grucore import compat
from grucore.autograd import native_layer, native_step
from grucore.checks import check_recordable
from grucore.kernels import Form, State, Steps
from grucore.kernels.native import call as native
from grucore.kernels.native.library import LIBRARY
from grucore.names import of_weights, parameter_names
from grucore.steps import steps_of

_PLAIN = {Tensor, Parameter}
_DTYPES = {torch.float32, torch.float64}
_names = functools.cache(parameter_names)  # never under torch.compile, which warns of caches
_ALL_STEPS, _FORMS = Steps(), {after: Form(after) for after in (True, False)}


def forward(layer: Any, input: Tensor, hx: Tensor | None, lengths: Any = None) -> tuple[Tensor, Tensor] | None:
    """Computes `GRU.forward` for input (T, B, I) or (B, T, I) without mask and resets."""
    if not _is_plain_layer(layer) or type(input) is not Tensor or input.dim() != 3 or layer.learn_initial_state:
        return None
    if isinstance(lengths, Tensor) and type(lengths) is not Tensor:  # it may have no memory
        return None
    K, D, H = layer.num_layers, 2 if layer.bidirectional else 1, layer.hidden_size
    x = input.transpose(0, 1) if layer.batch_first else input
    T, B, I = x.shape  # noqa: E741
    groups = _groups(layer, _names(K, D, of_weights(layer.bias)))
    if not T or (layer.dropout and layer.training and K > 1) or not _fit(groups, D, input, I, hx, (K * D, B, H)):
        return None
    wants_gradient = _wants_gradient(input, hx, groups)
    h0, form = input.new_zeros(K * D, B, H) if hx is None else hx, _FORMS[layer.reset_after]
    steps = _ALL_STEPS if lengths is None else steps_of(T, B, input.device, lengths)
    if K == 1:
        x, h_n = native_layer(x, State(h0), groups, steps, form, wants_gradient)
    else:
        states = []
        for k in range(0, K * D, D):
            x, h = native_layer(x, State(h0[k : k + D]), groups[k : k + D], steps, form, wants_gradient)
            states.append(h)
        h_n = torch.cat(states)
    return x.transpose(0, 1) if layer.batch_first else x, h_n


def step(layer: Any, input: Tensor, hx: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """Computes `GRU.step` for input (B, I)."""
    if not _is_plain_layer(layer) or type(input) is not Tensor or input.dim() != 2 or layer.learn_initial_state:
        return None
    K, (B, I), H = layer.num_layers, input.shape, layer.hidden_size  # noqa: E741
    groups = _groups(layer, _names(K, 1, of_weights(layer.bias)))
    has_dropout = layer.dropout and layer.training and K > 1
    if layer.bidirectional or has_dropout or not layer.reset_after or not _fit(groups, 1, input, I, hx, (K, B, H)):
        return None
    wants_gradient = _wants_gradient(input, hx, groups)
    h0 = input.new_zeros(K, B, H) if hx is None else hx
    y, states = input, []
    for k, group in enumerate(groups):
        y = _step(y, h0[k], group, wants_gradient)
        states.append(y)
    return y, torch.stack(states)


def cell(layer: Any, input: Tensor, hx: Tensor | None) -> Tensor | None:
    """Computes `GRUCell.forward` for input (B, I)."""
    if not _is_plain_layer(layer) or type(input) is not Tensor or input.dim() != 2 or not layer.reset_after:
        return None
    (B, I), H = input.shape, layer.hidden_size  # noqa: E741
    groups = _groups(layer, [of_weights(layer.bias)])
    if not _fit(groups, 1, input, I, hx, (B, H)):
        return None
    h = input.new_zeros(B, H) if hx is None else hx
    return _step(input, h, groups[0], _wants_gradient(input, hx, groups))


def _step(x: Tensor, h: Tensor, group: Any, wants_gradient: bool) -> Tensor:
    if wants_gradient:
        return native_step(x, h, group, True)
    y = x.new_empty(h.shape)
    native.step(x, h, group, y)
    return y


def _is_plain_layer(layer: Any) -> bool:
    """Whether nothing observes the call, and the layer has no options beyond the equations."""
    if torch.compiler.is_compiling() or LIBRARY is None or not compat.is_unwatched():
        return False
    return not (
        layer.backend not in ("auto", "native")
        or layer.zoneout
        or layer.recurrent_dropout
        or layer.layer_norm
        or layer.activation != "tanh"
        or layer.recurrent_activation != "sigmoid"
    )


def _groups(layer: Any, names: Sequence[Sequence[str]]) -> list[list[Any]]:
    """The parameters of those names; None for a parametrised one."""
    parameters = layer._parameters
    return [[parameters.get(name) for name in group] for group in names]


def _fit(groups: Sequence[Any], D: int, input: Tensor, I: int, hx: Any, states: tuple[int, ...]) -> bool:  # noqa: E741
    """Whether the kernels can read all tensors, and their sizes match."""
    *_, B, H = states
    dtype = input.dtype
    if dtype not in _DTYPES or not B or not I or not H:
        return False
    for i, group in enumerate(groups):
        for t in (input, *group) if hx is None or i else (input, hx, *group):
            if type(t) not in _PLAIN or t.dtype is not dtype or not t.is_cpu or t.layout is not torch.strided:
                return False
        if group[0].shape != (3 * H, I if i < D else D * H) or group[1].shape != (3 * H, H):
            return False
        if len(group) == 4 and not group[2].shape == group[3].shape == (3 * H,):
            return False
    return hx is None or hx.shape == states


def _wants_gradient(input: Tensor, hx: Tensor | None, groups: Sequence[Sequence[Tensor]]) -> bool:
    """Whether the call needs gradients.

    Raises:
        InputError: it does, but a tensor cannot be saved for backward.
    """
    if not torch.is_grad_enabled():
        return False
    tensors = [input, *chain.from_iterable(groups)] if hx is None else [input, hx, *chain.from_iterable(groups)]
    check_recordable(*tensors)
    return any(t.requires_grad for t in tensors)
