"""The GRU as functions of tensors: `gru` for whole sequences, `gru_cell` for one step.

Both are time-major and batched. `grucore.GRU` and `grucore.GRUCell` hold the parameters and take every layout that
torch.nn.GRU takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.amp import is_autocast_available
from torch.nn.functional import dropout as apply_dropout
from torch.nn.functional import linear

from grucore import backend as backends
from grucore import flops, ops, resets
from grucore.errors import InputError, check_flag, check_probability, differ
from grucore.exporting import in_onnx_export
from grucore.kernels import bptt, reference, variants
from grucore.kernels.reference import Gates
from grucore.kernels.variants import ACTIVATIONS, Variant, acting
from grucore.sequence import Flags, flags
from grucore.transforms import transformed

# Asked once: before torch 2.12 torch.compile could not trace the question.
_DEVICES = ("cpu", "cuda", "mps", "xpu", "hpu", "mtia", "maia", torch._C._get_privateuse1_backend_name())
_AUTOCAST_DEVICES = [each for each in _DEVICES if is_autocast_available(each)]

Weights = Sequence[Tensor]  # w_ih (3H, I), w_hh (3H, H) and, unless there are no biases, b_ih and b_hh (3H,)


def gru(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Weights],
    *,
    bidirectional: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Tensor | Sequence[int] | None = None,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
    reset_after: bool = True,
    recurrent_dropout: float = 0.0,
    zoneout: float = 0.0,
    layer_norms: Sequence[tuple[Tensor, Tensor]] | None = None,
    activation: str = "tanh",
    recurrent_activation: str = "sigmoid",
    return_gates: bool = False,
    return_all_layers: bool = False,
    precision: str | None = None,
    backend: str = "auto",
) -> Any:
    r"""A stack of GRU layers over a time-major batch.

    .. math::
        r &= \sigma(W_{ir} x_t + b_{ir} + W_{hr} h_{t-1} + b_{hr}) \\
        z &= \sigma(W_{iz} x_t + b_{iz} + W_{hz} h_{t-1} + b_{hz}) \\
        n &= \tanh(W_{in} x_t + b_{in} + r \odot (W_{hn} h_{t-1} + b_{hn})) \\
        h_t &= (1 - z) \odot n + z \odot h_{t-1}

    K layers, D directions (2 if bidirectional, else 1). Source: Cho et al. 2014 (arXiv:1406.1078), as in torch.nn.GRU.

    Args:
        input: shape (T, B, I).
        hx: the initial state, shape (K*D, B, H), or None for zeros.
        weights: K*D groups (w_ih, w_hh) or (w_ih, w_hh, b_ih, b_hh), as `GRU.all_weights`: gates in the order r, z, n.
        bidirectional: each layer also runs from the end; `weights` then holds two groups a layer.
        dropout: probability of zeroing an element of each layer's output but the last, where `training`.
        training: whether dropout, recurrent dropout and zoneout act; else they take their expectation.
        lengths: shape (B,), integers from 0 to T, any order and device: steps from there on are padding.
        mask: shape (T, B), bool, True for a real step; any pattern. A step that is not real holds the state, outputs 0
            and passes no gradient, whatever the input holds there.
        reset: shape (T, B), bool: before such a step the state goes back to hx, for both directions.
        reset_state: shape (K, B, H): what resets go to instead of hx, in one direction: a batch that carries hx on from
            the one before begins its new episodes there.
        reset_after: False for the paper's form, n = tanh(W_in x + b_in + W_hn (r * h) + b_hn).
        recurrent_dropout: probability of dropping a unit from the products with h, for all steps of a row.
        zoneout: probability of a unit keeping its state in a step.
        layer_norms: the gains of W x and of W h for each group of weights, each (3H,): both are normalised over their
            3H values before the biases are added. Not with reset_after=False.
        activation: of the candidate n; a name in `grucore.kernels.variants.ACTIVATIONS`.
        recurrent_activation: of the gates r and z, likewise.
        return_gates: also return the gates of all layers.
        return_all_layers: also return the outputs of all layers.
        precision: of float32 products on a GPU: "ieee", "tf32", or None for what torch.backends.cudnn.allow_tf32 says.
        backend: "auto", "triton" or "reference".

    What `kernels/variants.py` adds (recurrent_dropout to recurrent_activation), gates, torch.func and forward-mode
    differentiation run step by step in PyTorch. Under torch.autocast everything is cast to its dtype, as linear layers
    are; state and sums stay float32 inside.

    Returns:
        y, shape (T, B, D*H); h_n, shape (K*D, B, H): the state after each row's last real step; then, if asked,
        Gates(r, z, n), each (K*D, T, B, H), 0 where a step is not real; and the outputs of all layers, shape
        (K, T, B, D*H).

    Raises:
        InputError: (a ValueError and RuntimeError) a size or value that does not fit.
        TypeError: a dtype or type that does not fit.
        RuntimeError: an explicit backend that cannot run.

    Example:
        >>> x, weights = torch.ones(5, 2, 3), [(torch.ones(12, 3), torch.ones(12, 4))]
        >>> y, h_n = gru(x, None, weights, lengths=[5, 2])
        >>> y.shape, h_n.shape, int(y[2:, 1].count_nonzero())
        (torch.Size([5, 2, 4]), torch.Size([1, 2, 4]), 0)
    """
    flags_given = {"bidirectional": bidirectional, "training": training, "reset_after": reset_after}
    flags_given |= {"return_gates": return_gates, "return_all_layers": return_all_layers}
    for name, flag in flags_given.items():
        check_flag(name, flag)
    check_probability("dropout", dropout)
    directions = 2 if bidirectional else 1
    steps, batch, hidden_size = _check_sequence(input, hx, weights, directions)
    _check_reset_state(reset_state, reset, bidirectional, (len(weights), batch, hidden_size))
    variant = Variant(recurrent_dropout, zoneout, layer_norms is not None, activation, recurrent_activation, training)
    check_variant(variant, reset_after)
    if layer_norms is not None:
        _check_gains(layer_norms, weights)
    precision = backends.resolve_precision(precision)
    per_step = flags(steps, batch, input.device, lengths, mask, reset)
    x = input
    if (dtype := _autocast_dtype(x.device)) is not None:
        x, weights = x.to(dtype), [[w.to(dtype) for w in group] for group in weights]
    node = None  # of an ONNX graph, in the place of a layer's computation
    if in_onnx_export():
        from grucore.convert.onnx_trace import node_for

        others = {"mask": mask, "reset": reset, "reset_state": reset_state, "return_gates": return_gates}
        node = node_for(variant, reset_after, x.dtype, hx is not None, lengths, others)
    hx = x.new_zeros(len(weights), batch, hidden_size) if hx is None else hx.to(x.dtype)
    if reset_state is not None:
        x, hx, per_step = resets.doubled(x, hx, reset_state, per_step)
    _check_recordable(x, hx, *(w for group in weights for w in group))
    by_steps = return_gates or transformed()
    extras = beyond_the_recurrence(variant, return_gates)
    chosen = backends.choose(backend, x.device, x.dtype, hidden_size, reset_after, precision, extras)

    h_n, gates, outputs = [], [], []
    for layer in range(len(weights) // directions):
        if layer > 0 and training and dropout > 0:
            x = apply_dropout(x, dropout, training=True)
        these = slice(layer * directions, (layer + 1) * directions)
        layer_weights = _stacked(weights[these], 4)
        if node is not None:
            x, h, layer_gates = node(x, hx[these], layer_weights)
        elif acting(variant):
            norms = _stacked([] if layer_norms is None else layer_norms[these], 2)
            x, h, layer_gates = variants.gru_layers(
                x, hx[these], *layer_weights, *norms, *per_step, reset_after, variant
            )
        else:
            x, h, layer_gates = _gru_layer(
                x, hx[these], layer_weights, per_step, reset_after, precision, by_steps, chosen.name
            )
        h_n.append(h)
        gates.append(layer_gates)
        outputs.append(x)
    results: list[Any] = [x, h_n[0] if len(h_n) == 1 else torch.cat(h_n)]
    if return_gates:
        results.append(Gates(*(torch.cat(gate) for gate in zip(*gates, strict=True))))
    if return_all_layers:
        results.append(torch.stack(outputs))
    return tuple(results) if reset_state is None else resets.merged(tuple(results), per_step)


def gru_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    reset_after: bool = True,
    precision: str | None = None,
    backend: str = "auto",
) -> Tensor:
    """The state after one step.

    Args:
        input: shape (B, I).
        hx: shape (B, H).
        w_ih: shape (3H, I), gates in the order r, z, n.
        w_hh: shape (3H, H).
        b_ih: shape (3H,) or None.
        b_hh: shape (3H,) or None.
        reset_after: see `gru`.
        precision: see `gru`.
        backend: see `gru`; on "triton" one launch computes the step.

    Returns:
        The new state, shape (B, H).

    Raises:
        InputError: a size that does not fit.

    Example:
        >>> gru_cell(torch.ones(2, 3), torch.zeros(2, 4), torch.ones(12, 3), torch.ones(12, 4)).shape
        torch.Size([2, 4])
    """
    check_tensor("input", input)
    check_tensor("hx", hx)
    if (b_ih is None) != (b_hh is None):
        raise InputError("b_ih and b_hh must be given together or not at all")
    biases = [] if b_ih is None or b_hh is None else [b_ih, b_hh]
    weights = [w_ih, w_hh, *biases]
    _check_weights(weights, input.shape[-1], w_hh.shape[-1])
    options: dict[str, Any] = {"reset_after": reset_after, "precision": precision, "backend": backend}
    if backend == "triton" or input.device.type != "cpu":
        steps, states = input.reshape(1, -1, input.shape[-1]), hx.reshape(1, -1, hx.shape[-1])
        return gru(steps, states, [weights], **options)[1].view(hx.shape)
    _check_recordable(input, hx, *weights)
    # Without gradients memory is used again, which has no rule in torch.func; 16-bit types and autocast have their own.
    # A trace holds for calls with gradients too.
    unused = not (torch.is_grad_enabled() and any(t.requires_grad for t in (input, hx, *weights)))
    plain = input.dtype is hx.dtype in (torch.float32, torch.float64) and _autocast_dtype(input.device) is None
    exported = torch.jit.is_tracing() or in_onnx_export()
    if unused and plain and reset_after and input.dim() == 2 and not transformed() and not exported:
        return bptt.gru_step(input, hx, w_ih, w_hh, b_ih, b_hh)
    return reference.gru_update(reference.gru_gates(linear(input, w_ih, b_ih), hx, w_hh, b_hh, reset_after), hx)


def _stacked(groups: Sequence[Sequence[Tensor]], kinds: int) -> list[Any]:
    """One tensor (D, ...) for each kind in the groups of D directions, None for kinds that are not there.

    With one direction a view, with two a copy, small beside the layer's work.
    """
    stacked = [kind[0].unsqueeze(0) if len(kind) == 1 else torch.stack(kind) for kind in zip(*groups, strict=True)]
    return [*stacked, *[None] * (kinds - len(stacked))]


def _gru_layer(
    x: Tensor,
    h0: Tensor,
    weights: list[Any],
    per_step: Flags,
    reset_after: bool,
    precision: str,
    step_by_step: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Gates | None]:
    """All directions of one layer on the chosen backend, or step by step, which gives the gates too."""
    arguments: list[Any] = [x, h0, *weights, *per_step, reset_after]
    # Without fused kernels flags are read on the host; on a device that would make the host wait: the reference does
    # not.
    waits = backend == "reference" and x.device.type != "cpu" and per_step != Flags()
    if step_by_step or waits:
        return reference.gru_layers(*arguments)
    if not torch.compiler.is_compiling():
        flops.register()
    return *ops.gru_layer(*arguments, precision, backend), None


def _check_sequence(
    input: Tensor, hx: Tensor | None, weights: Sequence[Weights], directions: int
) -> tuple[int, int, int]:
    """T, B and H.

    Raises:
        InputError: a size that does not fit.
        TypeError: a dtype that does not fit.
    """
    check_tensor("input", input)
    if input.dim() != 3:
        raise InputError(f"input must have 3 dimensions (T, B, I), got {input.dim()}: {tuple(input.shape)}")
    if not weights or len(weights) % directions:
        raise InputError(f"weights must hold {directions} group(s) a layer, got {len(weights)} group(s)")
    steps, batch, input_size = input.shape
    hidden_size = weights[0][1].shape[-1]
    for i, group in enumerate(weights):
        _check_weights(group, input_size if i < directions else directions * hidden_size, hidden_size)
    dtype, device = weights[0][0].dtype, weights[0][0].device
    for name, tensor in (("input", input), ("hx", hx)):
        if tensor is None:
            continue
        check_tensor(name, tensor)
        differs = tensor.dtype != dtype if name == "input" else not tensor.is_floating_point()
        if differs and _autocast_dtype(device) is None:
            raise InputError(
                f"{name} dtype ({tensor.dtype}) does not match weight dtype ({dtype}). "
                f"Convert it: {name}.to({dtype}), or convert the model: model.to({tensor.dtype})"
            )
        if tensor.device != device:
            raise InputError(
                f"{name} is on {tensor.device} and the weights are on {device}. "
                f"Move it: {name}.to({str(device)!r}), or move the model: model.to({str(tensor.device)!r})"
            )
    expected = (len(weights), batch, hidden_size)
    if hx is not None and differ(hx.shape, expected):
        raise InputError(
            f"Expected hidden size {expected}, got {list(hx.shape)}: "
            "hx is (num_layers * directions, batch, hidden_size)"
        )
    return steps, batch, hidden_size


def check_tensor(name: str, tensor: Any) -> None:
    """Raises a TypeError for what is not a tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")


