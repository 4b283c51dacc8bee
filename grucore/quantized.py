"""Layers with quantised weights, for inference on CPUs: `GRU.quantize` makes them."""

from __future__ import annotations

import operator
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from grucore import compat, copies, dispatch, functional
from grucore.checks import NAMES, check_reset_state
from grucore.errors import InputError, check_tensor, differ
from grucore.functional import Call, Stack
from grucore.kernels import Form, State, Steps
from grucore.kernels.native import quantised as native
from grucore.kernels.native.layer import forward_by_direction
from grucore.kernels.native.library import UNAVAILABLE
from grucore.module import GRU
from grucore.names import of_weights, parameter_names
from grucore.options import DEFAULTS, OF_TORCH_GRU, changed
from grucore.stacked import StackedLayers
from grucore.steps import Lengths, steps_of

WeightDtype = Literal["int8", "bf16"]
_STORED = {"int8": torch.int8, "bf16": torch.bfloat16}
_WITHOUT = ("heads", "layer_norm", "zoneout", "activation", "recurrent_activation")


class QuantizedGRU(StackedLayers):
    """A `GRU` with quantised weights: for inference on a CPU, in less memory and time.

    `GRU.quantize` returns one in eval mode; the layer itself stays unchanged. `forward` and `step` take the same
    arguments as the layer's and return the same. Input, states, gates and biases are float32.

    Weights of "int8" have a scale for each row, `w = scale * q` with q from -127 to 127; x and the state are rounded to
    16 bits where they meet them: x by the largest number of its row and step, the state by 1, or by the largest number
    of the row's initial state where that is over 1. Weights of "bf16" are rounded, and nothing else is.

    Without native kernels, and where a call is compiled, exported or traced, the dequantised weights run in PyTorch.

    Args:
        layer: what to quantise, as `GRU.quantize` checks it.
        dtype: "int8" or "bf16".

    Attributes:
        weight_dtype: "int8" or "bf16".
        weight_ih_l[k], weight_hh_l[k]: as of `GRU`, int8 or bfloat16.
        weight_ih_l[k]_scale, weight_hh_l[k]_scale: shape (3H,), float32; of int8 weights.
        bias_ih_l[k], bias_hh_l[k], initial_state: as of `GRU`.
        All are buffers: there are no parameters. A reverse direction's weights are called `weight_ih_l[k]_reverse`.

    Raises:
        InputError, TypeError: what cannot be quantised, see `GRU.quantize`.

    Example:
        >>> quantized = GRU(3, 4, num_layers=2).quantize("int8")
        >>> quantized
        QuantizedGRU(3, 4, weight_dtype='int8', num_layers=2)
        >>> y, h_n = quantized(torch.randn(5, 2, 3), lengths=[5, 2])
        >>> quantized.weight_hh_l1.dtype, quantized.weight_hh_l1_scale.shape
        (torch.int8, torch.Size([12]))
    """

    def __init__(self, layer: GRU, dtype: WeightDtype):
        super().__init__()
        _check(layer, dtype)
        self.input_size, self.hidden_size, self.weight_dtype = layer.input_size, layer.hidden_size, dtype
        self._set_options({name: getattr(layer, name) for name in DEFAULTS})
        self._names = parameter_names(self.num_layers, self.num_directions, of_weights(self.bias))
        with torch.inference_mode(False), torch.no_grad():  # tensors of inference have no version
            for name, tensor in _named_tensors(layer).items():
                if not name.startswith("weight"):
                    self.register_buffer(name, tensor.detach().clone())
                elif dtype == "bf16":
                    self.register_buffer(name, tensor.detach().bfloat16())
                else:
                    rounded, scale = _rounded(tensor.detach())
                    self.register_buffer(name, rounded)
                    self.register_buffer(f"{name}_scale", scale)
        self._packed: tuple[list[Tensor], list[Any], list[native.Quantised]] | None = None
        self.eval()

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Lengths | int | None = None,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        reset_state: Tensor | None = None,
    ) -> tuple[Any, Tensor]:
        """All states of a batch of sequences; arguments and results are those of `GRU.forward`, in float32.

        Raises:
            InputError: as `GRU.forward`; the input or a state requires a gradient, or the layer is in training mode,
                and gradients are enabled; a dtype that is not float32, or a device that is not the CPU.
            TypeError: as `GRU.forward`.
            RuntimeError: backend="native" cannot run.
        """
        call = Call(lengths, mask, reset, reset_state)  # type: ignore[arg-type]
        x, hx, call, layout = self._arranged(input, hx, call)
        y, h_n = self._run(x, hx, call)
        return layout.sequence(y), layout.state(h_n)

    if TYPE_CHECKING:
        __call__ = forward

    def step(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One step of all layers, for streaming; arguments and results are those of `GRU.step`."""
        self._check_step(input, hx)
        if input.dim() == 1:
            y, h_n = self._run(input.view(1, 1, -1), None if hx is None else hx.unsqueeze(1), Call())
            return y.view(-1), h_n.squeeze(1)
        y, h_n = self._run(input.unsqueeze(0), hx, Call())
        return y.squeeze(0), h_n

    def _explained(self, x: Tensor, hx: Tensor | None, call: Call) -> dispatch.Choice:
        hx = self._first_state(x, hx)
        self._check_call(x, hx, call.reset_state)
        self._steps_and_state(x, hx, call)  # its errors are those of the call
        return self._choice(x, hx, call)

    def dequantize(self) -> GRU:
        """A `GRU` in float32 with the rounded weights, in eval mode: to train on, to trace, to convert.

        Example:
            >>> GRU(3, 4).quantize("bf16").dequantize()
            GRU(3, 4)
        """
        own = {name: getattr(self, name) for name in DEFAULTS if name not in OF_TORCH_GRU}
        layer = copies.alike(self, GRU, **own, device="cpu", dtype=torch.float32)
        with torch.no_grad():
            for parameters, rounded in zip(layer.all_weights, self._dequantized(), strict=True):
                for parameter, tensor in zip(parameters, rounded, strict=True):
                    parameter.copy_(tensor)
            if self.learn_initial_state:
                layer.initial_state.copy_(self.initial_state)
        return layer.eval()

    def quantize(self, dtype: WeightDtype = "int8") -> QuantizedGRU:
        """Refuses: the weights are already quantised."""
        raise InputError(
            f"this layer is already quantised to {self.weight_dtype}: for {dtype!r}, quantize the float layer"
        )

    def extra_repr(self) -> str:
        """The sizes, and the arguments that differ from their defaults."""
        own = {"weight_dtype": self.weight_dtype, **changed(self)}
        return ", ".join([str(self.input_size), str(self.hidden_size), *(f"{k}={v!r}" for k, v in own.items())])

    def _weight_groups(self) -> list[list[Tensor]]:
        return []  # for `packed_weights`: these are packed all the time

    def _run(self, x: Tensor, hx: Tensor | None, call: Call) -> tuple[Tensor, Tensor]:
        """y (T, B, D*H) and h_n (K*D, B, H) of a time-major batch."""
        hx = self._first_state(x, hx)
        self._check_call(x, hx, call.reset_state)
        if self._choice(x, hx, call).name == "native":
            return self._run_natively(x, hx, call)
        with torch.autocast("cpu", enabled=False):
            y, h_n, _, _ = functional.run(x, hx, Stack(self._dequantized(), None, self, training=False), call)
            return y, h_n

    def _run_natively(self, x: Tensor, hx: Tensor | None, call: Call) -> tuple[Tensor, Tensor]:
        (steps, state), form, D = self._steps_and_state(x, hx, call), Form(self.reset_after), self.num_directions
        packed: Any = self._packed_weights()
        if self.num_layers == 1:
            return forward_by_direction(x, state, packed, steps, form)
        states = []
        for k in range(0, self._states, D):
            of_layer = State(*(None if each is None else each[k : k + D] for each in state))  # type: ignore[arg-type]
            x, h = forward_by_direction(x, of_layer, packed[k : k + D], steps, form)
            states.append(h)
        return x, torch.cat(states)

    def _steps_and_state(self, x: Tensor, hx: Tensor | None, call: Call) -> tuple[Steps, State]:
        T, B, _ = x.shape
        check_reset_state(call.reset_state, call.reset, self.bidirectional, (self._states, B, self.hidden_size))
        h0 = x.new_zeros(self._states, B, self.hidden_size) if hx is None else hx
        return steps_of(T, B, x.device, call.lengths, call.mask, call.reset), State(h0, call.reset_state)

    def _packed_weights(self) -> list[native.Quantised]:
        """Returns the packed weights per layer and direction; they are kept until a buffer is written or replaced."""
        buffers: Any = list(self._buffers.values())
        if self._packed is not None:
            given, states, packed = self._packed
            if all(map(operator.is_, buffers, given)) and list(map(_state, buffers)) == states:
                return packed
        self._check_buffers()
        packed = [native.packed(group, self.reset_after) for group in self.tensors()]
        if not any(t.is_inference() for t in buffers):  # those have no version
            self._packed = buffers, list(map(_state, buffers)), packed
        return packed

    def tensors(self) -> list[dict[str, Tensor]]:
        """Returns w_ih and w_hh, their scales and the biases, per layer and direction."""
        buffers: Any = self._buffers
        groups = []
        for names in self._names:
            group = {NAMES[i]: buffers[name] for i, name in enumerate(names)}
            if self.weight_dtype == "int8":
                group |= {f"{NAMES[i]}_scale": buffers[f"{names[i]}_scale"] for i in (0, 1)}
            groups.append(group)
        return groups

    def _dequantized(self) -> list[list[Tensor]]:
        """The groups of `GRU.all_weights` in float32."""
        self._check_buffers()
        groups = []
        for group in self.tensors():
            weights = [group[kind].float() for kind in NAMES if kind in group]
            if self.weight_dtype == "int8":
                weights[:2] = (weights[i] * group[f"{NAMES[i]}_scale"].unsqueeze(1) for i in (0, 1))
            groups.append(weights)
        return groups

    def _choice(self, x: Tensor, hx: Tensor | None, call: Call) -> dispatch.Choice:
        if self.backend not in ("auto", "native"):
            return dispatch.Choice(self.backend, "asked for")
        obstacle = UNAVAILABLE
        given = (x, hx, *call, *self._buffers.values())
        if not functional.are_plain([t for t in given if isinstance(t, Tensor)], ("cpu",)) or compat.transformed():
            obstacle = "a call that is compiled, traced or watched is left to PyTorch's operators"
        if obstacle is None:
            return dispatch.Choice("native", "asked for" if self.backend == "native" else "the kernels for cpu tensors")
        if self.backend == "native":
            raise RuntimeError(f"backend='native' cannot run: {obstacle}. Use backend='auto'")
        return dispatch.Choice("eager", obstacle)

    def _check_call(self, x: Tensor, hx: Tensor | None, reset_state: Tensor | None) -> None:
        expected = (self._states, x.shape[1], self.hidden_size)
        if hx is not None and differ(hx.shape, expected):
            raise InputError(
                f"Expected hidden size {expected}, got {list(hx.shape)}: "
                "hx is (num_layers * directions, batch, hidden_size)"
            )
        for name, tensor in (("input", x), ("hx", hx), ("reset_state", reset_state)):
            if tensor is None:
                continue
            check_tensor(name, tensor)
            if tensor.dtype is not torch.float32 or tensor.device.type != "cpu":
                raise InputError(
                    f"a quantised layer takes float32 on the CPU, and {name} is {tensor.dtype} on {tensor.device}"
                )
            if tensor.requires_grad and torch.is_grad_enabled():
                raise InputError(
                    f"a quantised layer is for inference, and {name} requires a gradient: call it under "
                    "torch.no_grad(), or train the layer that dequantize() returns"
                )
        if self.training and torch.is_grad_enabled():
            raise InputError(
                "a quantised layer is for inference, and this one is in training mode: call its eval(), or train the "
                "layer that dequantize() returns"
            )

    def _check_buffers(self) -> None:
        for name, tensor in self.named_buffers():
            is_weight = name.startswith("weight") and not name.endswith("_scale")
            expected = _STORED[self.weight_dtype] if is_weight else torch.float32
            if tensor.dtype is not expected or tensor.device.type != "cpu":
                raise InputError(
                    f"a quantised layer stays as it was made, on the CPU: {name} must be {expected}, and is "
                    f"{tensor.dtype} on {tensor.device}. Move or convert the float layer, and quantize that"
                )

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Refuses another dtype before anything changes: `float()` does not bring back what `half()` rounded."""
        for name, tensor in self._buffers.items():
            if tensor is not None and (dtype := fn(tensor.new_empty(0)).dtype) is not tensor.dtype:
                raise InputError(
                    f"a quantised layer stays as it was made: {name} must be {tensor.dtype}, and would be {dtype}. "
                    "Convert the float layer, and quantize that"
                )
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        """Refuses weights of another kind, which would be converted without a word."""
        errors: list[str] = arguments[-1]
        for name, own in self._buffers.items():
            given = state_dict.get(prefix + name)
            if own is not None and isinstance(given, Tensor) and given.dtype is not own.dtype:
                errors.append(
                    f"{prefix + name} is {given.dtype}, and this layer's is {own.dtype}: load the state into a layer "
                    "of its own kind; GRU.quantize makes a quantised layer of a float one"
                )
                return
        self._packed = None
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_packed": None}


def _state(buffer: Tensor) -> tuple[int, int]:
    """Returns what changes with a write, and with other memory."""
    return buffer._version, buffer.data_ptr()


def _check(layer: Any, dtype: Any) -> None:
    """Raises where a layer cannot be quantised."""
    if not isinstance(layer, GRU):
        made = "GRU.from_torch makes one of torch.nn.GRU"
        raise TypeError(f"expected a grucore.GRU ({made}), got {type(layer).__name__}")
    if dtype not in get_args(WeightDtype):
        raise InputError(f"dtype must be one of {', '.join(map(repr, get_args(WeightDtype)))}, got {dtype!r}")
    own = {name: value for name, value in changed(layer).items() if name in _WITHOUT}
    if own:
        given = ", ".join(f"{name}={value!r}" for name, value in own.items())
        raise InputError(f"{given} cannot be quantised: the kernels for quantised weights have the plain equations")
    for name, tensor in _named_tensors(layer).items():
        if tensor.dtype is not torch.float32 or tensor.device.type != "cpu":
            raise InputError(
                f"quantize takes a layer of float32 on the CPU, and {name} is {tensor.dtype} on {tensor.device}: "
                "convert it first, as by layer.float().cpu()"
            )
        if not tensor.isfinite().all():
            raise InputError(f"{name} holds a NaN or an infinity, which quantised weights cannot represent")


def _named_tensors(layer: GRU) -> dict[str, Tensor]:
    """Returns the tensors of a layer's state; parametrised weights have their current values."""
    groups = parameter_names(layer.num_layers, layer.num_directions, of_weights(layer.bias))
    names = [*chain.from_iterable(groups)]
    names += ["initial_state"] if layer.learn_initial_state else []
    return {name: getattr(layer, name) for name in names}


def _rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 weights (3H, K) and their scales (3H,); the largest of each row becomes 127."""
    scale = weight.abs().amax(1) / 127
    scale = torch.where(scale > 0, scale, 1.0)  # a row of zeros, or of numbers that are as good as that
    return (weight / scale.unsqueeze(1)).round().clamp(-127, 127).to(torch.int8), scale
