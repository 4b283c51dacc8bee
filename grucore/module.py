"""The layer: parameters, initialisation and torch.nn.GRU's signature around `grucore.functional`."""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as apply_dropout
from torch.nn.utils.rnn import PackedSequence

from grucore import backend as backends
from grucore.errors import InputError, check_size
from grucore.functional import gru, gru_cell
from grucore.kernels.reference import Gates
from grucore.sequence import repack, unpack


class GRU(nn.Module):
    r"""A stack of gated recurrent unit layers; takes the place of :class:`torch.nn.GRU`.

    .. math::
        r_t &= \sigma(W_{ir} x_t + b_{ir} + W_{hr} h_{t-1} + b_{hr}) \\
        z_t &= \sigma(W_{iz} x_t + b_{iz} + W_{hz} h_{t-1} + b_{hz}) \\
        n_t &= \tanh(W_{in} x_t + b_{in} + r_t \odot (W_{hn} h_{t-1} + b_{hn})) \\
        h_t &= (1 - z_t) \odot n_t + z_t \odot h_{t-1}

    Source: Cho et al. 2014 (arXiv:1406.1078), in the form that torch.nn.GRU documents. `reset_after=False` is the
    paper's own candidate, n = tanh(W_in x + b_in + W_hn (r * h) + b_hn).

    Parameters have torch.nn.GRU's names, shapes, order and initialisation, U(-1/sqrt(H), 1/sqrt(H)): a `state_dict`
    loads both ways, and the same seed gives the same weights. Parameters are read at every call, so tied, parametrised
    and swapped weights just work, and `flatten_parameters` has nothing to do.

    Args:
        input_size: I, the number of features of a step.
        hidden_size: H, the number of units.
        num_layers: K; each layer reads the output of the one before.
        bias: whether there are b_ih and b_hh.
        batch_first: input, output, mask and reset are (B, T, ...) rather than (T, B, ...); h stays (K*D, B, H).
        dropout: probability of zeroing an element of each layer's output but the last, in training.
        bidirectional: each layer also runs from the end (D = 2), and the outputs stand side by side.
        device: of the parameters.
        dtype: of the parameters.
        reset_after: where the reset gate acts, see above.
        precision: of float32 products on a GPU: "ieee", "tf32", or None for what torch.backends.cudnn.allow_tf32 says.
        backend: "auto", "triton" or "reference"; an explicit one that cannot run raises.

    Attributes:
        weight_ih_l[k]: (W_ir|W_iz|W_in) of layer k, shape (3H, I), or (3H, D*H) for k > 0.
        weight_hh_l[k]: (W_hr|W_hz|W_hn), shape (3H, H).
        bias_ih_l[k]: (b_ir|b_iz|b_in), shape (3H,).
        bias_hh_l[k]: (b_hr|b_hz|b_hn), shape (3H,).
        The reverse direction's names end in `_reverse`.

    Raises:
        TypeError: a size that is no int, a flag that is no bool.
        ValueError: a size below 1, a probability outside [0, 1], an unknown precision or backend.

    Example:
        >>> gru = GRU(10, 20, num_layers=2)
        >>> y, h_n = gru(torch.randn(5, 3, 10), lengths=torch.tensor([5, 0, 2]))
        >>> y.shape, h_n.shape
        (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))
    """

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
        precision: str | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        for name, size in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
            check_size(name, size)
        for name, flag in (("bias", bias), ("batch_first", batch_first), ("reset_after", reset_after)):
            if not isinstance(flag, bool):
                raise TypeError(f"{name} should be of type bool, got: {type(flag).__name__}")
        if isinstance(dropout, bool) or not isinstance(dropout, numbers.Number) or not 0 <= dropout <= 1:
            raise ValueError(
                f"dropout should be a number in range [0, 1] representing the probability of an element being zeroed, "
                f"got {dropout!r}"
            )
        if dropout > 0 and num_layers == 1:
            warnings.warn(
                "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects "
                f"num_layers greater than 1, but got dropout={dropout} and num_layers={num_layers}",
                stacklevel=2,
            )
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bool(bidirectional)
        self.reset_after = reset_after
        backends.resolve_precision(precision)
        self.precision = precision
        self.backend = backends.check(backend)

        for layer in range(num_layers):
            layer_input_size = input_size if layer == 0 else self.num_directions * hidden_size
            shapes: list[tuple[int, ...]] = [(3 * hidden_size, layer_input_size), (3 * hidden_size, hidden_size)]
            shapes += [(3 * hidden_size,), (3 * hidden_size,)] if bias else []
            for direction in range(self.num_directions):
                for name, shape in zip(self._names(layer, direction), shapes, strict=True):
                    setattr(self, name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()

    @property
    def num_directions(self) -> int:
        """D: 2 if bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    def _names(self, layer: int, direction: int) -> list[str]:
        suffix = f"_l{layer}" + ("_reverse" if direction else "")
        kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if self.bias else ("weight_ih", "weight_hh")
        return [kind + suffix for kind in kinds]

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The parameters of each layer and direction: K*D groups (weight_ih, weight_hh[, bias_ih, bias_hh])."""
        return [
            [getattr(self, name) for name in self._names(layer, direction)]
            for layer in range(self.num_layers)
            for direction in range(self.num_directions)
        ]

    def reset_parameters(self) -> None:
        """Draws every parameter from U(-1/sqrt(H), 1/sqrt(H)), in torch.nn.GRU's order."""
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def flatten_parameters(self) -> None:
        """Does nothing: no flat copy of the parameters exists. Here for code written for torch.nn.GRU."""

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | Sequence[int] | int | None = None,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        return_gates: bool = False,
    ) -> Any:
        """All states of a batch of sequences.

        T time, B batch, I input, H hidden, K layers, D directions.

        Args:
            input: shape (T, B, I), (B, T, I) if batch_first, (T, I) unbatched, or a PackedSequence.
            hx: the initial state, shape (K*D, B, H), or (K*D, H) for unbatched input; zeros if None.
            lengths: shape (B,), integers from 0 to T in any order, on any device (or an int, unbatched): the steps
                from there on are padding. Nothing waits for a device, so lengths on a GPU are not checked.
            mask: shape (T, B), or (B, T) if batch_first, bool, True for a real step; any pattern, so left padding
                works. A step that is not real holds the state, outputs 0 and passes no gradient, whatever the input
                holds there.
            reset: shape as mask, bool: before such a step the state goes back to hx. The sequence is cut there, for
                both directions; a cut with no real step beyond it changes nothing.
            return_gates: also return `Gates(r, z, n)`, each (K*D, T, B, H) (without B if unbatched).

        Returns:
            y, shape (T, B, D*H), laid out as the input, and h_n, shape (K*D, B, H): the state after each row's last
            real step. For a PackedSequence, y is one too.

        Raises:
            InputError: (a ValueError and a RuntimeError) a size or value that does not fit.
            TypeError: lengths that are no integers, a mask or reset that is not bool.
            RuntimeError: an explicit backend that cannot run.
        """
        call: dict[str, Any] = {"mask": mask, "reset": reset, "return_gates": return_gates}
        if isinstance(input, PackedSequence):
            if lengths is not None or mask is not None or reset is not None or return_gates:
                raise InputError("lengths, mask, reset and return_gates go with a padded input, not a PackedSequence")
            return self._forward_packed(input, hx)
        if input.dim() not in (2, 3):
            raise InputError(f"GRU: Expected input to be 2D or 3D, got {input.dim()}D instead")
        batched = input.dim() == 3
        if hx is not None and hx.dim() != input.dim():
            kind = "batched 3-D" if batched else "unbatched 2-D"
            raise InputError(f"For {kind} input, hx should also be {input.dim()}-D but got {hx.dim()}-D tensor")
        if not batched:
            y, h_n, *gates = self._forward_unbatched(input, hx, lengths, **call)
        elif self.batch_first:
            call["mask"], call["reset"] = (_swapped(flag) for flag in (mask, reset))
            y, h_n, *gates = self._run(input.transpose(0, 1), hx, lengths=lengths, **call)
            y = y.transpose(0, 1)
        else:
            y, h_n, *gates = self._run(input, hx, lengths=lengths, **call)
        return (y, h_n, *gates)

    def _run(self, input: Tensor, hx: Tensor | None, **call: Any) -> Any:
        """`functional.gru` of a time-major batch with this layer's parameters and options."""
        if input.shape[-1] != self.input_size:
            raise InputError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {input.shape[-1]}"
            )
        return gru(
            input,
            hx,
            self.all_weights,
            bidirectional=self.bidirectional,
            dropout=self.dropout,
            training=self.training,
            reset_after=self.reset_after,
            precision=self.precision,
            backend=self.backend,
            **call,
        )

    def _forward_unbatched(
        self,
        input: Tensor,
        hx: Tensor | None,
        lengths: Tensor | Sequence[int] | int | None,
        mask: Tensor | None,
        reset: Tensor | None,
        return_gates: bool,
    ) -> Any:
        if lengths is not None:
            lengths = torch.as_tensor(lengths).reshape(-1)
        mask, reset = (flag.unsqueeze(1) if isinstance(flag, Tensor) else flag for flag in (mask, reset))
        hx = None if hx is None else hx.unsqueeze(1)
        y, h_n, *gates = self._run(
            input.unsqueeze(1), hx, lengths=lengths, mask=mask, reset=reset, return_gates=return_gates
        )
        return y.squeeze(1), h_n.squeeze(1), *(Gates(*(gate.squeeze(2) for gate in each)) for each in gates)

    def _forward_packed(self, packed: PackedSequence, hx: Tensor | None) -> tuple[PackedSequence, Tensor]:
        if packed.data.dim() != 2:
            raise InputError(f"a PackedSequence must hold data of 2 dimensions (N, I), got {tuple(packed.data.shape)}")
        if hx is not None and packed.sorted_indices is not None:
            if hx.dim() != 3 or hx.shape[1] != len(packed.sorted_indices):
                expected = (self.num_layers * self.num_directions, len(packed.sorted_indices), self.hidden_size)
                raise InputError(f"Expected hidden size {expected}, got {list(hx.shape)}")
            hx = hx.index_select(1, packed.sorted_indices)
        x, lengths = unpack(packed)
        y, h_n = self._run(x, hx, lengths=lengths)
        if packed.unsorted_indices is not None:
            h_n = h_n.index_select(1, packed.unsorted_indices)
        return repack(y, lengths, packed), h_n

    def step(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One step of all layers, for streaming: calling it T times equals one call on the whole sequence.

        Args:
            input: shape (B, I), or (I,) unbatched.
            hx: shape (K, B, H), or (K, H) unbatched; zeros if None.

        Returns:
            y, shape (B, H), the last layer's state; and the new hx, shape (K, B, H). Without B if unbatched.

        Raises:
            InputError: the layer is bidirectional, or a size does not fit.

        Example:
            >>> gru, h = GRU(3, 4), None
            >>> for x_t in torch.randn(5, 2, 3):
            ...     y_t, h = gru.step(x_t, h)
            >>> y_t.shape, h.shape
            (torch.Size([2, 4]), torch.Size([1, 2, 4]))
        """
        if self.bidirectional:
            raise InputError("step needs one direction: a bidirectional GRU reads the whole sequence first")
        if input.dim() not in (1, 2) or input.shape[-1] != self.input_size:
            raise InputError(
                f"step: input must be (B, {self.input_size}) or ({self.input_size},), got {tuple(input.shape)}"
            )
        expected = (self.num_layers, *input.shape[:-1], self.hidden_size)
        if hx is None:
            hx = input.new_zeros(expected)
        elif tuple(hx.shape) != expected:
            raise InputError(f"step: Expected hidden size {expected}, got {list(hx.shape)}")
        y, states = input, []
        for layer, weights in enumerate(self.all_weights):
            if layer > 0:
                y = apply_dropout(y, self.dropout, training=self.training)
            options: dict[str, Any] = {name: getattr(self, name) for name in ("reset_after", "precision", "backend")}
            y = gru_cell(y, hx[layer], *weights, **options)
            states.append(y)
        return y, torch.stack(states)

    def backend_for(self, input: Tensor) -> backends.Choice:
        """The implementation that a call on this input runs, `.name` "triton" or "reference", and the `.reason`."""
        precision = backends.resolve_precision(self.precision)
        return backends.choose(self.backend, input.device, input.dtype, self.hidden_size, self.reset_after, precision)

    @classmethod
    def from_torch(cls, module: nn.GRU, *, backend: str = "auto") -> GRU:
        """A copy of a torch.nn.GRU: the same options, parameters, device, dtype and mode."""
        if not isinstance(module, nn.GRU):
            raise TypeError(f"from_torch needs a torch.nn.GRU, got {type(module).__name__}")
        return _copied(module, cls, backend=backend)

    def to_torch(self) -> nn.GRU:
        """A copy as torch.nn.GRU: the same options, parameters, device, dtype and mode.

        Raises:
            ValueError: reset_after=False, which torch.nn.GRU does not have.
        """
        if not self.reset_after:
            raise ValueError("torch.nn.GRU has no reset_after=False; this layer has no equal there")
        return _copied(self, nn.GRU)

    def extra_repr(self) -> str:
        """The arguments that differ from their defaults, as torch.nn.GRU prints them."""
        parts = [f"{self.input_size}, {self.hidden_size}"]
        defaults = {
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "dropout": 0,
            "bidirectional": False,
            "reset_after": True,
            "precision": None,
            "backend": "auto",
        }
        for name, default in defaults.items():
            value = getattr(self, name)
            if value != default:
                parts.append(f"{name}={value!r}")
        return ", ".join(parts)


def _swapped(flag: Tensor | None) -> Tensor | None:
    """A flag (B, T) as (T, B); what has another shape is left for the check that names it."""
    return flag.t() if isinstance(flag, Tensor) and flag.dim() == 2 else flag


def _copied(source: nn.Module, kind: type, **options: Any) -> Any:
    """A layer of another kind with the options, parameters and mode of source."""
    weight = source.weight_ih_l0
    names = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the dropout warning was given when source was made
        copy = kind(*(getattr(source, name) for name in names), device=weight.device, dtype=weight.dtype, **options)
    copy.load_state_dict(source.state_dict())
    for name, parameter in source.named_parameters():
        getattr(copy, name).requires_grad_(parameter.requires_grad)
    return copy.train(source.training)
