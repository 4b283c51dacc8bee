"""torch.nn.GRU with heads, for programs: on block-diagonal weights, through which PyTorch differentiates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


class GRU(nn.GRU):
    """A torch.nn.GRU; with heads its recurrent weights have the shape (heads, 3H/heads, H/heads)."""

    heads = 1

    def __init__(self, *sizes: Any, heads: int = 1, **options: Any):
        before = torch.get_rng_state()
        super().__init__(*sizes, **options)
        if heads > 1:
            self.heads = heads
            for name, p in list(self.named_parameters()):
                if name.startswith("weight_hh"):
                    blocks = (heads, 3 * self.hidden_size // heads, self.hidden_size // heads)
                    setattr(self, name, nn.Parameter(p.new_empty(blocks)))
            torch.set_rng_state(before)  # the weights were drawn for other bounds
            self.reset_parameters()

    def reset_parameters(self) -> None:
        for name, p in self.named_parameters():
            bound = (self.hidden_size / (self.heads if name.startswith("weight_hh") else 1)) ** -0.5
            nn.init.uniform_(p, -bound, bound)

    def forward(self, *arguments: Any, **named: Any) -> Any:
        if self.heads == 1:
            return super().forward(*arguments, **named)
        names = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")
        dense = nn.GRU(**{name: getattr(self, name) for name in names}, device="meta").train(self.training)
        weights = {name: _dense(getattr(self, name)) for name in self._flat_weights_names}
        return functional_call(dense, weights, arguments, named)

    def extra_repr(self) -> str:
        return super().extra_repr() + f", heads={self.heads}" * (self.heads > 1)


def _dense(w: Tensor) -> Tensor:
    """A parameter without heads."""
    if w.dim() < 3:
        return w
    return torch.cat([torch.block_diag(*(head[gate] for head in w.unflatten(1, (3, -1)))) for gate in range(3)])