def beyond_the_recurrence(variant: Variant, return_gates: bool) -> str:
    """What a call wants that only PyTorch's own operators have, as an error names it; "" where that is nothing."""
    wanted = [names] if (names := acting(variant)) else []
    if return_gates:
        wanted.append("return_gates")
    if transformed():
        wanted.append("rule for torch.func and forward-mode differentiation")
    return " and ".join(wanted)


def _check_recordable(*tensors: Tensor) -> None:
    """Raises where gradients are wanted of inference tensors: no operator would see them, and none would come."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        return
    if any(t.requires_grad and t.is_inference() for t in tensors):
        raise InputError(
            "Inference tensors cannot be saved for backward: weights or input that require a gradient were made, "
            "copied, cast or loaded inside torch.inference_mode(). Do that outside, or clone them; where no gradient "
            "is wanted, call under torch.no_grad()"
        )


def _check_reset_state(
    reset_state: Tensor | None, reset: Tensor | None, bidirectional: bool, shape: tuple[int, int, int]
) -> None:
    if reset_state is None:
        return
    check_tensor("reset_state", reset_state)
    if reset is None:
        raise InputError("reset_state is where resets go: give reset too")
    if bidirectional:
        raise InputError("reset_state needs one direction: in reverse a batch does not carry its state on")
    if differ(reset_state.shape, shape):
        raise InputError(f"Expected reset_state of shape {shape}, as hx, got {tuple(reset_state.shape)}")


def check_variant(variant: Variant, reset_after: bool) -> None:
    """Raises an InputError for a probability or name that does not fit, or parts that do not go together."""
    check_probability("recurrent_dropout", variant.recurrent_dropout, "a unit being dropped from the products with h")
    check_probability("zoneout", variant.zoneout, "a unit keeping its state in a step")
    for name in ("activation", "recurrent_activation"):
        if getattr(variant, name) not in ACTIVATIONS:
            known = ", ".join(map(repr, ACTIVATIONS))
            raise InputError(f"{name} must be one of {known}, got {getattr(variant, name)!r}")
    if variant.layer_norm and not reset_after:
        raise InputError(
            "layer_norm needs reset_after=True: it normalises W_hh h as a whole, which the other form never makes"
        )


def _check_gains(layer_norms: Sequence[tuple[Tensor, Tensor]], weights: Sequence[Weights]) -> None:
    expected = [((w_hh.shape[0],),) * 2 for _, w_hh, *_ in weights]
    if differ(got := [tuple(tuple(gain.shape) for gain in pair) for pair in layer_norms], expected):
        raise InputError(f"layer_norms must hold gains of shapes {expected}, a pair for each group, got {got}")


def _autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype of torch.autocast on this device, None where it is off."""
    on = device.type in _AUTOCAST_DEVICES and torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if on else None


