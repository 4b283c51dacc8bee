"""Converts layers to and from Keras, Flax and ONNX, and whole models to and from torch.nn's layers.

For a single layer of torch.nn use `GRU.from_torch` and `GRU.to_torch`, or those of `GRUCell`.

Weights are copied exactly. The only arithmetic is the sum of two biases where the other library has only one of them
(each function says which). The libraries are imported when a function needs them; `pip install -e '.[convert]'`
installs all of them.

`to_onnx` writes a layer by itself. A whole model needs no converter: torch.onnx.export, with either value of `dynamo`,
writes each GRU in it as ONNX GRU nodes, one per layer, with `lengths` as their sequence_lens, for any T and B.

    >>> import torch
    >>> from grucore import GRU
    >>> class Model(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.embedding, self.gru = torch.nn.Embedding(100, 8), GRU(8, 4, batch_first=True, bidirectional=True)
    ...     def forward(self, tokens):  # (B, T), 0 is padding
    ...         return self.gru.final_state(self.gru(self.embedding(tokens), lengths=(tokens != 0).sum(1))[1])
    >>> model, tokens, free = Model().eval(), torch.ones(2, 5, dtype=torch.long), torch.export.Dim.DYNAMIC
    >>> shapes = {"tokens": {0: free, 1: free}}
    >>> torch.onnx.export(model, (tokens,), "model.onnx", dynamic_shapes=shapes, dynamo=True)  # doctest: +SKIP

What ONNX cannot express raises an error: mask, reset, reset_state, trace, and a PackedSequence (use lengths instead).
Zoneout, layer normalisation and activation="hard_tanh" are written step by step, for the T of the example, and only
with dynamo=True. `GRU.step` and `GRUCell` become plain operators. Pass the model itself to torch.onnx.export, not the
result of torch.export. With dynamo=False the layer must be inside another module, because that exporter passes all
arguments by position.
"""

from grucore.convert.flax import from_flax, to_flax
from grucore.convert.keras import from_keras, to_keras
from grucore.convert.models import replace_torch, restore_torch
from grucore.convert.onnx_export import to_onnx
from grucore.convert.onnx_import import from_onnx

__all__ = ["from_flax", "from_keras", "from_onnx", "replace_torch", "restore_torch", "to_flax", "to_keras", "to_onnx"]
