"""Other projects' GRUs as providers. What they need is imported when one is made: most are not installed everywhere.

FlashRNN, TorchRL, XMA and haste are made for a GPU. The first three also have a plain PyTorch form, which runs on a CPU
and shows there that the call is right, not what they are made for.
"""

from __future__ import annotations

import functools
import importlib
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from benchmarks.providers import Provider, Unavailable
from grucore import GRU


def imported(package: str) -> Any:
    """The package.

    Raises:
        Unavailable: it cannot be imported, with what its import said.
    """
    try:
        return importlib.import_module(package)
    except Exception as error:  # a rival's import may fail in any way: the result says how
        raise Unavailable(f"import {package}: {type(error).__name__}: {error}") from None


def one_layer(layer: nn.GRU) -> list[Tensor]:
    """The layer's weights, of a provider that has one layer in one direction and no lengths."""
    if layer.num_layers > 1 or layer.bidirectional:
        raise Unavailable("one layer in one direction")
    return layer.all_weights[0]


def whole(lengths: Tensor | None) -> None:
    """Refuses lengths."""
    if lengths is not None:
        raise Unavailable("rows of one length")


class OnnxRuntime(Provider):
    """The exported model in onnxruntime, on the CPU."""

    trains = False

    def __init__(self, layer: nn.GRU):
        onnxruntime = imported("onnxruntime")
        imported("onnx")
        from grucore.convert import to_onnx

        if layer.weight_ih_l0.is_cuda:
            raise Unavailable("the CPU alone")
        self.layer = layer
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "gru.onnx"
            to_onnx(GRU.from_torch(layer), path, h0=True, lengths=True)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            self.session = onnxruntime.InferenceSession(path.read_bytes(), options, ["CPUExecutionProvider"])
        self.names = [value.name for value in self.session.get_inputs()]

    def _run(self, **values: Tensor) -> list[Tensor]:
        feeds = {name: values[name].detach().numpy() for name in self.names}
        return [torch.from_numpy(result) for result in self.session.run(None, feeds)]

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Through numpy."""
        layer: Any = self.layer
        hx = x.new_zeros(layer.num_layers * (1 + layer.bidirectional), x.shape[1], layer.hidden_size)
        if lengths is None:
            lengths = torch.full((x.shape[1],), len(x))
        y, h_n = self._run(input=x, h0=hx, lengths=lengths.int())
        return y, h_n

    def step(self, x: Tensor, hx: Tensor) -> Tensor:
        """A sequence of one."""
        return self._run(input=x, h0=hx, lengths=torch.ones(x.shape[1], dtype=torch.int32))[1]


class Keras(Provider):
    """keras.layers.GRU on JAX, compiled; inference."""

    trains = False

    def __init__(self, layer: nn.GRU):
        os.environ.setdefault("KERAS_BACKEND", "jax")
        keras, jax = imported("keras"), imported("jax")
        if keras.backend.backend() != "jax":
            raise Unavailable(f"keras runs on {keras.backend.backend()}, not on jax")
        from grucore.convert import to_keras

        one_layer(layer)
        self.layer = layer
        (keras_layer,) = to_keras(GRU.from_torch(layer))
        variables = (keras_layer.trainable_variables, keras_layer.non_trainable_variables)
        values = [[variable.value for variable in kind] for kind in variables]

        def call(x: Any, hx: Any) -> Any:
            return keras_layer.stateless_call(*values, x, initial_state=hx)[0]

        self.call, self.jax = jax.jit(call), jax

    def _run(self, x: Tensor, hx: Tensor) -> Tensor:
        y = self.call(x.detach().transpose(0, 1).contiguous().numpy(), hx.numpy())
        return torch.from_numpy(self.jax.numpy.asarray(y).__array__().copy()).transpose(0, 1)

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Batch first, through numpy."""
        whole(lengths)
        layer: Any = self.layer
        y = self._run(x, x.new_zeros(x.shape[1], layer.hidden_size))
        return y, y[-1:]

    def step(self, x: Tensor, hx: Tensor) -> Tensor:
        """A sequence of one."""
        return self._run(x, hx[0])


