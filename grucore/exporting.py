"""torch.onnx.export: whether a call is part of one. What it writes then is in `convert/onnx_trace.py`."""

from __future__ import annotations

import torch


def in_onnx_export() -> bool:
    """Whether torch.onnx.export, with either value of `dynamo`, runs this call."""
    # These two cost a call almost nothing; torch.onnx is slow to import and to ask.
    return (torch.jit.is_tracing() or torch.compiler.is_exporting()) and _of_onnx()


def _of_onnx() -> bool:
    return torch.onnx.is_in_onnx_export()


# torch.export's strict mode, to which torch.onnx.export resorts, would take the answer for False. This is what
# torch.compiler.assume_constant_result says of a function; it imports torch._dynamo, which takes a second or two.
_of_onnx._dynamo_marked_constant = True  # type: ignore[attr-defined]
