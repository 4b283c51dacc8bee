"""PyTorch's own alternatives: nn.GRU in two ways, nn.LSTM, torch.compile, and bare matrix products."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from benchmarks.providers.base import Provider, one_layer, refuse
from grucore.kernels import reference


class Torch(Provider):
    """torch.nn.GRU, on a PackedSequence if rows have lengths."""

    def __init__(self, layer: nn.GRU):
        super().__init__(layer)
        layer.flatten_parameters()  # else cuDNN copies the weights of a copied layer in every call

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Packs and pads if there are lengths."""
        if lengths is None:
            return self.layer(x)
        y, h_n = self.layer(pack_padded_sequence(x, lengths, enforce_sorted=False))
        return pad_packed_sequence(y, total_length=len(x))[0], h_n

    def step(self, x: Tensor, hx: Tensor) -> Tensor:
        """Calls the layer on a sequence of one."""
        return self.layer(x, hx)[1]


class TorchPadded(Torch):
    """torch.nn.GRU on the padded batch itself.

    This is correct for one forward layer, where padding comes after everything that is read. A reverse direction would
    begin in the padding, and of several layers nn.GRU only returns the last outputs, from which h_n is gathered.
    """

    def __init__(self, layer: nn.GRU):
        one_layer(layer)
        super().__init__(layer)

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Clears the outputs at padding, and gathers each row's last non-padding one."""
        y, h_n = self.layer(x)
        if lengths is None:
            return y, h_n
        lengths = lengths.to(x.device)
        padding = torch.arange(len(x), device=x.device).unsqueeze(1) >= lengths
        h_n = y[lengths - 1, torch.arange(len(lengths), device=x.device)]
        return y.masked_fill(padding.unsqueeze(2), 0), h_n.unsqueeze(0)


class Lstm(Torch):
    """torch.nn.LSTM of the same sizes, whose recurrence cuDNN keeps on chip."""

    exact = False

    def __init__(self, layer: nn.GRU):
        sizes = (layer.input_size, layer.hidden_size, layer.num_layers)
        weight = layer.weight_ih_l0
        self.layer = nn.LSTM(*sizes, bidirectional=layer.bidirectional, device=weight.device, dtype=weight.dtype)

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Leaves the cell state out."""
        y, (h_n, _) = super().forward(x, lengths)
        return y, h_n

    def step(self, x: Tensor, hx: Tensor) -> Tensor:
        """Begins with hx and a cell state of zeros."""
        return self.layer(x, (hx, torch.zeros_like(hx)))[1][0]


class Compiled(Provider):
    """The equations in PyTorch, a step compiled by torch.compile and called T times."""

    def __init__(self, layer: nn.GRU):
        one_layer(layer)
        torch.compiler.reset()  # drops the variants of other cases and modes; it keeps at most eight
        self.layer, self.compiled_step = layer, torch.compile(_step, dynamic=True)

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Runs step by step, after one product for all inputs."""
        refuse(lengths)
        w_ih, w_hh, b_ih, b_hh = one_layer(self.layer)
        h, states = x.new_zeros(x.shape[1], w_hh.shape[1]), []
        for gx in nn.functional.linear(x, w_ih, b_ih):
            h = self.compiled_step(gx, h, w_hh, b_hh)
            states.append(h)
        return torch.stack(states), h.unsqueeze(0)

    def step(self, x: Tensor, hx: Tensor) -> Tensor:
        """Calls the compiled step once."""
        w_ih, w_hh, b_ih, b_hh = one_layer(self.layer)
        return self.compiled_step(nn.functional.linear(x[0], w_ih, b_ih), hx[0], w_hh, b_hh).unsqueeze(0)


def _step(gx: Tensor, h: Tensor, w_hh: Tensor, b_hh: Tensor) -> Tensor:
    return reference.gru_update(reference.gru_gates(gx, h, w_hh, b_hh), h)


class Products(Provider):
    """Computes only the layer's matrix products: one with W_ih, and one with W_hh per step."""

    exact = False

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Computes those of all layers and directions, on a batch with as many steps but without padding."""
        return self._products(x, lengths, backward=False)

    def train(self, x: Tensor, lengths: Tensor | None, dy: Tensor) -> tuple[Tensor, ...]:
        """Also computes those of backward: dx, dW_ih and dW_hh over all rows, and dh per step."""
        return self._products(x, lengths, backward=True)

    def _products(self, x: Tensor, lengths: Tensor | None, backward: bool) -> tuple[Tensor, Tensor]:
        layer = self.layer
        assert isinstance(layer, nn.GRU)
        steps = len(x) if lengths is None else max(1, int(lengths.sum()) // x.shape[1])
        h = x.new_zeros(x.shape[1], layer.hidden_size)
        gh = x.new_empty(x.shape[1], 3 * layer.hidden_size)
        with torch.no_grad():
            for i, (w_ih, w_hh, *_) in enumerate(layer.all_weights):
                width = w_ih.shape[1]
                rows = x[:steps].reshape(-1, x.shape[2]) if i == 0 else x.new_zeros(steps * x.shape[1], width)
                gx = rows[:, :width] @ w_ih.t()
                for _ in range(steps):
                    torch.mm(h, w_hh.t(), out=gh)
                if backward:
                    gx @ w_ih
                    gx.t() @ rows
                    gx.t() @ rows.new_zeros(len(rows), layer.hidden_size)
                    for _ in range(steps):
                        torch.mm(gh, w_hh, out=h)
        return x, h.unsqueeze(0)
