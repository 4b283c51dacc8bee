"""Every call of a private part of PyTorch, in one place; checked on torch 2.8, 2.11, 2.13 and 2.15."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.amp import is_autocast_available
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

# Asked once: before torch 2.12 torch.compile could not trace the question.
_DEVICES = ("cpu", "cuda", "mps", "xpu", "hpu", "mtia", "maia", torch._C._get_privateuse1_backend_name())
_AUTOCAST_DEVICES = [each for each in _DEVICES if is_autocast_available(each)]


def autocast_dtype(*tensors: Tensor) -> torch.dtype | None:
    """The dtype that torch.autocast gives to all of these; None where it is off or leaves one as it is, as float64."""
    device = tensors[0].device.type
    if device not in _AUTOCAST_DEVICES or not torch.is_autocast_enabled(device):
        return None
    casts = all(t.is_floating_point() and t.dtype is not torch.float64 for t in tensors)
    return torch.get_autocast_dtype(device) if casts else None


def transformed() -> bool:
    """Whether torch.func (grad, vmap, jvp and what is made of them) or a forward-mode dual level is active.

    `torch.library` operators have no rule for these; `kernels.reference` needs none.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def in_onnx_export() -> bool:
    """Whether torch.onnx.export, with either value of `dynamo`, runs this call."""
    # These two cost a call almost nothing; torch.onnx is slow to import and to ask.
    return (torch.jit.is_tracing() or torch.compiler.is_exporting()) and _of_onnx()


def _of_onnx() -> bool:
    return torch.onnx.is_in_onnx_export()


# torch.export's strict mode, to which torch.onnx.export resorts, would take the answer for False. This is what
# torch.compiler.assume_constant_result says of a function; it imports torch._dynamo, which takes a second or two.
_of_onnx._dynamo_marked_constant = True  # type: ignore[attr-defined]


def untraced(function: Callable) -> Callable:
    """The function, which torch.compile does not look into where it runs a frame as it is.

    As `torch.compiler.disable`, which imports torch._dynamo at once.
    """
    return torch._disable_dynamo(function)


def has_values(tensor: Tensor) -> bool:
    """Whether a tensor has values to read: neither a meta tensor nor one that torch.compile or torch.export made up."""
    return not (tensor.is_meta or isinstance(tensor, FakeTensor))


def in_dispatch_mode() -> bool:
    """Whether a mode is active through which every operator call goes."""
    return torch._C._len_torch_dispatch_stack() > 0


def is_unwatched() -> bool:
    """Whether no mode, transform, trace or autocast sees or changes what a call computes on the CPU."""
    return not (
        torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._is_tracing()
        or torch.is_autocast_enabled("cpu")
    )


def dispatch_modes() -> list[Any]:
    """The modes through which every operator call goes now, such as a profiler's or a counter's."""
    return _get_current_dispatch_mode_stack()
