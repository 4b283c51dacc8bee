"""The cell: one step of a GRU with torch.nn.GRUCell's signature."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from grucore import copies, direct, dispatch, functional
from grucore.errors import InputError, check_size, check_tensor, differ
from grucore.options import OF_CELL, Activation, LayerWithOptions, Precision


class GRUCell(LayerWithOptions):
    r"""One step of a GRU; replaces :class:`torch.nn.GRUCell`.

    The equations are those of :class:`GRU`. Source: Cho et al. 2014 (arXiv:1406.1078), as torch.nn.GRUCell documents.

    Args:
        input_size: I.
        hidden_size: H.
        bias: whether there are bias_ih and bias_hh.
        device: of the parameters.
        dtype: of the parameters.
        reset_after: whether the reset gate acts after the recurrent product, see :class:`GRU`.
        heads, zoneout, layer_norm, activation, recurrent_activation, precision, backend: see :class:`GRU`. A cell has
            no recurrent_dropout, because its mask is shared by all steps of a row, and no dropout, which acts between
            layers.

    Attributes:
        weight_ih: (W_ir|W_iz|W_in), shape (3H, I).
        weight_hh: (W_hr|W_hz|W_hn), shape (3H, H); with heads, that of each, shape (heads, 3H/heads, H/heads).
        bias_ih, bias_hh: shape (3H,), or None.
        layer_norm_ih, layer_norm_hh: the gains, shape (3H,), initially 1; only if layer_norm.

    Example:
        >>> GRUCell(10, 20)(torch.randn(3, 10)).shape
        torch.Size([3, 20])
    """

    # Options of a `GRU` that a single step does not have.
    recurrent_dropout = 0.0
    dropout = 0.0
    bidirectional = False

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    layer_norm_ih: Tensor
    layer_norm_hh: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        reset_after: bool = True,
        heads: int = 1,
        zoneout: float = 0.0,
        layer_norm: bool = False,
        activation: Activation = "tanh",
        recurrent_activation: Activation = "sigmoid",
        precision: Precision | None = None,
        backend: dispatch.Backend = "auto",
    ) -> None:
        given = locals()
        super().__init__()
        self.input_size = check_size("input_size", input_size, least=0)
        self.hidden_size = hidden_size = check_size("hidden_size", hidden_size, least=0)
        self._set_options({name: given[name] for name in OF_CELL})
        gates = 3 * hidden_size
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (gates, self.input_size)}
        shapes |= {"weight_hh": self._weight_hh_shape()}
        shapes |= {"bias_ih": (gates,), "bias_hh": (gates,)} if bias else {}
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            values = torch.empty(shapes[name], device=device, dtype=dtype) if name in shapes else None
            self.register_parameter(name, None if values is None else nn.Parameter(values))
        for name in ("layer_norm_ih", "layer_norm_hh") if layer_norm else ():
            self.register_parameter(name, nn.Parameter(torch.empty(gates, device=device, dtype=dtype)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws weights and biases as `GRU.reset_parameters`, in torch.nn.GRUCell's order; gains are 1."""
        self._draw_parameters()

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """The state after one step.

        Args:
            input: shape (B, I), or (I,) unbatched.
            hx: shape (B, H), or (H,) unbatched; zeros if None.

        Returns:
            The new state, shaped as hx.

        Raises:
            InputError: a size does not match.
        """
        if (result := direct.cell(self, input, hx)) is not None:
            return result
        check_tensor("input", input)
        if input.dim() not in (1, 2):
            raise InputError(f"GRUCell: Expected input to be 1D or 2D, got {input.dim()}D instead")
        if differ(input.shape[-1:], (self.input_size,)):
            raise InputError(f"GRUCell: input has {input.shape[-1]} features, expected input_size = {self.input_size}")
        expected = (*input.shape[:-1], self.hidden_size)
        if hx is None:
            hx = input.new_zeros(expected)
        check_tensor("hx", hx)
        if differ(hx.shape, expected):
            raise InputError(f"GRUCell: Expected hidden to have shape {expected}, got {tuple(hx.shape)}")
        gains = [self.layer_norm_ih, self.layer_norm_hh] if self.layer_norm else None
        training = self.zoneout > 0 and self.training  # only zoneout has two modes
        return functional.step(input, hx, self._weight_groups()[0], gains, self, training)

    def _weight_groups(self) -> list[list[Tensor]]:
        biases = [bias for bias in (self.bias_ih, self.bias_hh) if bias is not None]
        if len(biases) == 1:
            raise InputError("a GRUCell has both bias_ih and bias_hh, or neither: one of them is None")
        return [[self.weight_ih, self.weight_hh, *biases]]

    if TYPE_CHECKING:
        __call__ = forward

    @classmethod
    def from_torch(
        cls, module: nn.GRUCell, *, precision: Precision | None = None, backend: dispatch.Backend = "auto"
    ) -> GRUCell:
        """A copy of a torch.nn.GRUCell: the same options, parameters, device, dtype and mode.

        Raises:
            TypeError: the module is not a torch.nn.GRUCell.

        Example:
            >>> GRUCell.from_torch(nn.GRUCell(3, 4, bias=False))
            GRUCell(3, 4, bias=False)
        """
        return copies.from_torch(cls, copies.TorchGRUCell, module, precision=precision, backend=backend)

    def to_dense(self) -> GRUCell:
        """A copy without heads that computes the same; see `GRU.to_dense`.

        Raises:
            InputError: layer_norm, which normalises each head.

        Example:
            >>> GRUCell(3, 8, heads=4).to_dense()
            GRUCell(3, 8)
        """
        return copies.to_dense(self, GRUCell)

    def to_torch(self) -> nn.GRUCell:
        """A copy as torch.nn.GRUCell: the same options, parameters, device, dtype and mode.

        Raises:
            InputError: the cell has an option that torch.nn.GRUCell does not have.

        Example:
            >>> type(GRUCell(3, 4).to_torch())
            <class 'torch.nn.modules.rnn.GRUCell'>
        """
        return copies.to_torch(self)
