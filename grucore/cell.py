"""The cell: one step of a GRU with torch.nn.GRUCell's signature."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from grucore import backend as backends
from grucore.errors import InputError, check_size
from grucore.exporting import quiet_in_onnx_export
from grucore.functional import gru_cell


class GRUCell(nn.Module):
    r"""One step of a GRU; takes the place of :class:`torch.nn.GRUCell`.

    The equations are those of :class:`GRU`. Source: Cho et al. 2014 (arXiv:1406.1078), as torch.nn.GRUCell documents.

    Args:
        input_size: I.
        hidden_size: H.
        bias: whether there are bias_ih and bias_hh.
        device: of the parameters.
        dtype: of the parameters.
        reset_after: where the reset gate acts, see :class:`GRU`.
        precision, backend: see :class:`GRU`.

    Attributes:
        weight_ih: (W_ir|W_iz|W_in), shape (3H, I).
        weight_hh: (W_hr|W_hz|W_hn), shape (3H, H).
        bias_ih, bias_hh: shape (3H,), or None.

    Example:
        >>> GRUCell(10, 20)(torch.randn(3, 10)).shape
        torch.Size([3, 20])
    """

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        reset_after: bool = True,
        precision: str | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_size("input_size", input_size)
        check_size("hidden_size", hidden_size)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        self.reset_after = reset_after
        backends.resolve_precision(precision)
        self.precision = precision
        self.backend = backends.check(backend)
        gates = 3 * hidden_size
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (gates, input_size), "weight_hh": (gates, hidden_size)}
        shapes |= {"bias_ih": (gates,), "bias_hh": (gates,)} if bias else {}
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            values = torch.empty(shapes[name], device=device, dtype=dtype) if name in shapes else None
            self.register_parameter(name, None if values is None else nn.Parameter(values))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws every parameter from U(-1/sqrt(H), 1/sqrt(H)), in torch.nn.GRUCell's order."""
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    @quiet_in_onnx_export
    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """The state after one step.

        Args:
            input: shape (B, I), or (I,) unbatched.
            hx: shape (B, H), or (H,) unbatched; zeros if None.

        Returns:
            The new state, shaped as hx.

        Raises:
            InputError: a size that does not fit.
        """
        if input.dim() not in (1, 2):
            raise InputError(f"GRUCell: Expected input to be 1D or 2D, got {input.dim()}D instead")
        if input.shape[-1] != self.input_size:
            raise InputError(f"GRUCell: input has {input.shape[-1]} features, expected input_size = {self.input_size}")
        expected = (*input.shape[:-1], self.hidden_size)
        if hx is None:
            hx = input.new_zeros(expected)
        elif tuple(hx.shape) != expected:
            raise InputError(f"GRUCell: Expected hidden to have shape {expected}, got {tuple(hx.shape)}")
        options: dict[str, Any] = {name: getattr(self, name) for name in ("reset_after", "precision", "backend")}
        return gru_cell(input, hx, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh, **options)

    def extra_repr(self) -> str:
        """The arguments that differ from their defaults, as torch.nn.GRUCell prints them."""
        bias = "" if self.bias is True else f", bias={self.bias}"
        defaults = {"reset_after": True, "precision": None, "backend": "auto"}
        others = [f", {name}={value!r}" for name, d in defaults.items() if (value := getattr(self, name)) != d]
        return f"{self.input_size}, {self.hidden_size}{bias}{''.join(others)}"
