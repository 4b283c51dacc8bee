"""The public surface as type checkers see it: `make check` runs mypy on this file, which is never executed."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from typing_extensions import assert_type

import grucore
from grucore import GRU, Gates, GRUCell, QuantizedGRU, Trace
from grucore.dispatch import Choice
from grucore.kernels import State

gru, cell, x = GRU(3, 4), GRUCell(3, 4), torch.randn(5, 2, 3)
assert_type(gru(x, lengths=[5, 2]), tuple[Tensor, Tensor])
assert_type(gru.forward(x), tuple[Tensor, Tensor])
assert_type(gru(pack_sequence([x[:, 0]])), tuple[PackedSequence, Tensor])
assert_type(gru.trace(x), Trace)
assert_type(gru.trace(x).gates, Gates)
assert_type(gru.trace(x).gates.z, Tensor)
assert_type(gru.step(x[0]), tuple[Tensor, Tensor])
assert_type(gru.explain_backend(x), Choice)
assert_type(gru.to_torch(), torch.nn.GRU)
assert_type(GRU.from_torch(gru.to_torch()), GRU)
assert_type(gru.num_layers, int)
quantized = gru.quantize("int8")
assert_type(quantized, QuantizedGRU)
assert_type(quantized(x, lengths=[5, 2]), tuple[Any, Tensor])
assert_type(quantized.step(x[0]), tuple[Tensor, Tensor])
assert_type(quantized.dequantize(), GRU)
gru.quantize("int4")  # type: ignore[arg-type]
assert_type(cell(x[0]), Tensor)
assert_type(grucore.gru(x, None, gru.all_weights, lengths=[5, 2]), tuple[Tensor, Tensor])
assert_type(State(x).h_reset, Tensor | None)
gru(pack_sequence([x[:, 0]]), lengths=[5])  # type: ignore[call-overload]
GRU(3, 4, backend="cudnn")  # type: ignore[arg-type]
GRU(3, 4, activation="softmax")  # type: ignore[arg-type]
