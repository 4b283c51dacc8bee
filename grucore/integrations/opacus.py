"""Differentially private training with Opacus: per-sample gradients. `pip install -e '.[opacus]'`.

Importing this module registers `grucore.GRU` with Opacus: `ModuleValidator.fix` then replaces each by a `DPGRU`, for
which there is a grad sampler, just as it replaces torch.nn.GRU by Opacus' own layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from opacus.grad_sample import register_grad_sampler
from opacus.validators import register_module_fixer, register_module_validator
from opacus.validators.errors import ShouldReplaceModuleError, UnsupportedModuleError
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parametrize

from grucore import copies
from grucore.cell import GRUCell
from grucore.errors import InputError
from grucore.functional import Call, run
from grucore.module import GRU, Trace
from grucore.options import OF_TORCH_GRU, changed
from grucore.steps import as_lengths


class DPGRU(GRU):
    """A `GRU` for Opacus: the same arguments, parameters and results.

    Opacus' hooks see only positional tensors and the gradient of the first output. With a `GRU` they would miss
    lengths, masks and any loss on h_n. A `DPGRU` passes everything by position and gives y and h_n to the hooks as one
    tensor. The samples are the rows of the batch; leave Opacus' own `batch_first` True, whatever the layer's is.

    Per-sample gradients come from a second pass with torch.func, step by step. It would draw other random numbers than
    the first pass, so dropout, recurrent dropout and zoneout must be 0.

    Args:
        *args: as in `GRU`.
        **options: as in `GRU`.

    Raises:
        InputError: dropout, recurrent_dropout or zoneout is not 0.

    Example:
        >>> from opacus.grad_sample import GradSampleModule
        >>> gru = DPGRU(3, 4)
        >>> model = GradSampleModule(gru)
        >>> x = torch.randn(5, 8, 3, requires_grad=True)
        >>> y, h_n = model(x, lengths=torch.tensor([5, 2, 0, 1, 5, 3, 4, 1]))
        >>> h_n.square().sum(-1).mean().backward()
        >>> gru.weight_hh_l0.grad_sample.shape
        torch.Size([8, 12, 4])
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        noise = {name: getattr(self, name) for name in ("dropout", "recurrent_dropout", "zoneout")}
        if any(noise.values()):
            raise InputError(
                f"DPGRU draws no random numbers: dropout, recurrent_dropout and zoneout must be 0, got {noise}"
            )

    def __call__(  # type: ignore[override]
        self,
        input: Tensor,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        reset_state: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns the results of `GRU.forward` for a padded batch. Hooks see `forward`, below.

        Raises:
            InputError: the input is not a batch, or has a wrong size or value.
        """
        if not isinstance(input, Tensor) or input.dim() != 3:
            raise InputError("DPGRU requires a padded batch of 3 dimensions: its rows are the samples")
        if not self.batch_first:
            input, mask, reset = input.transpose(0, 1), _swapped(mask), _swapped(reset)
        lengths = None if lengths is None else as_lengths(lengths)
        absent = input.new_empty(len(input), 0)  # hooks only take tensors
        arguments = (_swapped(hx), lengths, mask, reset, _swapped(reset_state))
        both: Any = super().__call__(input, *(absent if t is None else t for t in arguments))
        batch, steps, _ = input.shape
        states, features = self.num_layers * self.num_directions, self.num_directions * self.hidden_size
        y, h_n = both.split([steps * features, states * self.hidden_size], 1)
        y, h_n = y.reshape(batch, steps, features), h_n.reshape(batch, states, self.hidden_size)
        return y if self.batch_first else y.transpose(0, 1), h_n.transpose(0, 1)

    def forward(self, input: Tensor, *arguments: Tensor) -> Tensor:  # type: ignore[override]
        """y and h_n of each sample, flattened and concatenated: (B, T*D*H + K*D*H); all arguments samples first."""
        hx, lengths, mask, reset, reset_state = (None if t.shape[1:] == (0,) else t for t in arguments)
        call = Call(lengths, _swapped(mask), _swapped(reset), _swapped(reset_state))
        x = input.transpose(0, 1)
        y, h_n, _, _ = run(x, *self._state_and_stack(x, _swapped(hx)), call)
        return torch.cat([y.transpose(0, 1).flatten(1), h_n.transpose(0, 1).flatten(1)], 1)

    def step(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Raises an InputError: hooks would not see the call."""
        raise InputError("DPGRU has no step, because hooks would not see it: call it on a sequence of one step")

    def trace(self, *args: Any, **options: Any) -> Trace:
        """Raises an InputError: hooks would not see the call."""
        raise InputError("DPGRU has no trace, because hooks would not see it: trace a GRU with the same state_dict")


def _swapped(tensor: Tensor | None) -> Tensor | None:
    return tensor.transpose(0, 1) if isinstance(tensor, Tensor) and tensor.dim() > 1 else tensor


class _WithoutHooks(nn.Module):
    """The forward pass of a layer whose parameters `functional_call` can replace, without the layer's hooks."""

    def __init__(self, layer: DPGRU) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *arguments: Tensor) -> Tensor:
        return self.layer.forward(*arguments)


