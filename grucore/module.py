"""The layer: `GRU`, a stack of layers with torch.nn.GRU's arguments, parameters and results."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as apply_dropout
from torch.nn.utils.rnn import PackedSequence

from grucore import copies, direct, dispatch, functional
from grucore.errors import InputError, check_size
from grucore.functional import Call, Stack
from grucore.kernels import Gates
from grucore.kernels.regularised import acting
from grucore.names import GAINS, of_weights, parameter_names
from grucore.options import DEFAULTS, Activation, Precision, variant_of
from grucore.stacked import StackedLayers
from grucore.steps import Lengths

if TYPE_CHECKING:
    from grucore.quantized import QuantizedGRU


class Trace(NamedTuple):
    """The result of `GRU.trace`; T time, B batch, H hidden, K layers, D directions; without B if unbatched."""

    y: Tensor  # (T, B, D*H), laid out as the input
    h_n: Tensor  # (K*D, B, H)
    gates: Gates  # r, z and n, each (K*D, T, B, H), 0 at padding
    layers: Tensor  # (K, *y.shape), the output of each layer


class GRU(StackedLayers):
    r"""A stack of gated recurrent unit layers; replaces :class:`torch.nn.GRU`.

    .. math::
        r_t &= \sigma(W_{ir} x_t + b_{ir} + W_{hr} h_{t-1} + b_{hr}) \\
        z_t &= \sigma(W_{iz} x_t + b_{iz} + W_{hz} h_{t-1} + b_{hz}) \\
        n_t &= \tanh(W_{in} x_t + b_{in} + r_t \odot (W_{hn} h_{t-1} + b_{hn})) \\
        h_t &= (1 - z_t) \odot n_t + z_t \odot h_{t-1}

    Source: Cho et al. 2014 (arXiv:1406.1078), in the form that torch.nn.GRU documents. `reset_after=False` is the
    paper's own candidate, n = tanh(W_in x + b_in + W_hn (r * h) + b_hn).

    Parameters have torch.nn.GRU's names, shapes, order and initialisation, U(-1/sqrt(H), 1/sqrt(H)): a `state_dict`
    loads both ways, and the same seed gives the same weights. Parameters are read on every call, so tied, parametrised
    and swapped weights just work, and `flatten_parameters` does nothing.

    Args:
        input_size: I, the number of features per step.
        hidden_size: H, the number of units.
        num_layers: K; each layer reads the output of the layer below.
        bias: whether there are biases b_ih and b_hh.
        batch_first: input, output, mask and reset are (B, T, ...) rather than (T, B, ...); h stays (K*D, B, H).
        dropout: probability of zeroing an element of the output of every layer but the last, in training.
        bidirectional: each layer also runs backwards (D = 2), and the two outputs are concatenated.
        device: of the parameters.
        dtype: of the parameters.
        reset_after: whether the reset gate acts after the recurrent product or, as in the paper, before it.
        heads: n, a divisor of H: the units are divided into n heads of H/n consecutive units, and the gates of a head
            see only the state of that head. W_hh is block-diagonal, with 1/n of the weights and of the work (FlashRNN,
            Pöppel et al. 2024, arXiv:2412.07752). In every other way heads are like n layers of H/n units side by side
            on the same input: `layer_norm` normalises each head.
        recurrent_dropout: probability of dropping a unit from the products with h, the same for all steps of a row, in
            training (variational dropout, Gal & Ghahramani 2016).
        zoneout: probability of a unit keeping its state in a step, in training; its expectation otherwise (Krueger et
            al. 2016).
        layer_norm: normalise W_ih x and W_hh h, with gains, before the biases are added (Ba et al. 2016).
        learn_initial_state: without hx the state before the first step is a parameter instead of 0.
        activation: of the candidate n: "tanh", "relu", "sigmoid", "hard_sigmoid", "hard_tanh", "softsign" or "linear".
        recurrent_activation: of the gates r and z; the same names.
        precision: of float32 products on a GPU: "ieee", "tf32", or None to follow torch.backends.cudnn.allow_tf32.
        backend: the implementation: "native" (C++ on CPUs), "eager" (PyTorch operators), "triton" (fused GPU kernels),
            "reference" (the equations, step by step), or "auto"; see `explain_backend`. An explicit backend that cannot
            run a call raises.

    Attributes:
        weight_ih_l[k]: (W_ir|W_iz|W_in) of layer k, shape (3H, I), or (3H, D*H) for k > 0.
        weight_hh_l[k]: (W_hr|W_hz|W_hn), shape (3H, H); with heads, that of each, shape (heads, 3H/heads, H/heads).
        bias_ih_l[k]: (b_ir|b_iz|b_in), shape (3H,).
        bias_hh_l[k]: (b_hr|b_hz|b_hn), shape (3H,).
        layer_norm_ih_l[k], layer_norm_hh_l[k]: the gains, shape (3H,), initially 1; only if layer_norm.
        initial_state: shape (K*D, H), initially 0; only if learn_initial_state.
        The names of the reverse direction end in `_reverse`.

    Raises:
        TypeError: a size that is not an int, a flag that is not a bool.
        InputError: (a ValueError and a RuntimeError) a size below 1, heads that do not divide H, a probability outside
            [0, 1], an unknown name.

    Example:
        >>> gru = GRU(10, 20, num_layers=2)
        >>> y, h_n = gru(torch.randn(5, 3, 10), lengths=torch.tensor([5, 0, 2]))
        >>> y.shape, h_n.shape
        (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        reset_after: bool = True,
        heads: int = 1,
        recurrent_dropout: float = 0.0,
        zoneout: float = 0.0,
        layer_norm: bool = False,
        learn_initial_state: bool = False,
        activation: Activation = "tanh",
        recurrent_activation: Activation = "sigmoid",
        proj_size: int = 0,
        precision: Precision | None = None,
        backend: dispatch.Backend = "auto",
    ) -> None:
        given = locals()
        super().__init__()
        if proj_size != 0:
            raise InputError(f"proj_size is for torch.nn.LSTM only: a GRU has no projection, got {proj_size!r}")
        self.input_size = check_size("input_size", input_size)
        self.hidden_size = check_size("hidden_size", hidden_size)
        self._set_options({name: given[name] for name in DEFAULTS})
        if self.dropout > 0 and self.num_layers == 1:
            warnings.warn(
                "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects "
                f"num_layers greater than 1, but got dropout={dropout} and num_layers={num_layers}",
                stacklevel=2,
            )
        self._make_parameters(device, dtype)
        self.reset_parameters()

    def _make_parameters(self, device: torch.device | str | int | None, dtype: torch.dtype | None) -> None:
        D, size = self.num_directions, 3 * self.hidden_size
        kinds = of_weights(self.bias) + (GAINS if self.layer_norm else ())
        for i, names in enumerate(parameter_names(self.num_layers, D, kinds)):
            features = self.input_size if i < D else D * self.hidden_size
            shapes = {"weight_ih": (size, features), "weight_hh": self._weight_hh_shape()}
            for kind, name in zip(kinds, names, strict=True):
                shape = shapes.get(kind, (size,))
                setattr(self, name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        if self.learn_initial_state:
            shape = (self.num_layers * D, self.hidden_size)
            self.initial_state = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

    def _groups(self, kinds: tuple[str, ...]) -> list[list[Tensor]]:
        """The parameters of some kinds: K*D groups."""
        groups = parameter_names(self.num_layers, self.num_directions, kinds)
        return [[getattr(self, name) for name in names] for names in groups]

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The parameters of each layer and direction: K*D groups (weight_ih, weight_hh[, bias_ih, bias_hh])."""
        return self._weight_groups()

    def _weight_groups(self) -> list[list[Tensor]]:  # no property, which would hide the name of a missing parameter
        return self._groups(of_weights(self.bias))

    def reset_parameters(self) -> None:
        """Draws weights and biases from U(-1/sqrt(H), 1/sqrt(H)), in torch.nn.GRU's order; gains 1, initial state 0.

        With heads weight_hh is from U(-sqrt(heads/H), sqrt(heads/H)): a gate sums H/heads products with the state, and
        with the smaller bound a head would forget sooner than a layer of its size.
        """
        self._draw_parameters()

    @overload
    def forward(
        self,
        input: Tensor,
        hx: Tensor | None = None,
        *,
        lengths: Lengths | int | None = None,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        reset_state: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def forward(self, input: PackedSequence, hx: Tensor | None = None) -> tuple[PackedSequence, Tensor]: ...

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
        """Runs the layer over a batch of sequences.

        T time, B batch, I input, H hidden, K layers, D directions.

        Args:
            input: shape (T, B, I), (B, T, I) if batch_first, (T, I) unbatched, or a PackedSequence.
            hx: the initial state, shape (K*D, B, H), or (K*D, H) for unbatched input; zeros if None.
            lengths: shape (B,), integers from 0 to T in any order, on any device (or an int, unbatched): the steps
                from there on are padding. There is no host-device synchronisation, so lengths on a GPU are not checked.
            mask: shape (T, B), or (B, T) if batch_first, bool, False at padding, in any pattern, left padding
                included. At padding steps the state is unchanged, the output is 0 and no gradient flows, even if the
                input there is NaN. Not together with lengths; a PackedSequence takes none of these arguments.
            reset: shape as mask, bool: before a step where it is True, the state goes back to hx. It splits the
                sequence in both directions; a reset followed only by padding has no effect.
            reset_state: shape as hx: the state that resets go to instead of hx, for unidirectional layers. It serves
                batches that carry hx over from the batch before (reinforcement learning, truncated backpropagation),
                while new episodes begin from reset_state.

        Returns:
            y, shape (T, B, D*H), in the layout of the input, and h_n, shape (K*D, B, H): the state after each row's
            last non-padding step. For a PackedSequence, y is one too.

        Raises:
            InputError: (a ValueError and a RuntimeError) a wrong size or value.
            TypeError: lengths that are not integers, a mask or reset that is not bool.
            RuntimeError: an explicit backend that cannot run.

        Example:
            >>> gru, x = GRU(3, 4, num_layers=2), torch.randn(5, 2, 3)
            >>> mask = torch.tensor([[0, 1, 1, 1, 1], [0, 0, 0, 1, 1]], dtype=torch.bool).t()  # left padding
            >>> y, h_n = gru(x, mask=mask)
            >>> torch.equal(h_n[-1], y[-1]), int(y[:3, 1].count_nonzero())
            (True, 0)
            >>> reset = torch.zeros(5, 2, dtype=torch.bool)
            >>> reset[3] = True  # steps 3 and 4 do not depend on those before
            >>> torch.allclose(gru(x, reset=reset)[0][3:], gru(x[3:])[0], atol=1e-6)
            True
        """
        if mask is reset is reset_state is None and (result := direct.forward(self, input, hx, lengths)) is not None:  # type: ignore[arg-type]
            return result
        x, hx, call, layout = self._arranged(input, hx, Call(lengths, mask, reset, reset_state))  # type: ignore[arg-type]
        y, h_n, _, _ = functional.run(x, *self._state_and_stack(x, hx), call)
        return layout.sequence(y), layout.state(h_n)

    if TYPE_CHECKING:
        __call__ = forward

    def trace(
        self,
        input: Tensor,
        hx: Tensor | None = None,
        *,
        lengths: Lengths | int | None = None,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        reset_state: Tensor | None = None,
    ) -> Trace:
        """Also returns the gates and the output of every layer; runs step by step in PyTorch.

        The arguments are those of `forward`, except that a PackedSequence is refused. The layer's hooks do not run,
        except as in `step`.

        Returns:
            A `Trace`: y and h_n as from `forward`; gates, `Gates(r, z, n)`, each of shape (K*D, T, B, H) and 0 at
            padding; and layers, shape (K, *y.shape). Gates and layers have no B if unbatched.

        Raises:
            InputError, TypeError: as `forward`.
            RuntimeError: an explicit backend other than "reference", which cannot return gates.

        Example:
            >>> trace = GRU(3, 4, num_layers=2).trace(torch.randn(5, 2, 3))
            >>> trace.gates.z.shape, trace.layers.shape
            (torch.Size([2, 5, 2, 4]), torch.Size([2, 5, 2, 4]))
        """
        if isinstance(input, PackedSequence):
            raise InputError("trace requires a padded input: pad_packed_sequence gives the input and its lengths")
        self._recompute_weights()
        x, hx, call, layout = self._arranged(input, hx, Call(lengths, mask, reset, reset_state))  # type: ignore[arg-type]
        y, h_n, gates, layers = functional.run(x, *self._state_and_stack(x, hx), call, wants_gates=True)
        assert gates is not None
        gates = Gates(*map(layout.unbatched, gates))
        return Trace(layout.sequence(y), layout.state(h_n), gates, layout.sequence(torch.stack(layers)))

    def _explained(self, x: Tensor, hx: Tensor | None, call: Call) -> dispatch.Choice:
        return functional.explain(x, *self._state_and_stack(x, hx), call)

    def _state_and_stack(self, x: Tensor, hx: Tensor | None) -> tuple[Tensor | None, Stack]:
        """The state that a time-major batch begins with, and the parameters and options of all layers."""
        gains = self._groups(GAINS) if self.layer_norm else None
        return self._first_state(x, hx), Stack(self._weight_groups(), gains, self, self.training)

    def _recompute_weights(self) -> None:
        """Runs the hooks of torch.nn.utils by which prune and others set weights before each `forward`."""
        for hook in self._forward_pre_hooks.values():
            if type(hook).__module__.startswith("torch.nn.utils."):
                hook(self, ())

    def step(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Runs all layers for one step, for streaming.

        T such calls equal one call on the whole sequence, except that recurrent dropout in training draws a new mask in
        each call. Of the layer's hooks, only those of torch.nn.utils that recompute weights run (prune, the older
        weight_norm and spectral_norm), and a subclass's `forward` does not.

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
        if self._forward_pre_hooks:
            self._recompute_weights()
        if (result := direct.step(self, input, hx)) is not None:
            return result
        expected = self._check_step(input, hx)
        is_bare = dispatch.is_step_native(acting(variant_of(self, self.training)))
        if not is_bare or (hx is None and self.learn_initial_state):
            rows = input if input.dim() == 2 else input.unsqueeze(0)
            hx = None if hx is None else hx.view(len(hx), len(rows), self.hidden_size)
            x = rows.unsqueeze(0)
            y, h_n, _, _ = functional.run(x, *self._state_and_stack(x, hx), Call())
            return y.view(expected[1:]), h_n.view(expected)
        if hx is None:
            hx = input.new_zeros(expected)
        y, states = input, []
        norms = self._groups(GAINS) if self.layer_norm else [None] * self.num_layers
        for layer, (weights, gains) in enumerate(zip(self._weight_groups(), norms, strict=True)):
            if layer > 0:
                y = apply_dropout(y, self.dropout, training=self.training)
            y = functional.step(y, hx[layer], weights, gains, self, self.training)
            states.append(y)
        return y, torch.stack(states)

    def quantize(self, dtype: Literal["int8", "bf16"]) -> QuantizedGRU:
        """A copy with quantised weights, for inference on a CPU; this layer stays as it is.

        Tied weights become separate, and a subclass's own code stays behind.

        Args:
            dtype: of the weights: "int8", with a scale for each row, or "bf16", bfloat16.

        Raises:
            InputError: an unknown dtype; heads, zoneout, layer_norm or another activation; weights that are not
                float32 on the CPU, or not finite.

        Example:
            >>> y, h_n = GRU(3, 4).quantize("int8")(torch.randn(5, 2, 3))
        """
        from grucore.quantized import QuantizedGRU

        return QuantizedGRU(self, dtype)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        """Refuses the int8 weights of a quantised layer, which PyTorch would take for the weights themselves."""
        for name in self._parameters:
            if getattr(state_dict.get(prefix + name), "dtype", None) is torch.int8:
                arguments[-1].append(
                    f"{prefix + name} is of a layer that is quantised to int8: load it into such a layer, as "
                    "GRU.quantize makes it; its dequantize() returns a float one"
                )
                return
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    @classmethod
    def from_torch(
        cls, module: nn.GRU, *, precision: Precision | None = None, backend: dispatch.Backend = "auto"
    ) -> GRU:
        """A copy of a torch.nn.GRU: the same options, parameters, device, dtype and mode.

        Raises:
            TypeError: the module is not a torch.nn.GRU.

        Example:
            >>> GRU.from_torch(nn.GRU(3, 4, bidirectional=True))
            GRU(3, 4, bidirectional=True)
        """
        return copies.from_torch(cls, copies.TorchGRU, module, precision=precision, backend=backend)

    def to_dense(self) -> GRU:
        """A copy without heads that computes the same: its recurrent weights are block-diagonal, zeros included.

        For what knows no heads: `to_torch`, the converters, ONNX. Trained on, it does not stay block-diagonal. A
        subclass's own code and parameters stay behind.

        Raises:
            InputError: layer_norm, which normalises each head.

        Example:
            >>> gru, x = GRU(3, 8, heads=4), torch.randn(5, 2, 3)
            >>> dense = gru.to_dense().to_torch()
            >>> gru.weight_hh_l0.shape, dense.weight_hh_l0.shape
            (torch.Size([4, 6, 2]), torch.Size([24, 8]))
            >>> torch.allclose(gru(x)[0], dense(x)[0], atol=1e-6)
            True
        """
        return copies.to_dense(self, GRU)

    def to_torch(self) -> nn.GRU:
        """A copy as torch.nn.GRU: the same options, parameters, device, dtype and mode.

        Parametrised weights (weight_norm, pruning) are copied as currently computed. A subclass's own code and
        parameters stay behind.

        Raises:
            InputError: the layer has an option that torch.nn.GRU does not have.

        Example:
            >>> type(GRU(3, 4).to_torch())
            <class 'torch.nn.modules.rnn.GRU'>
        """
        return copies.to_torch(self)
