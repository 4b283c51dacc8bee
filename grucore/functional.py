"""The GRU as functions of tensors: `gru` for whole sequences, `gru_cell` for one step.

Both are time-major and batched. `grucore.GRU` and `grucore.GRUCell` hold the parameters and take every layout that
torch.nn.GRU takes.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import dropout as apply_dropout
from torch.nn.functional import linear
from torch.nn.parameter import Parameter

from grucore import autograd, compat, dispatch, equations, ops
from grucore.checks import (
    Group,
    check_alike,
    check_gains,
    check_groups,
    check_recordable,
    check_reset_state,
    check_sequence,
    check_weights,
)
from grucore.errors import InputError, check_flag, check_tensor, differ
from grucore.kernels import Gates, State, Steps, Weights, reference
from grucore.kernels.eager.bptt import gru_step
from grucore.kernels.heads import joined, of_heads, states_of_heads
from grucore.kernels.regularised import Gains, acting
from grucore.options import DEFAULTS, OF_CELL, Options, form_of, variant_of
from grucore.steps import Lengths, steps_of


class Stack(NamedTuple):
    """K*D groups of parameters and how to apply them, as `gru` takes them."""

    weights: Sequence[Group]
    layer_norms: Sequence[Group] | None
    options: Options
    training: bool


class Call(NamedTuple):
    """The lengths, mask and resets of a call, as `gru` takes them."""

    lengths: Lengths | None = None
    mask: Tensor | None = None
    reset: Tensor | None = None
    reset_state: Tensor | None = None


class Result(NamedTuple):
    """The results of a stack of layers."""

    y: Tensor  # (T, B, D*H)
    h_n: Tensor  # (K*D, B, H)
    gates: Gates | None  # each (K*D, T, B, H), 0 at padding; None unless wanted
    layers: list[Tensor]  # each layer's output, (T, B, D*H)


def gru(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Group],
    *,
    training: bool = False,
    lengths: Lengths | None = None,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
    layer_norms: Sequence[Group] | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """A stack of GRU layers over a time-major batch; the equations are in `GRU`. K layers, D directions.

    Args:
        input: shape (T, B, I).
        hx: the initial state, shape (K*D, B, H), or None for zeros.
        weights: K*D groups (w_ih, w_hh) or (w_ih, w_hh, b_ih, b_hh), as `GRU.all_weights`: gates in the order r, z, n.
            With heads w_hh has shape (heads, 3H/heads, H/heads).
        training: whether dropout, recurrent dropout and zoneout draw random masks; otherwise their expectation is used.
        lengths: shape (B,), integers from 0 to T, in any order and on any device: steps from there on are padding.
        mask: shape (T, B), bool, False at padding, in any pattern. At padding steps the state is unchanged, the output
            is 0 and no gradient flows, even if the input there is NaN.
        reset: shape (T, B), bool: before a step where it is True, the state goes back to hx, in both directions.
        reset_state: shape (K, B, H): the state that resets go to instead of hx, for unidirectional layers. It serves
            batches that carry hx over from the batch before, while new episodes begin from reset_state.
        layer_norms: the gains of W x and of W h for each group of weights, each (3H,): both are normalised over their
            3H values before the biases are added.
        **options: bidirectional, dropout, reset_after, heads, recurrent_dropout, zoneout, activation,
            recurrent_activation, precision and backend, as in `GRU`.

    Under torch.autocast all but float64 is cast to its dtype, as for linear layers; the state and sums are kept
    in float32 internally.

    Returns:
        y, shape (T, B, D*H), and h_n, shape (K*D, B, H): the state after each row's last step that is not padding.

    Raises:
        InputError: (a ValueError and RuntimeError) a wrong size or value.
        TypeError: a wrong dtype or type, or an unknown option.
        RuntimeError: an explicit backend that cannot run.

    Example:
        >>> x, weights = torch.ones(5, 2, 3), [(torch.ones(12, 3), torch.ones(12, 4))]
        >>> y, h_n = gru(x, None, weights, lengths=[5, 2])
        >>> y.shape, h_n.shape, int(y[2:, 1].count_nonzero())
        (torch.Size([5, 2, 4]), torch.Size([1, 2, 4]), 0)
    """
    if own := {"num_layers", "bias", "batch_first", "layer_norm", "learn_initial_state"} & options.keys():
        raise TypeError(f"gru takes no {' or '.join(sorted(own))}: its weights and its input determine them")
    if unknown := options.keys() - DEFAULTS.keys():
        raise TypeError(f"gru takes no {' or '.join(sorted(unknown))}")
    check_flag("training", training)
    chosen = Options(**options, layer_norm=layer_norms is not None).checked()
    call = Call(lengths, mask, reset, reset_state)
    y, h_n, _, _ = run(input, hx, Stack(weights, layer_norms, chosen, training), call)
    return y, h_n


def run(input: Tensor, hx: Tensor | None, stack: Stack, call: Call, wants_gates: bool = False) -> Result:
    """`gru` with checked options."""
    x, h0, h_reset, weights, layer_norms, steps, request = _prepared(input, hx, stack, call, wants_gates)
    choice = dispatch.choose(stack.options.backend, request)
    if choice.name == "onnx":
        from grucore.convert import onnx_trace

    options, training = stack.options, stack.training
    D, heads = request.sizes[2], options.heads
    keep = request.wants_gradient and not torch.jit.is_tracing()  # a trace holds for calls of both kinds
    acts = variant_of(options, training) if request.regularised else None
    is_direct = request.is_plain and not (request.is_transformed or torch.is_autocast_enabled(x.device.type))
    h_n, gates = [], []
    layers: list[Tensor] = []
    starts = h0.split(parts := [D] * (len(weights) // D))  # which a trace checks, unlike slices
    resets = (None,) * len(parts) if h_reset is None else h_reset.split(parts)
    for k, state in enumerate(map(State, starts, resets)):
        if layers:
            x = apply_dropout(x, options.dropout, training=training)
        these = slice(k * D, (k + 1) * D)
        groups, norms, layer_gates = weights[these], None if layer_norms is None else layer_norms[these], None
        if choice.name == "native" and request.is_plain:
            x, h = autograd.native_layer(x, state, groups, steps, request.form, request.wants_gradient, acts, norms)
        elif choice.name == "onnx":
            x, h = onnx_trace.layer(x, state.h0, _weights(groups), call.lengths, hx is not None, options)
        elif choice.name in ("reference", "regularised"):
            x, h, layer_gates = equations.layer(x, state, _weights(groups), _gains(norms), steps, request.form, acts)
        elif is_direct:
            wants_gradient = request.wants_gradient
            x, h = autograd.layer(x, state, _weights(groups), steps, request.form, choice.name, wants_gradient, acts)
        else:
            of_layer = _weights(groups), _gains(norms), steps, request.form
            x, h = ops.layer(x, state, *of_layer, choice.name, keep, acts)
        h_n.append(h)
        gates.append(layer_gates)
        layers.append(x)
    all_gates = Gates(*(torch.cat(gate) for gate in zip(*gates, strict=True))) if wants_gates else None
    last = h_n[0] if len(h_n) == 1 else torch.cat(h_n)
    if heads > 1:
        last = joined(last, heads)
        all_gates = None if all_gates is None else Gates(*(joined(gate, heads) for gate in all_gates))
    return Result(x, last, all_gates, layers)


def explain(input: Tensor, hx: Tensor | None, stack: Stack, call: Call) -> dispatch.Choice:
    """The implementation that `run` takes for the same arguments, and why."""
    return dispatch.choose(stack.options.backend, _prepared(input, hx, stack, call, wants_gates=False).request)


class _Prepared(NamedTuple):
    """A call whose arguments fit, in the dtype that it computes in; of heads, each counts as a recurrence."""

    x: Tensor
    h0: Tensor
    h_reset: Tensor | None
    weights: Sequence[Group]
    layer_norms: Sequence[Group] | None
    steps: Steps
    request: dispatch.Request


def _prepared(input: Tensor, hx: Tensor | None, stack: Stack, call: Call, wants_gates: bool) -> _Prepared:
    weights, layer_norms, options, training = stack
    D, heads = 2 if options.bidirectional else 1, options.heads
    T, B, H = check_sequence(input, hx, call.reset_state, weights, D, heads)
    check_reset_state(call.reset_state, call.reset, options.bidirectional, (len(weights), B, H))
    if layer_norms is not None:
        check_gains(layer_norms, weights)
    steps = steps_of(T, B, input.device, call.lengths, call.mask, call.reset)
    if (dtype := compat.autocast_dtype(input, weights[0][0])) is not None:
        input, weights = input.to(dtype), [[w.to(dtype) for w in group] for group in weights]
    h0 = input.new_zeros(len(weights), B, H) if hx is None else hx.to(input.dtype)
    h_reset = None if call.reset_state is None else call.reset_state.to(input.dtype)
    parameters = [w for group in (*weights, *(layer_norms or ())) for w in group]
    check_recordable(input, h0, *parameters)
    wants_gradient = _wants_gradient((input, h0, h_reset, *parameters))
    is_plain = are_plain((input, h0, h_reset, *steps, *parameters))
    form, variant = form_of(options, input.device), variant_of(options, training)
    is_node = False
    if compat.in_onnx_export():
        from grucore.convert import onnx_trace

        is_node = onnx_trace.says(variant, heads, input.dtype, call, wants_gates)
    if heads > 1:
        h0 = states_of_heads(h0, heads)
        h_reset = None if h_reset is None else states_of_heads(h_reset, heads)
        weights = of_heads(weights, heads)
        layer_norms = None if layer_norms is None else of_heads(layer_norms, heads)
    request = dispatch.Request(
        input.device,
        input.dtype,
        H // heads,
        form,
        (T, B, D * heads),
        acting(variant),
        training=training,
        has_steps=steps.real is not None or steps.start is not None,
        wants_gates=wants_gates,
        wants_gradient=wants_gradient,
        is_plain=is_plain,
        is_transformed=compat.transformed() or any(type(t).__name__ == "DTensor" for t in (input, *parameters)),
        is_onnx_node=is_node,
    )
    return _Prepared(input, h0, h_reset, weights, layer_norms, steps, request)


def gru_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    training: bool = False,
    layer_norms: Group | None = None,
    **options: Any,
) -> Tensor:
    """The state after one step; the equations are in `GRU`.

    Args:
        input: shape (B, I), or (I,).
        hx: shape (B, H), or (H,).
        w_ih: shape (3H, I), gates in the order r, z, n.
        w_hh: shape (3H, H), with heads (heads, 3H/heads, H/heads).
        b_ih: shape (3H,) or None.
        b_hh: shape (3H,) or None.
        training: whether zoneout draws random masks; otherwise its expectation is used.
        layer_norms: the gains of W x and of W h, each (3H,), see `gru`.
        **options: reset_after, heads, zoneout, activation, recurrent_activation, precision and backend, as in `GRU`;
            with "triton" a single launch computes the step, unless there are heads or zoneout.

    Returns:
        The new state, shaped as hx.

    Raises:
        InputError: a wrong size or value.
        TypeError: a wrong type, or an unknown option.
        RuntimeError: an explicit backend that cannot run.

    Example:
        >>> gru_cell(torch.ones(2, 3), torch.zeros(2, 4), torch.ones(12, 3), torch.ones(12, 4)).shape
        torch.Size([2, 4])
    """
    if unknown := options.keys() - set(OF_CELL) | {"bias", "layer_norm"} & options.keys():
        raise TypeError(f"gru_cell takes no {' or '.join(sorted(unknown))}")
    if (b_ih is None) != (b_hh is None):
        raise InputError("give both b_ih and b_hh, or neither")
    check_flag("training", training)
    weights = [w_ih, w_hh] if b_ih is None or b_hh is None else [w_ih, w_hh, b_ih, b_hh]
    chosen = Options(**options, layer_norm=layer_norms is not None).checked()
    return step(input, hx, weights, layer_norms, chosen, training)


def step(
    input: Tensor,  # (..., I)
    hx: Tensor,  # (..., H)
    weights: Group,
    layer_norms: Group | None,
    options: Options,
    training: bool,
) -> Tensor:
    """`gru_cell` with checked options."""
    hidden_size = check_groups([weights], 1, options.heads)
    check_tensor("hx", hx)
    check_alike(input, hx, weights[0])
    if not input.dim():
        raise InputError("input must be (B, I) or (I,), got a tensor without dimensions")
    check_weights(weights, input.shape[-1], hidden_size, options.heads)
    if differ(hx.shape, expected := (*input.shape[:-1], hidden_size)):
        raise InputError(f"hx must have shape {expected}, got {tuple(hx.shape)}")
    if layer_norms is not None:
        check_gains([layer_norms], [weights])
    check_recordable(input, hx, *weights, *(layer_norms or ()))
    if (dtype := compat.autocast_dtype(input, weights[0])) is not None:
        input, weights = input.to(dtype), [w.to(dtype) for w in weights]
    hx = hx.to(input.dtype)
    form, variant = form_of(options, input.device), variant_of(options, training)
    tensors = (input, hx, *weights, *(layer_norms or ()))
    request = dispatch.Request(
        input.device,
        input.dtype,
        hidden_size,
        form,
        (1, input.shape[0] if input.dim() == 2 else 1, 1),
        acting(variant),
        training=training,
        wants_gradient=_wants_gradient(tensors),
        is_plain=dtype is None and are_plain(tensors),
        is_transformed=compat.transformed(),
    )
    # Without gradients memory is used again; 16-bit types and autocast have their own rules. A trace, and what is
    # exported, hold for calls with gradients too.
    in_place = (
        not request.wants_gradient
        and dtype is None
        and input.dtype in (torch.float32, torch.float64)
        and form.reset_after
        and input.dim() == 2
        and not (request.is_transformed or torch.jit.is_tracing() or compat.in_onnx_export())
    )
    if options.heads > 1:  # to the kernels each head is a call: for a step on a CPU, operators over all heads are less
        is_left = options.backend == "auto" and input.device.type == "cpu" and not request.regularised
        if is_left and in_place:
            return gru_step(input, hx, Weights(*weights))
        return _step_as_sequence(input, hx, weights, layer_norms, options, training)
    choice = dispatch.choose_step(options.backend, request, in_place)
    is_bare = form.reset_after and input.dim() == 2 and dispatch.is_step_native(request.regularised)
    if choice.name == "native" and request.is_plain and is_bare:
        acts = variant if request.regularised else None
        return autograd.native_step(input, hx, weights, request.wants_gradient, acts, layer_norms)
    if choice.name == "triton" and request.is_plain and is_bare and not request.wants_gradient:
        return ops.kernels("triton", "step").gru_step(input, hx, Weights(*weights), form.precision)
    if choice.name == "eager" and in_place:
        return gru_step(input, hx, Weights(*weights))
    if choice.name == "regularised":
        x, h = (torch.atleast_2d(t).flatten(0, -2).unsqueeze(0) for t in (input, hx))
        norms = _gains(None if layer_norms is None else [layer_norms])
        return equations.layer(x, State(h), _weights([weights]), norms, Steps(), form, variant)[1].view(hx.shape)
    if choice.name == "reference":
        b_ih, b_hh = weights[2:] if len(weights) == 4 else (None, None)
        gx = linear(input, weights[0], b_ih)
        return reference.gru_update(reference.gru_gates(gx, hx, weights[1], b_hh, form.reset_after), hx)
    return _step_as_sequence(input, hx, weights, layer_norms, options, training)


def _step_as_sequence(
    input: Tensor, hx: Tensor, weights: Group, layer_norms: Group | None, options: Options, training: bool
) -> Tensor:
    x, h = (torch.atleast_2d(t).flatten(0, -2).unsqueeze(0) for t in (input, hx))  # B, I or H may be 0
    norms = None if layer_norms is None else [layer_norms]
    return run(x, h, Stack([weights], norms, options, training), Call()).h_n.view(hx.shape)


def _wants_gradient(tensors: Iterable[Tensor | None]) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def are_plain(tensors: Iterable[Tensor | None], devices: tuple[str, ...] = ("cpu", "cuda")) -> bool:
    """Whether a call may go to a kernel past PyTorch's dispatcher: nobody would see that it did."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or compat.in_dispatch_mode():
        return False
    return all(
        t is None or (type(t) in _PLAIN and t.device.type in devices and t.layout is torch.strided) for t in tensors
    )


_PLAIN = {Tensor, Parameter}


def _weights(groups: Sequence[Group]) -> Weights:
    return Weights(*autograd.stacked(groups))


def _gains(groups: Sequence[Group] | None) -> Gains | None:
    return None if groups is None else Gains(*autograd.stacked(groups))
