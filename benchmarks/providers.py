"""The implementations compared. Each is made from a torch.nn.GRU and has the same weights.

A provider's `forward(x, lengths)` gives y (T, B, D*H) and h_n; `step(x, hx)` one step of all layers. What cannot run
here raises `Unavailable` with the reason, which the results then show in the place of a figure.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from grucore import GRU
from grucore.kernels import reference


class Unavailable(Exception):
    """Why a provider has no figure here."""


class Provider:
    """A torch module timed through its own calls: torch.nn.GRU itself."""

    trains = True  # gradients of x and of the parameters
    exact = True  # computes a GRU, so that its results are held against float64
    reset_after = True  # with the reset gate there

    def __init__(self, layer: nn.GRU):
        self.layer: nn.Module = layer

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """y and h_n of a padded batch."""
        if lengths is None:
            return self.layer(x)
        y, h_n = self.layer(pack_padded_sequence(x, lengths, enforce_sorted=False))
        return pad_packed_sequence(y, total_length=len(x))[0], h_n

    def step(self, x: Tensor, hx: Tensor) -> Tensor:
        """The new state (K*D, B, H) from x (1, B, I) and hx."""
        return self.layer(x, hx)[1]


class Grucore(Provider):
    """grucore.GRU on a given backend."""

    def __init__(self, layer: nn.GRU, backend: str):
        self.layer = GRU.from_torch(layer, backend=backend)
        try:
            self.layer.backend_for(layer.weight_ih_l0)
        except RuntimeError as error:
            raise Unavailable(str(error)) from None

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """As the layer has it."""
        return self.layer(x, lengths=lengths)

    def step(self, x: Tensor, hx: Tensor) -> Tensor:
        """As the layer has it."""
        return self.layer.step(x[0], hx)[1]


class Compiled(Provider):
    """The equations in PyTorch, a step compiled by torch.compile and called T times."""

    def __init__(self, layer: nn.GRU):
        if layer.num_layers > 1 or layer.bidirectional:
            raise Unavailable("one layer in one direction")
        torch.compiler.reset()  # of the variants that other cases and modes left, of which it keeps eight
        self.layer, self.compiled_step = layer, torch.compile(_step, dynamic=True)

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Step by step; the product of all inputs is one."""
        if lengths is not None:
            raise Unavailable("rows of one length")
        w_ih, w_hh, b_ih, b_hh = self.layer.all_weights[0]
        h, states = x.new_zeros(x.shape[1], w_hh.shape[1]), []
        for gx in nn.functional.linear(x, w_ih, b_ih):
            h = self.compiled_step(gx, h, w_hh, b_hh)
            states.append(h)
        return torch.stack(states), h.unsqueeze(0)

    def step(self, x: Tensor, hx: Tensor) -> Tensor:
        """One compiled step."""
        w_ih, w_hh, b_ih, b_hh = self.layer.all_weights[0]
        return self.compiled_step(nn.functional.linear(x[0], w_ih, b_ih), hx[0], w_hh, b_hh).unsqueeze(0)


def _step(gx: Tensor, h: Tensor, w_hh: Tensor, b_hh: Tensor) -> Tensor:
    return reference.gru_update(reference.gru_gates(gx, h, w_hh, b_hh), h)


class Lstm(Provider):
    """torch.nn.LSTM of the same sizes: the recurrence that cuDNN does keep on chip."""

    exact = False

    def __init__(self, layer: nn.GRU):
        sizes = (layer.input_size, layer.hidden_size, layer.num_layers)
        weight = layer.weight_ih_l0
        self.layer = nn.LSTM(*sizes, bidirectional=layer.bidirectional, device=weight.device, dtype=weight.dtype)

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """y and h_n, without the cell state."""
        y, (h_n, _) = super().forward(x, lengths)
        return y, h_n

    def step(self, x: Tensor, hx: Tensor) -> Tensor:
        """One step from hx and a cell state of zeros."""
        return self.layer(x, (hx, torch.zeros_like(hx)))[1][0]


class Floor(Provider):
    """Nothing but the products: those with W_ih in one, those with W_hh one a step, twice more each to train."""

    exact = False

    def __init__(self, layer: nn.GRU):
        self.layer, self.trains = layer, False  # `forward` is told to do the work of training
        self.training = False

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """The products of all layers and directions, on a batch without padding of as many real steps."""
        steps = len(x) if lengths is None else max(1, int(lengths.sum()) // x.shape[1])
        h = x.new_zeros(x.shape[1], self.layer.hidden_size)
        gh = None
        with torch.no_grad():
            for i, group in enumerate(self.layer.all_weights):
                width = group[0].shape[1]
                rows = x[:steps].reshape(-1, x.shape[2]) if i == 0 else x.new_zeros(steps * x.shape[1], width)
                gx = rows[:, :width] @ group[0].t()
                for _ in range(steps):
                    gh = torch.mm(h, group[1].t(), out=gh)
                if self.training:
                    self._backward(gx, rows, h, gh, group, steps)
        return x, h.unsqueeze(0)

    def _backward(
        self, gx: Tensor, rows: Tensor, h: Tensor, gh: Tensor | None, group: list[Tensor], steps: int
    ) -> None:
        """dx, dW_ih and dW_hh over all rows, and a step's dh."""
        gx @ group[0]
        gx.t() @ rows
        gx.t() @ rows.new_zeros(len(rows), self.layer.hidden_size)
        assert gh is not None
        for _ in range(steps):
            torch.mm(gh, group[1], out=h)


def _rival(name: str) -> Callable[[nn.GRU], Provider]:
    def make(layer: nn.GRU) -> Provider:
        from benchmarks import rivals

        return getattr(rivals, name)(layer)

    return make


PROVIDERS: dict[str, Callable[[nn.GRU], Provider]] = {
    "grucore-reference": lambda layer: Grucore(layer, "reference"),
    "grucore-triton": lambda layer: Grucore(layer, "triton"),
    "torch": Provider,
    "torch-compile": Compiled,
    "torch-lstm": Lstm,
    "products": Floor,
    "onnxruntime": _rival("OnnxRuntime"),
    "keras": _rival("Keras"),
    "flashrnn": _rival("FlashRnn"),
    "haste": _rival("Haste"),
    "torchrl": _rival("TorchRl"),
    "xma": _rival("Xma"),
}
