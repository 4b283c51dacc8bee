"""A case's weights and data, the expected results, and the calls that are timed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measuring.cases import DTYPES, Case
from benchmarks.measuring.timing import rotating
from benchmarks.providers.base import Provider
from benchmarks.providers.pytorch import Torch
from grucore.kernels import Form, State, Steps, Weights
from grucore.kernels.reference import gru_layer


class ResetBefore(Provider):
    """One layer with torch.nn.GRU's weights and the reset gate before the product, by the reference equations."""

    def forward(self, x: Tensor, lengths: Tensor | None, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Runs rows of one length."""
        weights = Weights(*(w.unsqueeze(0) for w in self.layer.all_weights[0]))
        state = State(x.new_zeros(1, x.shape[1], self.layer.hidden_size) if hx is None else hx)
        y, h_n, _ = gru_layer(x, state, weights, Steps(), Form(reset_after=False))
        return y, h_n

    def step(self, x: Tensor, hx: Tensor) -> Tensor:
        """Runs a sequence of one."""
        return self.forward(x, None, hx)[1]


class Problem:
    """One case in one mode on one device; the same for every provider."""

    def __init__(self, case: Case, mode: str, device: str):
        torch.manual_seed(0)
        self.case, self.mode = case, mode
        kwargs: dict[str, Any] = {"device": device, "dtype": DTYPES[case.dtype]}
        options = {"num_layers": case.layers, "bidirectional": case.bidirectional}
        self.layer = nn.GRU(case.I, case.H, **options, **kwargs)
        self.lengths = case.row_lengths()
        self.inputs = [
            torch.randn(case.T, case.B, case.I, **kwargs, requires_grad=mode == "training") for _ in range(3)
        ]
        directions = 2 if case.bidirectional else 1
        self.dy = torch.randn(case.T, case.B, directions * case.H, **kwargs)
        self.hx = torch.randn(case.layers * directions, case.B, case.H, **kwargs)
        tf32 = device == "cuda" and case.dtype == "float32" and torch.backends.cudnn.allow_tf32
        self.precision = "tf32" if tf32 else "ieee"
        self._right: dict[bool, list[Tensor]] = {}

    def right(self, reset_after: bool) -> list[Tensor]:
        """Computes the expected results in float64 on the CPU."""
        if reset_after not in self._right:
            oracle = (Torch if reset_after else ResetBefore)(copy.deepcopy(self.layer).double().cpu())
            self._right[reset_after] = self.results(oracle, torch.float64, "cpu")
        return self._right[reset_after]

    def results(self, provider: Provider, dtype: torch.dtype | None = None, device: str | None = None) -> list[Tensor]:
        """Computes the results of the mode, as one list of tensors."""
        x, dy, hx = (t.detach().to(device=device, dtype=dtype) for t in (self.inputs[0], self.dy, self.hx))
        if self.mode == "step":
            with torch.inference_mode():
                return [provider.step(x, hx).clone()]
        if self.mode == "training":
            return [t.detach() for t in provider.train(x.requires_grad_(), self.lengths, dy)]
        with torch.inference_mode():
            return list(provider.forward(x, self.lengths))

    def error(self, provider: Provider) -> float:
        """Returns the largest RMS error of any result."""
        got = [t.double().cpu() for t in self.results(provider)]
        errors = [
            (a - b).square().mean().sqrt() / b.square().mean().sqrt()
            for a, b in zip(got, self.right(provider.reset_after), strict=True)
        ]
        return float(torch.stack(errors).max())

    def run(self, provider: Provider) -> Callable[[], object]:
        """Makes the call to be timed; inputs rotate, so that none is still in a cache."""
        next_x = rotating(self.inputs)
        if self.mode == "step":
            return torch.inference_mode()(lambda: provider.step(next_x(), self.hx))
        if self.mode == "inference":
            return torch.inference_mode()(lambda: provider.forward(next_x(), self.lengths))
        return lambda: provider.train(next_x(), self.lengths, self.dy)
