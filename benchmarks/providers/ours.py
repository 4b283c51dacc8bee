"""grucore.GRU on each of its backends."""

from __future__ import annotations

from torch import Tensor, nn

from benchmarks.providers.base import Provider, Unavailable
from grucore import GRU, dispatch


class GrucoreEager(Provider):
    """Runs PyTorch's operators."""

    backend: dispatch.Backend = "eager"

    def __init__(self, layer: nn.GRU):
        self.layer = GRU.from_torch(layer, backend=self.backend)
        try:
            self.layer.explain_backend(layer.weight_ih_l0[:1])
        except RuntimeError as error:
            raise Unavailable(str(error)) from None

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Calls the layer."""
        return self.layer(x, lengths=lengths)

    def step(self, x: Tensor, hx: Tensor) -> Tensor:
        """Calls the layer's `step`."""
        return self.layer.step(x[0], hx)[1]


class GrucoreAuto(GrucoreEager):
    """Runs what a user gets: the native kernels where they can run."""

    backend = "auto"


class GrucorePacked(GrucoreAuto):
    """Keeps the weights packed between calls, as engines with frozen weights always do."""

    def __init__(self, layer: nn.GRU):
        super().__init__(layer)
        self.held = self.layer.packed_weights()
        self.held.__enter__()


class GrucoreTriton(GrucoreEager):
    """Runs the fused kernels."""

    backend = "triton"
