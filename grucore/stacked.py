"""The part that `GRU` and `QuantizedGRU` share: a stack of layers with torch.nn.GRU's layouts and attributes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from grucore import dispatch
from grucore.errors import InputError, check_tensor, differ
from grucore.functional import Call
from grucore.layouts import Arranged, arranged
from grucore.options import LayerWithOptions
from grucore.steps import Lengths


class StackedLayers(LayerWithOptions):
    """K layers with D directions; subclasses hold their weights."""

    mode = "GRU"  # this and proj_size are for code that inspects torch.nn's recurrent layers
    proj_size = 0
    initial_state: Tensor

    @property
    def num_directions(self) -> int:
        """D: 2 if bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    def flatten_parameters(self) -> None:
        """Does nothing, since there is no flat copy of the parameters. Exists for code written for torch.nn.GRU."""

    def explain_backend(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Lengths | int | None = None,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        reset_state: Tensor | None = None,
    ) -> dispatch.Choice:
        """Says which implementation this call of the layer would run, and why.

        The arguments are those of `forward`. The context counts too: autocast, torch.func, training mode.

        Returns:
            A `Choice`: its name ("native", "eager", "triton", "reference", or "regularised" if options such as
            layer_norm run step by step in PyTorch), and the reason. Of quantised weights, "native" is their kernels,
            and "eager" PyTorch's operators on dequantised ones.

        Raises:
            RuntimeError: the layer's explicit backend cannot run the call.
            InputError, TypeError: as `forward`.

        Example:
            >>> from grucore import GRU
            >>> GRU(3, 4, backend="eager").explain_backend(torch.randn(5, 2, 3))
            Choice(name='eager', reason='asked for')
            >>> GRU(3, 4, zoneout=0.1, backend="reference").explain_backend(torch.randn(5, 2, 3))
            Traceback (most recent call last):
            RuntimeError: backend='reference' cannot run: the equations have no zoneout. Use backend='auto'
        """
        x, hx, arranged_call, _ = self._arranged(input, hx, Call(lengths, mask, reset, reset_state))  # type: ignore[arg-type]
        return self._explained(x, hx, arranged_call)

    def _explained(self, x: Tensor, hx: Tensor | None, call: Call) -> dispatch.Choice:
        """`explain_backend` of a time-major batch."""
        raise NotImplementedError

    def final_state(self, h_n: Tensor) -> Tensor:
        """Selects the last layer's final state and concatenates its directions, for instance for a classifier.

        Args:
            h_n: shape (K*D, B, H), or (K*D, H) unbatched, as returned by `forward`; lengths are respected.

        Returns:
            Shape (B, D*H), or (D*H,) unbatched: forward, then (if bidirectional) reverse.

        Example:
            >>> from grucore import GRU
            >>> gru = GRU(3, 4, num_layers=2, bidirectional=True)
            >>> gru.final_state(gru(torch.randn(5, 2, 3))[1]).shape
            torch.Size([2, 8])
        """
        check_tensor("h_n", h_n)
        if h_n.dim() not in (2, 3) or differ((h_n.shape[0], h_n.shape[-1]), (self._states, self.hidden_size)):
            raise InputError(f"h_n must be ({self._states}, B, {self.hidden_size}), got {tuple(h_n.shape)}")
        return torch.cat(h_n[-self.num_directions :].unbind(), -1)

    @property
    def _states(self) -> int:
        return self.num_layers * self.num_directions

    def _arranged(self, input: Tensor | PackedSequence, hx: Tensor | None, call: Call) -> Arranged:
        return arranged(input, hx, call, self.batch_first, (self._states, self.hidden_size))

    def _first_state(self, x: Tensor, hx: Tensor | None) -> Tensor | None:
        """The state that a time-major batch begins with; None for zeros.

        Raises:
            InputError: x has another number of features.
        """
        if differ(x.shape[-1:], (self.input_size,)):
            raise InputError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {x.shape[-1]}"
            )
        if hx is None and self.learn_initial_state:
            return self.initial_state.unsqueeze(1).expand(-1, x.shape[1], -1)
        return hx

    def _check_step(self, input: Tensor, hx: Tensor | None) -> tuple[int, ...]:
        """Raises unless a step's arguments fit; returns the shape of its states."""
        if self.bidirectional:
            raise InputError("step requires a unidirectional layer: a bidirectional GRU must see the whole sequence")
        check_tensor("input", input)
        if input.dim() not in (1, 2) or differ(input.shape[-1:], (self.input_size,)):
            raise InputError(
                f"step: input must be (B, {self.input_size}) or ({self.input_size},), got {tuple(input.shape)}"
            )
        expected = (self.num_layers, *input.shape[:-1], self.hidden_size)
        if hx is not None:
            check_tensor("hx", hx)
            if differ(hx.shape, expected):
                raise InputError(f"step: Expected hidden size {expected}, got {list(hx.shape)}")
        return expected