def _check_weights(weights: Weights, input_size: int, hidden_size: int) -> None:
    if len(weights) not in (2, 4):
        raise InputError(f"weights must be (w_ih, w_hh) or (w_ih, w_hh, b_ih, b_hh), got {len(weights)} tensors")
    if any(type(w).__name__ == "ExpandedWeight" for w in weights):
        raise InputError(
            "torch.nn.utils' call_for_per_sample_grads (ExpandedWeights, Opacus' grad_sample_mode='ew') only knows "
            "torch.nn's layers: vmap(grad(...)) of torch.func gives these gradients, and so does grucore.opacus"
        )
    gates, w_ih = 3 * hidden_size, weights[0]
    shapes = (("w_ih", (gates, input_size)), ("w_hh", (gates, hidden_size)), ("b_ih", (gates,)), ("b_hh", (gates,)))
    for (name, expected), tensor in zip(shapes[: len(weights)], weights, strict=True):
        if differ(tensor.shape, expected):
            raise InputError(f"{name} must have shape {expected}, got {tuple(tensor.shape)}")
        if tensor.device != w_ih.device or (tensor.dtype != w_ih.dtype and _autocast_dtype(w_ih.device) is None):
            raise InputError(
                f"all weights must be of one dtype on one device: w_ih is {w_ih.dtype} on {w_ih.device}, "
                f"{name} is {tensor.dtype} on {tensor.device}"
            )
