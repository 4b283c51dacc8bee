"""The layer: every layout that torch.nn.GRU takes, around `grucore.functional`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as apply_dropout
from torch.nn.utils.rnn import PackedSequence

from grucore import backend as backends
from grucore import copies
from grucore.errors import InputError, differ
from grucore.exporting import in_onnx_export
from grucore.functional import beyond_the_recurrence, check_tensor, gru, gru_cell
from grucore.kernels.reference import Gates
from grucore.kernels.variants import acting
from grucore.sequence import as_lengths, check_step_flag, repack, unpack
from grucore.stack import Stack

_OPTIONS = [  # of `gru`, that a layer holds under the same names
    "bidirectional",
    "dropout",
    "training",
    "reset_after",
    "recurrent_dropout",
    "zoneout",
    "activation",
    "recurrent_activation",
    "precision",
    "backend",
]


class GRU(Stack):
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
        recurrent_dropout: probability of dropping a unit from the products with h, the same for all steps of a row, in
            training (variational dropout, Gal & Ghahramani 2016).
        zoneout: probability of a unit keeping its state in a step, in training; its expectation otherwise (Krueger et
            al. 2016).
        layer_norm: normalise W_ih x and W_hh h, with gains, before the biases are added (Ba et al. 2016).
        learn_initial_state: the state before the first step, where no hx is given, is a parameter instead of 0.
        activation: of the candidate n: "tanh", "relu", "sigmoid", "hard_sigmoid", "hard_tanh", "softsign" or "linear".
        recurrent_activation: of the gates r and z, likewise.
        precision: of float32 products on a GPU: "ieee", "tf32", or None for what torch.backends.cudnn.allow_tf32 says.
        backend: "auto", "triton" or "reference"; an explicit one that cannot run raises.

    Attributes:
        weight_ih_l[k]: (W_ir|W_iz|W_in) of layer k, shape (3H, I), or (3H, D*H) for k > 0.
        weight_hh_l[k]: (W_hr|W_hz|W_hn), shape (3H, H).
        bias_ih_l[k]: (b_ir|b_iz|b_in), shape (3H,).
        bias_hh_l[k]: (b_hr|b_hz|b_hn), shape (3H,).
        layer_norm_ih_l[k], layer_norm_hh_l[k]: the gains, shape (3H,), 1 at first; where layer_norm.
        initial_state: shape (K*D, H), 0 at first; where learn_initial_state.
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

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | Sequence[int] | int | None = None,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        reset_state: Tensor | None = None,
        return_gates: bool = False,
        return_all_layers: bool = False,
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
            reset_state: shape as hx: what resets go to instead of hx, in one direction. For a batch that carries hx on
                from the one before (reinforcement learning, truncated backpropagation), whose new episodes begin here.
            return_gates: also return `Gates(r, z, n)`, each (K*D, T, B, H) (without B if unbatched).
            return_all_layers: also return the outputs of all layers, shape (K, *y.shape).

        Returns:
            y, shape (T, B, D*H), laid out as the input, and h_n, shape (K*D, B, H): the state after each row's last
            real step. For a PackedSequence, y is one too. Then, if asked, the gates and the outputs of all layers.

        Raises:
            InputError: (a ValueError and a RuntimeError) a size or value that does not fit.
            TypeError: lengths that are no integers, a mask or reset that is not bool.
            RuntimeError: an explicit backend that cannot run.

        Example:
            >>> gru, x = GRU(3, 4, num_layers=2), torch.randn(5, 2, 3)
            >>> mask = torch.tensor([[0, 1, 1, 1, 1], [0, 0, 0, 1, 1]], dtype=torch.bool).t()  # left padding
            >>> y, h_n = gru(x, mask=mask)
            >>> torch.equal(h_n[-1], y[-1]), int(y[:3, 1].count_nonzero())
            (True, 0)
            >>> reset = torch.zeros(5, 2, dtype=torch.bool)
            >>> reset[3] = True  # steps 3 and 4 know nothing of those before
            >>> torch.allclose(gru(x, reset=reset)[0][3:], gru(x[3:])[0], atol=1e-6)
            True
            >>> y, h_n, gates, layers = gru(x, return_gates=True, return_all_layers=True)
            >>> gates.z.shape, layers.shape
            (torch.Size([2, 5, 2, 4]), torch.Size([2, 5, 2, 4]))
        """
        call: dict[str, Any] = {"lengths": lengths, "mask": mask, "reset": reset, "reset_state": reset_state}
        call |= {"return_gates": return_gates, "return_all_layers": return_all_layers}
        if isinstance(input, PackedSequence):
            if given := [name for name, value in call.items() if value is not None and value is not False]:
                raise InputError(
                    f"{', '.join(given)} goes with a padded input, not with a PackedSequence: "
                    "pad_packed_sequence gives the input and its lengths"
                )
            return self._forward_packed(input, hx)
        if not isinstance(input, Tensor):
            raise TypeError(f"input must be a Tensor or a PackedSequence, got {type(input).__name__}")
        if hx is not None:
            check_tensor("hx", hx)
        if input.dim() not in (2, 3):
            raise InputError(f"GRU: Expected input to be 2D or 3D, got {input.dim()}D instead")
        batched = input.dim() == 3
        if hx is not None and hx.dim() != input.dim():
            kind = "batched 3-D" if batched else "unbatched 2-D"
            raise InputError(f"For {kind} input, hx should also be {input.dim()}-D but got {hx.dim()}-D tensor")
        if not batched:
            return self._forward_unbatched(input, hx, **call)
        if not self.batch_first:
            return self._run(input, hx, **call)
        for name, flag in (("mask", mask), ("reset", reset)):
            if flag is not None:
                check_step_flag(name, flag, B=input.shape[0], T=input.shape[1])
                call[name] = flag.t()
        y, h_n, *others = self._run(input.transpose(0, 1), hx, **call)
        others = [each if isinstance(each, Gates) else each.transpose(1, 2) for each in others]
        return (y.transpose(0, 1), h_n, *others)

    def _run(self, input: Tensor, hx: Tensor | None, **call: Any) -> Any:
        """`functional.gru` of a time-major batch with this layer's parameters and options."""
        if differ(input.shape[-1:], (self.input_size,)):
            raise InputError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {input.shape[-1]}"
            )
        if hx is None and self.learn_initial_state:
            hx = self.initial_state.unsqueeze(1).expand(-1, input.shape[1], -1)
        layer_norms: Any = self._groups(self._norm_names) if self.layer_norm else None
        options: dict[str, Any] = {name: getattr(self, name) for name in _OPTIONS}
        return gru(input, hx, self.all_weights, layer_norms=layer_norms, **options, **call)

    def _forward_unbatched(self, input: Tensor, hx: Tensor | None, **call: Any) -> Any:
        if call["lengths"] is not None:
            call["lengths"] = as_lengths(call["lengths"]).reshape(-1)
            if differ(call["lengths"].shape, (1,)):
                raise InputError(f"an unbatched input has one length, got {len(call['lengths'])}")
        for name in ("mask", "reset"):
            if call[name] is not None:
                check_step_flag(name, call[name], T=len(input))
                call[name] = call[name].unsqueeze(1)
        if call["reset_state"] is not None:
            expected = (self.num_layers * self.num_directions, self.hidden_size)
            if differ(call["reset_state"].shape, expected):
                raise InputError(f"Expected reset_state of shape {expected}, got {tuple(call['reset_state'].shape)}")
            call["reset_state"] = call["reset_state"].unsqueeze(1)
        y, h_n, *others = self._run(input.unsqueeze(1), None if hx is None else hx.unsqueeze(1), **call)
        others = [
            Gates(*(gate.squeeze(2) for gate in each)) if isinstance(each, Gates) else each.squeeze(2)
            for each in others
        ]
        return (y.squeeze(1), h_n.squeeze(1), *others)

    def _forward_packed(self, packed: PackedSequence, hx: Tensor | None) -> tuple[PackedSequence, Tensor]:
        if in_onnx_export():
            raise InputError(
                "a PackedSequence cannot be exported to ONNX: give the padded input with lengths=, which needs no "
                "sorting and computes the same"
            )
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
        if acting(self._variant) or (hx is None and self.learn_initial_state):
            rows = input if input.dim() == 2 else input.unsqueeze(0)
            y, hx = self._run(rows.unsqueeze(0), None if hx is None else hx.view(len(hx), *rows.shape[:1], -1))
            return y.view(*input.shape[:-1], -1), hx.view(expected)
        if hx is None:
            hx = input.new_zeros(expected)
        y, states = input, []
        for layer, weights in enumerate(self.all_weights):
            if layer > 0:
                y = apply_dropout(y, self.dropout, training=self.training)
            options: dict[str, Any] = {name: getattr(self, name) for name in ("reset_after", "precision", "backend")}
            y = gru_cell(y, hx[layer], *weights, **options)
            states.append(y)
        return y, torch.stack(states)

    def backend_for(self, input: Tensor, *, return_gates: bool = False) -> backends.Choice:
        """The implementation that a call on this input runs, `.name` "triton" or "reference", and the `.reason`.

        Args:
            input: as of `forward`.
            return_gates: as of `forward`: gates come from PyTorch's own operators only.

        Raises:
            RuntimeError: the layer's explicit backend cannot run such a call.

        Example:
            >>> GRU(3, 4).backend_for(torch.randn(5, 2, 3))
            Choice(name='reference', reason='the implementation for cpu tensors')
        """
        of_input = (input.device, input.dtype, self.hidden_size, self.reset_after)
        precision = backends.resolve_precision(self.precision)
        extras = beyond_the_recurrence(self._variant, return_gates)
        return backends.choose(self.backend, *of_input, precision, extras)

    def final_state(self, h_n: Tensor) -> Tensor:
        """What the last layer ended with, its directions side by side: what a classifier reads.

        Args:
            h_n: shape (K*D, B, H), or (K*D, H) unbatched, as `forward` returns it; it honours lengths.

        Returns:
            Shape (B, D*H), or (D*H,) unbatched: forward, then (if bidirectional) reverse.

        Example:
            >>> gru = GRU(3, 4, num_layers=2, bidirectional=True)
            >>> gru.final_state(gru(torch.randn(5, 2, 3))[1]).shape
            torch.Size([2, 8])
        """
        layers = self.num_layers * self.num_directions
        if h_n.dim() not in (2, 3) or differ((h_n.shape[0], h_n.shape[-1]), (layers, self.hidden_size)):
            raise InputError(f"h_n must be ({layers}, B, {self.hidden_size}), got {tuple(h_n.shape)}")
        return torch.cat(h_n[-self.num_directions :].unbind(), -1)

    @classmethod
    def from_torch(cls, module: nn.GRU, *, backend: str = "auto") -> GRU:
        """A copy of a torch.nn.GRU: the same options, parameters, device, dtype and mode.

        Raises:
            TypeError: the module is no torch.nn.GRU.

        Example:
            >>> GRU.from_torch(nn.GRU(3, 4, bidirectional=True))
            GRU(3, 4, bidirectional=True)
        """
        return copies.from_torch(cls, copies.TorchGRU, module, backend)

    def to_torch(self) -> nn.GRU:
        """A copy as torch.nn.GRU: the same options, parameters, device, dtype and mode.

        Weights that are made of others (weight_norm, pruning) are copied as they are now.

        Raises:
            ValueError: the layer has what torch.nn.GRU does not.

        Example:
            >>> type(GRU(3, 4).to_torch())
            <class 'torch.nn.modules.rnn.GRU'>
        """
        return copies.to_torch(self)
