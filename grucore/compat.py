"""All uses of PyTorch's private API, in one place; checked on torch 2.8, 2.11, 2.13 and 2.15."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.amp import is_autocast_available
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

# Computed once: before 2.12, torch.compile could not trace is_autocast_available.
_DEVICES = ("cpu", "cuda", "mps", "xpu", "hpu", "mtia", "maia", torch._C._get_privateuse1_backend_name())
_AUTOCAST_DEVICES = [each for each in _DEVICES if is_autocast_available(each)]


def autocast_dtype(*tensors: Tensor) -> torch.dtype | None:
    """The dtype to which torch.autocast casts all of these; None if it is off or skips one of them, such as float64."""
    device = tensors[0].device.type
    if not _is_autocast_enabled(device):
        return None
    casts = all(t.is_floating_point() and t.dtype is not torch.float64 for t in tensors)
    return torch.get_autocast_dtype(device) if casts else None


def without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """A context without autocast; an empty one where it is off, for torch.export writes down every change."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if _is_autocast_enabled(device) else nullcontext()


def _is_autocast_enabled(device: str) -> bool:
    return device in _AUTOCAST_DEVICES and torch.is_autocast_enabled(device)


def transformed() -> bool:
    """Whether a torch.func transform or forward-mode differentiation is active.

    `torch.library` operators have no rules for these; `kernels.reference` needs none.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def backward_is_transformed(*gradients: Tensor | None) -> bool:
    """Whether a backward pass is vmapped, as by `is_grads_batched`, or itself differentiated in forward mode."""
    if torch.compiler.is_compiling():  # compiled autograd traces a backward pass, and cannot trace the next line
        return False
    return transformed() or any(g is not None and torch._C._functorch.is_legacy_batchedtensor(g) for g in gradients)


def in_onnx_export() -> bool:
    """Whether torch.onnx.export, with either value of `dynamo`, runs this call."""
    # The first two checks cost almost nothing; torch.onnx is slow to import and to call.
    return (torch.jit.is_tracing() or torch.compiler.is_exporting()) and _of_onnx()


def _of_onnx() -> bool:
    return torch.onnx.is_in_onnx_export()


# Without this mark torch.export's strict mode, the fallback of torch.onnx.export, would take the result to be False.
# torch.compiler.assume_constant_result does the same, but imports torch._dynamo, which takes a second or two.
_of_onnx._dynamo_marked_constant = True  # type: ignore[attr-defined]


def untraced(function: Callable) -> Callable:
    """Hides a function from torch.compile, like `torch.compiler.disable` but without importing torch._dynamo."""
    return torch._disable_dynamo(function)


def has_values(tensor: Tensor) -> bool:
    """Whether a tensor has values to read: it is neither a meta tensor nor a FakeTensor."""
    return not (tensor.is_meta or isinstance(tensor, FakeTensor))


def in_make_fx() -> bool:
    """Whether torch.fx's make_fx records this call, and refuses to let values be read."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None


def in_dispatch_mode() -> bool:
    """Whether a dispatch mode is active, which sees every operator call."""
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
    """The active dispatch modes, such as a FLOP counter's."""
    return _get_current_dispatch_mode_stack()
