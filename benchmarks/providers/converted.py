"""The targets of grucore's converters: the layer exported to ONNX, for two runtimes, and to Keras; CPU inference."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.providers.base import Provider, Unavailable, imported, one_layer, refuse
from grucore import GRU


def exported(layer: nn.GRU, h0: bool, lengths: bool) -> bytes:
    """Returns the layer as an ONNX file with those inputs."""
    imported("onnx")
    from grucore.convert import to_onnx

    if layer.weight_ih_l0.is_cuda:
        raise Unavailable("CPU only")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gru.onnx"
        to_onnx(GRU.from_torch(layer), path, h0=h0, lengths=lengths)
        return path.read_bytes()


class OnnxRuntime(Provider):
    """The exported model in onnxruntime, with initial states and lengths only if there are any."""

    trains = False
    own_threads = "of several"

    def __init__(self, layer: nn.GRU):
        self.onnxruntime, self.layer = imported("onnxruntime"), layer
        self.sessions: dict[tuple[str, ...], Any] = {}
        self._session("input")  # reports here what is missing

    def _session(self, *names: str) -> Any:
        if names not in self.sessions:
            options = self.onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            model = exported(self.layer, "h0" in names, "lengths" in names)
            self.sessions[names] = self.onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
        return self.sessions[names]

    def _run(self, **values: Tensor | None) -> list[Tensor]:
        feeds = {name: value.detach().numpy() for name, value in values.items() if value is not None}
        return [torch.from_numpy(result) for result in self._session(*feeds).run(None, feeds)]

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Goes through numpy."""
        y, h_n = self._run(input=x, lengths=None if lengths is None else lengths.int())
        return y, h_n

    def step(self, x: Tensor, hx: Tensor) -> Tensor:
        """Runs a sequence of one."""
        return self._run(input=x, h0=hx)[1]


class OpenVino(Provider):
    """The exported model in OpenVINO, compiled for each shape, and with lengths only if there are any.

    That is its best: with dynamic shapes it copies every result and ignores the lengths. Arrays are shared with it both
    ways.
    """

    trains = False
    own_threads = "always"

    def __init__(self, layer: nn.GRU):
        self.core, self.layer = imported("openvino").Core(), layer
        self.requests: dict[tuple[int, ...], Any] = {}
        self._request(1, 1, False, False)  # reports here what is missing

    def _request(self, T: int, B: int, h0: bool, lengths: bool) -> Any:
        key = (T, B, h0, lengths)
        if key not in self.requests:
            layer: Any = self.layer
            shapes = {"input": [T, B, layer.input_size]}
            shapes |= {"h0": [layer.num_layers * (1 + layer.bidirectional), B, layer.hidden_size]} if h0 else {}
            shapes |= {"lengths": [B]} if lengths else {}
            model = self.core.read_model(exported(layer, h0, lengths))
            model.reshape(shapes)
            options = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
            options["INFERENCE_NUM_THREADS"] = torch.get_num_threads()
            self.requests[key] = self.core.compile_model(model, "CPU", options).create_infer_request()
        return self.requests[key]

    def _run(self, x: Tensor, **others: Tensor | None) -> tuple[Tensor, Tensor]:
        feeds = {name: value.detach().numpy() for name, value in others.items() if value is not None}
        request = self._request(*x.shape[:2], "h0" in feeds, "lengths" in feeds)
        feeds["input"] = x.detach().numpy()
        results = request.infer(feeds, share_inputs=True, share_outputs=True)
        return torch.from_numpy(results[0]), torch.from_numpy(results[1])

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Goes through numpy, without a copy."""
        return self._run(x, lengths=None if lengths is None else lengths.int())

    def step(self, x: Tensor, hx: Tensor) -> Tensor:
        """Runs a sequence of one."""
        return self._run(x, h0=hx)[1]


class Keras(Provider):
    """keras.layers.GRU on JAX, compiled."""

    trains = False
    own_threads = "always"

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
        """Goes through numpy, batch first."""
        refuse(lengths)
        layer: Any = self.layer
        y = self._run(x, x.new_zeros(x.shape[1], layer.hidden_size))
        return y, y[-1:]

    def step(self, x: Tensor, hx: Tensor) -> Tensor:
        """Runs a sequence of one."""
        return self._run(x, hx[0])
