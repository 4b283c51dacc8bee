"""The parameters and options of a stack of GRU layers: torch.nn.GRU's names, shapes, order and initialisation."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from grucore import backend as backends
from grucore import copies
from grucore.errors import InputError, check_flag, check_probability, check_size
from grucore.functional import check_variant
from grucore.kernels.variants import Variant


class Stack(nn.Module):
    """What `GRU` holds; its arguments and attributes are documented there."""

    mode = "GRU"  # with proj_size, for code that asks a recurrent layer of torch.nn what it is
    proj_size = 0

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        reset_after: bool = True,
        recurrent_dropout: float = 0.0,
        zoneout: float = 0.0,
        layer_norm: bool = False,
        learn_initial_state: bool = False,
        activation: str = "tanh",
        recurrent_activation: str = "sigmoid",
        proj_size: int = 0,
        precision: str | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if proj_size != 0:
            raise InputError(f"proj_size is for torch.nn.LSTM only: a GRU has no projection, got {proj_size!r}")
        self.input_size = check_size("input_size", input_size)
        self.hidden_size = check_size("hidden_size", hidden_size)
        self.num_layers = check_size("num_layers", num_layers)
        self.bias = check_flag("bias", bias)
        self.batch_first = check_flag("batch_first", batch_first)
        self.dropout = check_probability("dropout", dropout)
        self.bidirectional = check_flag("bidirectional", bidirectional)
        self.reset_after = check_flag("reset_after", reset_after)
        self.layer_norm = check_flag("layer_norm", layer_norm)
        self.learn_initial_state = check_flag("learn_initial_state", learn_initial_state)
        check_variant(Variant(recurrent_dropout, zoneout, layer_norm, activation, recurrent_activation), reset_after)
        self.recurrent_dropout = float(recurrent_dropout)
        self.zoneout = float(zoneout)
        self.activation = activation
        self.recurrent_activation = recurrent_activation
        if self.dropout > 0 and self.num_layers == 1:
            warnings.warn(
                "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects "
                f"num_layers greater than 1, but got dropout={dropout} and num_layers={num_layers}",
                stacklevel=2,
            )
        backends.resolve_precision(precision)
        self.precision = precision
        self.backend = backends.check(backend)

        hidden_size = self.hidden_size
        for layer in range(self.num_layers):
            layer_input_size = self.input_size if layer == 0 else self.num_directions * hidden_size
            shapes: list[tuple[int, ...]] = [(3 * hidden_size, layer_input_size), (3 * hidden_size, hidden_size)]
            shapes += [(3 * hidden_size,), (3 * hidden_size,)] if bias else []
            for direction in range(self.num_directions):
                names = dict(zip(self._names(layer, direction), shapes, strict=True))
                names |= dict.fromkeys(self._norm_names(layer, direction), (3 * hidden_size,))
                for name, shape in names.items():
                    setattr(self, name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        if learn_initial_state:
            shape = (self.num_layers * self.num_directions, hidden_size)
            self.initial_state = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.reset_parameters()

    @property
    def num_directions(self) -> int:
        """D: 2 if bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    def _names(self, layer: int, direction: int) -> list[str]:
        suffix = f"_l{layer}" + ("_reverse" if direction else "")
        kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if self.bias else ("weight_ih", "weight_hh")
        return [kind + suffix for kind in kinds]

    def _norm_names(self, layer: int, direction: int) -> list[str]:
        suffix = f"_l{layer}" + ("_reverse" if direction else "")
        return ["layer_norm_ih" + suffix, "layer_norm_hh" + suffix] if self.layer_norm else []

    def _groups(self, names: Callable[[int, int], list[str]]) -> list[list[Tensor]]:
        """The parameters of those names of a layer and direction: K*D groups."""
        indices = itertools.product(range(self.num_layers), range(self.num_directions))
        return [[getattr(self, name) for name in names(*index)] for index in indices]

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The parameters of each layer and direction: K*D groups (weight_ih, weight_hh[, bias_ih, bias_hh])."""
        return self._groups(self._names)

    def reset_parameters(self) -> None:
        """Draws weights and biases from U(-1/sqrt(H), 1/sqrt(H)), in torch.nn.GRU's order; gains 1, initial state 0."""
        bound = 1 / math.sqrt(self.hidden_size)
        for name, parameter in self.named_parameters():
            if name == "initial_state":
                nn.init.zeros_(parameter)
            elif name.startswith("layer_norm"):
                nn.init.ones_(parameter)
            else:
                nn.init.uniform_(parameter, -bound, bound)

    def flatten_parameters(self) -> None:
        """Does nothing: no flat copy of the parameters exists. Here for code written for torch.nn.GRU."""

    @property
    def _variant(self) -> Variant:
        return Variant(*(getattr(self, name) for name in Variant._fields))

    def extra_repr(self) -> str:
        """The arguments that differ from their defaults, as torch.nn.GRU prints them."""
        parts = [f"{self.input_size}, {self.hidden_size}"]
        defaults: dict[str, object] = {
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "dropout": 0,
            "bidirectional": False,
        }
        defaults |= copies.OWN_OPTIONS | {"precision": None, "backend": "auto"}
        for name, default in defaults.items():
            value = getattr(self, name)
            if value != default:
                parts.append(f"{name}={value!r}")
        return ", ".join(parts)
