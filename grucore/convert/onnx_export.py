"""To ONNX: a file with one GRU node per layer, written node by node rather than by tracing.

`onnx_operator.py` describes the operator.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import grucore
from grucore.convert import onnx_operator
from grucore.convert.weights import check_model, require, swap_gates, to_array
from grucore.errors import InputError, check_flag
from grucore.module import GRU
from grucore.quantized import QuantizedGRU

_OPSET, _IR_VERSION = 17, 8  # from 2022: old enough for any runtime in use


def to_onnx(
    model: GRU | QuantizedGRU, path: str | os.PathLike[str], *, h0: bool = False, lengths: bool = False
) -> None:
    """Writes the layer, in eval mode, as an ONNX file of opset 17 for any T and B; the weights are exact.

    The weights of a quantised layer stay int8 or bfloat16 in the file and are converted to float32 where it runs,
    because ONNX has no quantised GRU. The file is a quarter or half as large.

    The file has these inputs and outputs, in the model's dtype:

    - `input`: (T, B, I), or (B, T, I) if the model is batch_first.
    - `h0`: (K*D, B, H), if requested; otherwise the initial state is 0.
    - `lengths`: int32 (B,), from 0 to T, if requested; steps from there on are padding, as with `GRU(..., lengths=)`.
    - `output`: (T, B, D*H), or (B, T, D*H).
    - `h_n`: (K*D, B, H), the state after each row's last non-padding step.

    Runtimes have their own limits: onnxruntime has no GRU in float64, and aborts the process if T = 0 or B = 0.

    Args:
        model: the layer, or a quantised one; dropout and the code of a subclass are not written.
        path: the file to write; it must not exist.
        h0: whether the file takes an initial state.
        lengths: whether the file takes lengths.

    Raises:
        FileExistsError: path, or path + ".partial", to which the file is written first, exists.
        ImportError: onnx is not installed.
        TypeError: model is neither a `grucore.GRU` nor a `grucore.QuantizedGRU`, or a flag is not a bool.
        InputError: an option or a dtype that ONNX lacks.

    Example:
        >>> from tempfile import mkdtemp
        >>> from grucore.convert import from_onnx
        >>> path = Path(mkdtemp()) / "model.onnx"
        >>> to_onnx(GRU(3, 4, bidirectional=True), path, lengths=True)
        >>> from_onnx(path)
        GRU(3, 4, bidirectional=True)
    """
    quantized = model if isinstance(model, QuantizedGRU) else None
    model = model.dequantize() if isinstance(model, QuantizedGRU) else model
    check_model(model, "the ONNX operator GRU", ignore_dropout=True, activations=onnx_operator.ACTIVATIONS)
    check_flag("h0", h0)
    check_flag("lengths", lengths)
    if (dtype := model.all_weights[0][0].dtype) not in onnx_operator.DTYPES:
        expected = ", ".join(map(str, onnx_operator.DTYPES))
        raise InputError(
            f"the ONNX operator GRU takes {expected}, but the weights are {dtype}: convert the model first"
        )
    path = Path(path)
    if os.path.lexists(path):  # a link to nothing would be replaced, too
        raise FileExistsError(f"{path} exists and is not overwritten: give another path or move it away")
    onnx = require("onnx", "onnx")
    proto = _Graph(model, quantized, onnx, h0, lengths).proto()
    onnx.checker.check_model(proto, full_check=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("xb") as file:
        try:
            file.write(proto.SerializeToString())
        except BaseException:
            partial.unlink()
            raise
    partial.rename(path)


class _Graph:
    """The nodes and constants of a model, in the order in which they are added."""

    def __init__(self, model: GRU, quantized: QuantizedGRU | None, onnx: Any, h0: bool, lengths: bool) -> None:
        self.model, self.onnx, self.h0, self.lengths = model, onnx, h0, lengths
        self.quantized = None if quantized is None else quantized.tensors()
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def proto(self) -> Any:
        """The whole file."""
        model, helper = self.model, self.onnx.helper
        layers, hidden = model.num_layers * model.num_directions, model.hidden_size
        time_batch = ["batch", "time"] if model.batch_first else ["time", "batch"]
        self._add_all()
        dtype = helper.np_dtype_to_tensor_dtype(to_array(model.all_weights[0][0][:0]).dtype)
        value = helper.make_tensor_value_info
        inputs = [value("input", dtype, [*time_batch, model.input_size])]
        if self.h0:
            inputs.append(value("h0", dtype, [layers, "batch", hidden]))
        if self.lengths:
            inputs.append(value("lengths", self.onnx.TensorProto.INT32, ["batch"]))
        outputs = [
            value("output", dtype, [*time_batch, model.num_directions * hidden]),
            value("h_n", dtype, [layers, "batch", hidden]),
        ]
        graph = helper.make_graph(self.nodes, "gru", inputs, outputs, self.constants)
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", _OPSET)],
            ir_version=_IR_VERSION,
            producer_name="grucore",
            producer_version=grucore.__version__,
        )

    def _add_all(self) -> None:
        model = self.model
        directions, layers = model.num_directions, model.num_layers
        states = [""] * layers
        if self.h0 and layers > 1:
            states = [f"h0_{k}" for k in range(layers)]
            self._add("Split", ["h0", self._integers("split", [directions] * layers)], states, axis=0)
        elif self.h0:
            states = ["h0"]
        x = self._add("Transpose", ["input"], ["x_0"], perm=[1, 0, 2]) if model.batch_first else "input"
        for k in range(layers):
            self._add_layer(k, x, states[k])
            x = self._merged_directions(k, last=k == layers - 1)
        if model.batch_first:
            self._add("Transpose", [x], ["output"], perm=[1, 0, 2])
        self._add_final_state()

    def _add_layer(self, k: int, x: str, state: str) -> None:
        model, directions = self.model, self.model.num_directions
        groups = model.all_weights[k * directions : (k + 1) * directions]
        w, r, *biases = (
            torch.stack([swap_gates(each.detach()) for each in kind]) for kind in zip(*groups, strict=True)
        )
        names = [self._weight(f"W_{k}", w, "w_ih", k), self._weight(f"R_{k}", r, "w_hh", k)]
        names.append(self._constant(f"B_{k}", torch.cat(biases, 1)) if biases else "")
        self._add(
            "GRU",
            [x, *names, "lengths" if self.lengths else "", state],
            [f"y_{k}", f"h_{k}"],
            name=f"gru_{k}",
            **onnx_operator.attributes(
                hidden_size=model.hidden_size,
                directions=directions,
                reset_after=model.reset_after,
                activation=model.activation,
                recurrent_activation=model.recurrent_activation,
            ),
        )

    def _weight(self, name: str, weight: Tensor, kind: str, k: int) -> str:
        """A layer's weight (D, 3H, K): a constant, or made of the int8 or bfloat16 constant of a quantised layer."""
        if self.quantized is None:
            return self._constant(name, weight)
        directions = self.model.num_directions
        groups = self.quantized[k * directions : (k + 1) * directions]
        stored = self._constant(f"{name}_stored", torch.stack([swap_gates(group[kind]) for group in groups]))
        scales = [swap_gates(group[f"{kind}_scale"]).unsqueeze(1) for group in groups if f"{kind}_scale" in group]
        numbers = self._add("Cast", [stored], [f"{name}_cast" if scales else name], to=self.onnx.TensorProto.FLOAT)
        if not scales:
            return numbers
        # Not DequantizeLinear, which onnxruntime computes at every call: of these it makes a constant when it loads.
        return self._add("Mul", [numbers, self._constant(f"{name}_scale", torch.stack(scales))], [name])

    def _merged_directions(self, k: int, last: bool) -> str:
        """Y (T, D, B, H) as (T, B, D*H): the next layer's input, or the output of the last."""
        name = "output" if last and not self.model.batch_first else f"x_{k + 1}"
        if not self.model.bidirectional:
            axes = self._integers(f"squeeze_{k}", [1])
            return self._add("Squeeze", [f"y_{k}", axes], [name])
        self._add("Transpose", [f"y_{k}"], [f"y_{k}_transposed"], perm=[0, 2, 1, 3])
        shape = self._integers(f"shape_{k}", [0, 0, 2 * self.model.hidden_size])  # 0: unchanged
        return self._add("Reshape", [f"y_{k}_transposed", shape], [name])

    def _add_final_state(self) -> None:
        """Adds h_n; for rows of length 0 it is the initial state, which ONNX leaves undefined (onnxruntime gives 0)."""
        states = [f"h_{k}" for k in range(self.model.num_layers)]
        if not (self.h0 and self.lengths):
            self._add("Concat", states, ["h_n"], axis=0)
            return
        self._add("Concat", states, ["h_last"], axis=0)
        self._add("Equal", ["lengths", self._integers("zero", 0, torch.int32)], ["empty_rows"])
        self._add("Unsqueeze", ["empty_rows", self._integers("unsqueeze", [0, 2])], ["empty"])
        self._add("Where", ["empty", "h0", "h_last"], ["h_n"])

    def _add(self, op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> str:
        while inputs[-1] == "":  # absent, with nothing after it
            inputs = inputs[:-1]
        self.nodes.append(self.onnx.helper.make_node(op, inputs, outputs, **attributes))
        return outputs[0]

    def _integers(self, name: str, values: int | list[int], dtype: torch.dtype = torch.int64) -> str:
        return self._constant(name, torch.tensor(values, dtype=dtype, device="cpu"))

    def _constant(self, name: str, tensor: Tensor) -> str:
        self.constants.append(self.onnx.numpy_helper.from_array(to_array(tensor), name))
        return name
