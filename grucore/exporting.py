"""torch.onnx.export: whether a call is part of one, and what it then keeps quiet.

What is written is in `convert/onnx_trace.py`, which is imported at the first export.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch

_F = TypeVar("_F", bound=Callable[..., Any])


def in_onnx_export() -> bool:
    """Whether torch.onnx.export, with either value of `dynamo`, runs this call."""
    # These two cost a call almost nothing; torch.onnx is slow to import and to ask.
    return (torch.jit.is_tracing() or torch.compiler.is_exporting()) and _of_onnx()


def _of_onnx() -> bool:
    return torch.onnx.is_in_onnx_export()


# torch.export's strict mode, to which torch.onnx.export resorts, would take the answer for False. This is what
# torch.compiler.assume_constant_result says of a function; it imports torch._dynamo, which takes a second or two.
_of_onnx._dynamo_marked_constant = True  # type: ignore[attr-defined]


def quiet_in_onnx_export(method: _F) -> _F:
    """The method without the warnings of torch.jit.trace in an ONNX export.

    They say that a comparison of sizes may not hold for other inputs: these comparisons only check arguments.
    """

    @functools.wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not in_onnx_export():
            return method(*args, **kwargs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            return method(*args, **kwargs)

    return run  # type: ignore[return-value]