@register_grad_sampler(DPGRU)
def per_sample_gradients(layer: DPGRU, activations: Sequence[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    """Computes per-sample gradients, of shape (B, *parameter.shape); Opacus calls it in the backward pass.

    Args:
        layer: the layer that was called.
        activations: the arguments of `DPGRU.forward`, B samples first.
        backprops: the gradient of its result.

    Raises:
        InputError: the samples do not come first.
    """
    if parametrize.is_parametrized(layer):
        raise TypeError("a parametrised DPGRU has no per-sample gradients: remove its parametrisations")
    bare = _WithoutHooks(layer)
    trained = {name: parameter for name, parameter in bare.named_parameters() if parameter.requires_grad}
    size = layer.num_directions * layer.hidden_size * (activations[0].shape[1] + layer.num_layers)
    if backprops.shape[1] != size:
        raise InputError("the samples of a DPGRU come first: pass Opacus batch_first=True, whatever the layer's is")
    if len(backprops) == 0:
        return {parameter: parameter.new_zeros(0, *parameter.shape) for parameter in trained.values()}

    def loss(parameters: dict[str, Tensor], backprop: Tensor, *sample: Tensor) -> Tensor:
        result = functional_call(bare, parameters, tuple(t.unsqueeze(0) for t in sample))
        return (result * backprop).sum()

    values = {name: parameter.detach() for name, parameter in trained.items()}
    in_dims = (None, *[0] * (1 + len(activations)))
    gradients = vmap(grad(loss), in_dims)(values, backprops, *activations)
    return {parameter: gradients[name] for name, parameter in trained.items()}


_REPLACED = (
    "Opacus cannot hook keyword arguments or h_n of grucore.GRU. Call ModuleValidator.fix(model), which replaces it by "
    "DPGRU"
)


@register_module_validator(GRU)
def _validate(layer: GRU) -> list[ShouldReplaceModuleError]:
    return [ShouldReplaceModuleError(_REPLACED)]


@register_module_fixer(GRU)
def _fix(layer: GRU, **options: Any) -> DPGRU:
    return copies.copied(layer, DPGRU, **changed(layer, without=OF_TORCH_GRU))


@register_grad_sampler(GRU)
def _refuse(layer: GRU, activations: Sequence[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    raise TypeError(_REPLACED)


_NO_CELLS = (
    "there is no grad sampler for grucore.GRUCell: Opacus' own would ignore the state that it begins from. Use DPGRU, "
    "or vmap(grad(...)) of torch.func"
)


@register_module_validator(GRUCell)
def _validate_cell(cell: GRUCell) -> list[UnsupportedModuleError]:
    return [UnsupportedModuleError(_NO_CELLS)]


@register_grad_sampler(GRUCell)
def _refuse_cell(cell: GRUCell, activations: Sequence[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    raise TypeError(_NO_CELLS)


_SUBCLASS = (
    "Opacus cannot hook the keyword arguments or h_n of a subclass of grucore.GRU, such as a parametrised layer: make "
    "it a subclass of DPGRU"
)


def _register_layer(kind: type[GRU]) -> None:
    if issubclass(kind, DPGRU):
        register_grad_sampler(kind)(per_sample_gradients)
    else:
        register_module_validator(kind)(lambda _: [UnsupportedModuleError(_SUBCLASS)])
        register_grad_sampler(kind)(_refuse_subclass)


def _refuse_subclass(layer: GRU, activations: Sequence[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    raise TypeError(_SUBCLASS)


def _register_cell(kind: type[GRUCell]) -> None:
    register_module_validator(kind)(_validate_cell)
    register_grad_sampler(kind)(_refuse_cell)


def _for_subclasses(kind: Any, register: Callable[[Any], None]) -> None:
    """Registers the subclasses of today and of tomorrow: Opacus looks modules up by their exact class."""

    def of_new(cls: Any, **options: Any) -> None:
        super(kind, cls).__init_subclass__(**options)
        register(cls)

    kind.__init_subclass__ = classmethod(of_new)
    found = list(kind.__subclasses__())
    for each in found:
        found += each.__subclasses__()
        if each is not DPGRU:
            register(each)


_for_subclasses(GRU, _register_layer)
_for_subclasses(GRUCell, _register_cell)