class FlashRnn(Provider):
    """FlashRNN's GRU: its "cuda" kernels on a GPU, "vanilla" elsewhere."""

    def __init__(self, layer: nn.GRU):
        self.run = imported("flashrnn.flashrnn").flashrnn
        one_layer(layer)
        self.layer = layer
        self.options = {"function": "gru", "backend": "cuda" if layer.weight_ih_l0.is_cuda else "vanilla"}
        self.options["dtype"] = str(layer.weight_ih_l0.dtype).removeprefix("torch.")

    def forward(self, x: Tensor, lengths: Tensor | None, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Batch first; its gates in the order n, r, z on the hidden side, r, z, n on the input's, one head."""
        whole(lengths)
        w_ih, w_hh, b_ih, b_hh = one_layer(self.layer)  # type: ignore[arg-type]
        w_hr, w_hz, w_hn = w_hh.chunk(3)
        (b_ir, b_iz, b_in), (b_hr, b_hz, b_hn) = b_ih.chunk(3), b_hh.chunk(3)
        gx = linear(x.transpose(0, 1), w_ih).unflatten(-1, (3, 1, -1))  # (B, T, gate, head, H)
        w = torch.stack([w_hn, w_hr, w_hz]).unsqueeze(1)
        b = torch.stack([b_hn, b_ir + b_hr, b_iz + b_hz, b_in]).unsqueeze(1)
        states = None if hx is None else hx[0].view(1, x.shape[1], 1, 1, -1)
        y, h_n = self.run(gx, w, b, states=states, **self.options)
        return y[0, :, :, 0].transpose(0, 1), h_n[0, :, :, 0].transpose(0, 1)

    def step(self, x: Tensor, hx: Tensor) -> Tensor:
        """A sequence of one."""
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
        """Batch first on a GPU."""
        whole(lengths)
        if not x.is_cuda:
            return self.layer(x)
        w_ih, w_hh, b_ih, b_hh = (w.float() for w in one_layer(self.layer))  # type: ignore[arg-type]
        hidden = torch.zeros(x.shape[1], x.shape[0], w_hh.shape[1], device=x.device)
        is_init = torch.zeros(x.shape[1], x.shape[0], dtype=torch.bool, device=x.device)
        compute = torch.float32 if x.dtype is torch.float32 else torch.bfloat16
        x_rows = x.transpose(0, 1).float().contiguous()
        y, h_n = self.run(x_rows, hidden, w_ih, w_hh, b_ih, b_hh, is_init, compute_dtype=compute)
        return y.transpose(0, 1).to(x.dtype), h_n.unsqueeze(0).to(x.dtype)

    def step(self, x: Tensor, hx: Tensor) -> Tensor:
        """Of the module."""
        if x.is_cuda:
            raise Unavailable("sequences alone")
        return super().step(x, hx)


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
        """Batch first, one head; all biases may stand on the input's side."""
        whole(lengths)
        w_ih, w_hh, b_ih, b_hh = one_layer(self.layer)  # type: ignore[arg-type]
        gx = linear(x.transpose(0, 1), w_ih, b_ih + b_hh).unsqueeze(2)  # (B, T, head, 3H)
        (gx_r, gx_z, gx_n), (w_r, w_z, w_n) = gx.chunk(3, -1), (w.t().unsqueeze(0) for w in w_hh.chunk(3))
        state = None if hx is None else hx[0].unsqueeze(1)
        y, h_n = self.run(gx_n, w_n, gx_z, w_z, gx_r, w_r, state)
        return y[:, :, 0].transpose(0, 1), h_n.transpose(0, 1)

    def step(self, x: Tensor, hx: Tensor) -> Tensor:
        """A sequence of one."""
        return self.forward(x, None, hx)[1]


class Haste(Provider):
    """haste's GRU: CUDA alone, float32 alone."""

    def __init__(self, layer: nn.GRU):
        self.run = imported("haste_pytorch.gru").GRUFunction.apply
        w_ih, *_ = one_layer(layer)
        if not w_ih.is_cuda or w_ih.dtype is not torch.float32:
            raise Unavailable("CUDA and float32 alone")
        self.layer = layer

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Weights transposed, gates in the order z, r, n."""
        whole(lengths)
        weights = []
        for w in one_layer(self.layer):  # type: ignore[arg-type]
            r, z, n = w.chunk(3)
            weights.append(torch.cat([z, r, n]).t().contiguous())  # a bias is its own transpose
        w_ih, w_hh, b_ih, b_hh = weights
        states = self.run(torch.is_grad_enabled(), 0.0, x.contiguous(), w_ih, w_hh, b_ih, b_hh, x.new_empty(0, 0, 0))
        return states[-len(x) :], states[-1:]  # newer ones begin with the state before

    def step(self, x: Tensor, hx: Tensor) -> Tensor:
        """It takes no state."""
        raise Unavailable("sequences alone")
