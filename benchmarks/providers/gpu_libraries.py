"""GRUs of other projects, built for GPUs. Their packages are imported on use, since few are installed everywhere.

FlashRNN, TorchRL and XMA also have a plain PyTorch form. On a CPU it shows that our call is right, not their speed.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from benchmarks.providers.base import Provider, Unavailable, imported, one_layer, refuse


class FlashRnn(Provider):
    """FlashRNN's GRU: its "cuda" kernels on a GPU, "vanilla" elsewhere."""

    def __init__(self, layer: nn.GRU):
        self.run = imported("flashrnn.flashrnn").flashrnn
        one_layer(layer)
        self.layer = layer
        self.options = {"function": "gru", "backend": "cuda" if layer.weight_ih_l0.is_cuda else "vanilla"}
        self.options["dtype"] = str(layer.weight_ih_l0.dtype).removeprefix("torch.")

    def forward(self, x: Tensor, lengths: Tensor | None, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Runs batch first, with one head; gates are n, r, z on the hidden side and r, z, n on the input's."""
        refuse(lengths)
        w_ih, w_hh, b_ih, b_hh = one_layer(self.layer)
        w_hr, w_hz, w_hn = w_hh.chunk(3)
        (b_ir, b_iz, b_in), (b_hr, b_hz, b_hn) = b_ih.chunk(3), b_hh.chunk(3)
        gx = linear(x.transpose(0, 1), w_ih).unflatten(-1, (3, 1, -1))  # (B, T, gate, head, H)
        w = torch.stack([w_hn, w_hr, w_hz]).unsqueeze(1)
        b = torch.stack([b_hn, b_ir + b_hr, b_iz + b_hz, b_in]).unsqueeze(1)
        states = None if hx is None else hx[0].view(1, x.shape[1], 1, 1, -1)
        y, h_n = self.run(gx, w, b, states=states, **self.options)
        return y[0, :, :, 0].transpose(0, 1), h_n[0, :, :, 0].transpose(0, 1)

    def step(self, x: Tensor, hx: Tensor) -> Tensor:
        """Runs a sequence of one."""
        return self.forward(x, None, hx)[1]


class TorchRl(Provider):
    """TorchRL's GRU: its Triton kernels, which take float32, on a GPU; its Python module elsewhere."""

    def __init__(self, layer: nn.GRU):
        self.layer = layer
        if layer.weight_ih_l0.is_cuda:
            self.run = imported("torchrl.modules.tensordict_module._rnn_triton").gru_triton
            one_layer(layer)
            return
        if layer.bidirectional:
            raise Unavailable("one direction")
        sizes = (layer.input_size, layer.hidden_size, layer.num_layers)
        module = imported("torchrl.modules").GRU(*sizes, batch_first=False)
        module.load_state_dict(layer.state_dict())
        self.layer = module

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Runs batch first on a GPU."""
        refuse(lengths)
        if not x.is_cuda:
            return self.layer(x)
        w_ih, w_hh, b_ih, b_hh = (w.float() for w in one_layer(self.layer))
        hidden = torch.zeros(x.shape[1], x.shape[0], w_hh.shape[1], device=x.device)
        is_init = torch.zeros(x.shape[1], x.shape[0], dtype=torch.bool, device=x.device)
        compute = torch.float32 if x.dtype is torch.float32 else torch.bfloat16
        x_rows = x.transpose(0, 1).float().contiguous()
        y, h_n = self.run(x_rows, hidden, w_ih, w_hh, b_ih, b_hh, is_init, compute_dtype=compute)
        return y.transpose(0, 1).to(x.dtype), h_n.unsqueeze(0).to(x.dtype)

    def step(self, x: Tensor, hx: Tensor) -> Tensor:
        """Runs the module on a sequence of one."""
        return super().step(x, hx) if x.is_cuda else self.layer(x, hx)[1]


class Xma(Provider):
    """XMA's GRU, which has the reset gate before the product: its Triton kernels on a GPU, PyTorch elsewhere."""

    reset_after = False

    def __init__(self, layer: nn.GRU):
        gru, backends = imported("xma.layers.gru").gru, imported("xma").KernelBackend
        backend = backends.triton if layer.weight_ih_l0.is_cuda else backends.torch
        self.run = functools.partial(gru, kernel_backend=backend)
        one_layer(layer)
        self.layer = layer

    def forward(self, x: Tensor, lengths: Tensor | None, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Runs batch first, with one head; all biases can be on the input side."""
        refuse(lengths)
        w_ih, w_hh, b_ih, b_hh = one_layer(self.layer)
        gx = linear(x.transpose(0, 1), w_ih, b_ih + b_hh).unsqueeze(2)  # (B, T, head, 3H)
        (gx_r, gx_z, gx_n), (w_r, w_z, w_n) = gx.chunk(3, -1), (w.t().unsqueeze(0) for w in w_hh.chunk(3))
        state = None if hx is None else hx[0].unsqueeze(1)
        y, h_n = self.run(gx_n, w_n, gx_z, w_z, gx_r, w_r, state)
        return y[:, :, 0].transpose(0, 1), h_n.transpose(0, 1)

    def step(self, x: Tensor, hx: Tensor) -> Tensor:
        """Runs a sequence of one."""
        return self.forward(x, None, hx)[1]


class Haste(Provider):
    """haste's GRU: CUDA and float32 only."""

    def __init__(self, layer: nn.GRU):
        self.run = imported("haste_pytorch.gru").GRUFunction.apply
        w_ih, *_ = one_layer(layer)
        if not w_ih.is_cuda or w_ih.dtype is not torch.float32:
            raise Unavailable("CUDA and float32 only")
        self.layer = layer

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Transposes the weights, with gates in the order z, r, n."""
        refuse(lengths)
        weights = []
        for w in one_layer(self.layer):
            r, z, n = w.chunk(3)
            weights.append(torch.cat([z, r, n]).t().contiguous())  # a bias is its own transpose
        w_ih, w_hh, b_ih, b_hh = weights
        states = self.run(torch.is_grad_enabled(), 0.0, x.contiguous(), w_ih, w_hh, b_ih, b_hh, x.new_empty(0, 0, 0))
        return states[-len(x) :], states[-1:]  # newer ones begin with the state before
