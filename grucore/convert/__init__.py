"""To and from the GRU layers of other libraries: Keras, Flax and ONNX; and whole models to and from torch.nn's layers.

A single layer of torch.nn: `GRU.from_torch`, `GRU.to_torch`, and those of `GRUCell`.

Weights are copied exactly: nothing is computed with them but the sum of two biases, where the other library has one of
the two alone (each function says which). The libraries themselves are imported when a function needs them:
`pip install 'grucore[convert]'` brings all of them.
"""

from grucore.convert.flax import from_flax, to_flax
from grucore.convert.keras import from_keras, to_keras
from grucore.convert.models import replace_torch, restore_torch
from grucore.convert.onnx_export import to_onnx
from grucore.convert.onnx_import import from_onnx

__all__ = ["from_flax", "from_keras", "from_onnx", "replace_torch", "restore_torch", "to_flax", "to_keras", "to_onnx"]
