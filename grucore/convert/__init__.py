"""To and from the GRU layers of other libraries: Keras, Flax and ONNX; and whole models to and from torch.nn's layers.

A single layer of torch.nn: `GRU.from_torch`, `GRU.to_torch`, and those of `GRUCell`.

Weights are copied exactly: nothing is computed with them but the sum of two biases, where the other library has one of
the two alone (each function says which). The libraries themselves are imported when a function needs them:
`pip install 'grucore[convert]'` brings all of them.

`to_onnx` writes the layer by itself. A whole model needs no converter: torch.onnx.export, with either value of
`dynamo`, writes each GRU in it as GRU nodes of ONNX, one for each layer, with `lengths` as their sequence_lens, for any
T and B.

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

What ONNX has no words for is refused by name: mask, reset, reset_state, trace and a PackedSequence, for which
lengths do the same. Zoneout, layer normalisation and activation="hard_tanh" are written step by step, for the T of the
example, and only with dynamo=True. `GRU.step` and `GRUCell` become plain operators. torch.onnx.export takes the model
itself, not what torch.export made of it; and dynamo=False does not take a layer without a module around it, as it gives
every argument by its place.
"""

from grucore.convert.flax import from_flax, to_flax
from grucore.convert.keras import from_keras, to_keras
from grucore.convert.models import replace_torch, restore_torch
from grucore.convert.onnx_export import to_onnx
from grucore.convert.onnx_import import from_onnx

__all__ = ["from_flax", "from_keras", "from_onnx", "replace_torch", "restore_torch", "to_flax", "to_keras", "to_onnx"]
