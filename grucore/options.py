"""The options of a layer besides its sizes, with defaults and checks; `GRU` documents each."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from grucore import dispatch
from grucore.errors import InputError, check_flag, check_probability, check_size
from grucore.kernels import Form
from grucore.kernels.native.packed import Hold
from grucore.kernels.regularised import ACTIVATIONS, Variant

Activation = Literal["tanh", "sigmoid", "relu", "hard_sigmoid", "hard_tanh", "softsign", "linear"]
Precision = Literal["ieee", "tf32"]

# Options of torch.nn's layers, in the order of their arguments.
OF_TORCH_GRU = ("num_layers", "bias", "batch_first", "dropout", "bidirectional")
OF_TORCH_CELL = ("bias",)
# Options of a single step.
_EQUATIONS = ("reset_after", "heads", "zoneout", "layer_norm", "activation", "recurrent_activation")
OF_CELL = ("bias", *_EQUATIONS, "precision", "backend")
# Options that change how a layer computes, not what it computes.
OF_RUN = ("precision", "backend")


@dataclass
class Options:
    """The options of a layer; see `GRU`."""

    num_layers: int = 1
    bias: bool = True
    batch_first: bool = False
    dropout: float = 0.0
    bidirectional: bool = False
    reset_after: bool = True
    heads: int = 1
    recurrent_dropout: float = 0.0
    zoneout: float = 0.0
    layer_norm: bool = False
    learn_initial_state: bool = False
    activation: Activation = "tanh"
    recurrent_activation: Activation = "sigmoid"
    precision: Precision | None = None
    backend: dispatch.Backend = "auto"

    def checked(self) -> Options:
        """The same options, with numbers converted to int and float.

        Raises:
            TypeError: a flag that is not a bool, a number of layers or heads that is not an integer.
            InputError: a value out of range, an unknown name, or options that exclude each other.
        """
        self.num_layers, self.heads = check_size("num_layers", self.num_layers), check_size("heads", self.heads)
        for name in ("bias", "batch_first", "bidirectional", "reset_after", "layer_norm", "learn_initial_state"):
            check_flag(name, getattr(self, name))
        self.dropout = check_probability("dropout", self.dropout)
        what = "a unit being dropped from the products with h"
        self.recurrent_dropout = check_probability("recurrent_dropout", self.recurrent_dropout, what)
        self.zoneout = check_probability("zoneout", self.zoneout, "a unit keeping its state in a step")
        for name in ("activation", "recurrent_activation"):
            _check_name(name, getattr(self, name), ACTIVATIONS)
        _check_name("precision", self.precision, (*get_args(Precision), None))
        _check_name("backend", self.backend, dispatch.BACKENDS)
        if self.layer_norm and not self.reset_after:
            raise InputError(
                "layer_norm requires reset_after=True: it normalises W_hh h as a whole, which the other form never has"
            )
        return self


DEFAULTS = {field.name: field.default for field in fields(Options)}


def names_of(layer: nn.Module) -> tuple[str, ...]:
    """The options of a kind of layer: a `GRU` has all of them, a `GRUCell` those of a single step."""
    return tuple(DEFAULTS) if hasattr(layer, "num_layers") else OF_CELL


def variant_of(options: Options, training: bool) -> Variant:
    """The options that add to the equations."""
    o = options
    return Variant(o.recurrent_dropout, o.zoneout, o.layer_norm, o.activation, o.recurrent_activation, training)


def changed(layer: nn.Module, without: Collection[str] = ()) -> dict[str, Any]:
    """The options of a layer that differ from their defaults."""
    values = {name: getattr(layer, name) for name in names_of(layer) if name not in without}
    return {name: value for name, value in values.items() if value != DEFAULTS[name]}


if TYPE_CHECKING:

    class _Module(nn.Module, Options):
        """Options are attributes of a layer."""

else:
    _Module = nn.Module


class LayerWithOptions(_Module):
    """The part that `GRU` and `GRUCell` share: each option is an attribute, so that a layer serves as its `Options`."""

    input_size: int
    hidden_size: int

    def _set_options(self, given: dict[str, Any]) -> None:
        options = Options(**given).checked()
        if self.hidden_size % options.heads:
            sizes = f"heads={options.heads} and hidden_size={self.hidden_size}"
            raise InputError(f"heads must divide hidden_size, got {sizes}")
        vars(self).update({name: getattr(options, name) for name in given})

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes the default of each option that was not there yet when a layer was pickled."""
        names = DEFAULTS if "num_layers" in state else OF_CELL
        super().__setstate__({name: DEFAULTS[name] for name in names} | state)

    def _weight_hh_shape(self) -> tuple[int, ...]:
        gates, units = 3 * self.hidden_size // self.heads, self.hidden_size // self.heads
        return (gates, units) if self.heads == 1 else (self.heads, gates, units)

    def _draw_parameters(self) -> None:
        """Weights and biases from uniform distributions, gains 1, the initial state 0."""
        for name, parameter in self.named_parameters():
            name = name.removeprefix("parametrizations.")
            if name.startswith("initial_state"):
                nn.init.zeros_(parameter)
            elif name.startswith("layer_norm"):
                nn.init.ones_(parameter)
            else:
                units = self.hidden_size // self.heads if name.startswith("weight_hh") else self.hidden_size
                bound = units**-0.5 if units else 0.0
                nn.init.uniform_(parameter, -bound, bound)

    def packed_weights(self) -> AbstractContextManager[None]:
        """A context manager that keeps the weights packed for the native kernels, for streaming on a CPU.

        Otherwise a step reads the weights as they are, and a call on a sequence packs them first. Inside the context
        they are packed once, and again after a write that PyTorch counts: by an optimizer, `load_state_dict` or any
        in-place operator. A write through `.data` or NumPy is not counted, and the old weights stay in use. Weights of
        16 bits, which each call converts, and weights in shared memory, which another process may write, are not kept.

        Example:
            >>> from grucore import GRUCell
            >>> cell, h = GRUCell(3, 4), torch.zeros(8, 4)
            >>> with torch.no_grad(), cell.packed_weights():
            ...     for x_t in torch.randn(5, 8, 3):
            ...         h = cell(x_t, h)

        Raises:
            InputError: the layer has heads, of whose weights each call makes those of a head.
        """
        if self.heads > 1:
            raise InputError(
                f"packed_weights cannot keep the weights of heads={self.heads}: each call makes those of a head. "
                "to_dense() makes an equal layer without heads, whose weights it keeps"
            )
        return Hold(self._weight_groups())

    def _weight_groups(self) -> list[list[Tensor]]:
        raise NotImplementedError

    def extra_repr(self) -> str:
        """The sizes, and the arguments that differ from their defaults, as torch.nn prints them."""
        own = [f"{name}={value!r}" for name, value in changed(self).items()]
        return ", ".join([str(self.input_size), str(self.hidden_size), *own])


def form_of(options: Options, device: torch.device) -> Form:
    """The form of the equations; unless given, the precision follows torch's switch for cuDNN's RNNs."""
    if options.precision is not None:
        return Form(options.reset_after, options.precision, options.heads)
    if device.type == "cpu" and options.backend != "triton":  # nothing rounds the operands there
        return Form(options.reset_after, heads=options.heads)
    switch = getattr(torch.backends.cudnn, "rnn", None)  # torch 2.9 has it: allow_tf32 raises where conv and rnn differ
    allowed = torch.backends.cudnn.allow_tf32 if switch is None else switch.fp32_precision == "tf32"
    return Form(options.reset_after, "tf32" if allowed else "ieee", options.heads)


def _check_name(option: str, value: Any, known: Collection[Any]) -> None:
    if not isinstance(value, str | None) or value not in known:
        raise InputError(f"{option} must be one of {', '.join(map(repr, known))}, got {value!r}")
