"""GRU layers for PyTorch: `from grucore import GRU` replaces `torch.nn.GRU`.

The docstring of `GRU.forward` shows lengths, masks and resets. Other things that torch.nn.GRU cannot do, or not on
every device:

Full-graph compilation with dynamic T and B.

    >>> import torch
    >>> from grucore import GRU
    >>> gru, x = GRU(3, 4), torch.randn(5, 2, 3, requires_grad=True)
    >>> compiled = torch.compile(gru, fullgraph=True, dynamic=True, backend="eager")
    >>> torch.equal(compiled(x)[0], gru(x)[0])
    True

Gradients with respect to the input in eval mode.

    >>> saliency = torch.autograd.grad(gru.eval()(x)[0].sum(), x)[0].abs()

Gradients of gradients: a training step of a critic with gradient penalty (WGAN-GP).

    >>> critic = GRU(3, 1)
    >>> optimizer = torch.optim.Adam(critic.parameters())
    >>> real, fake, share = torch.randn(5, 8, 3), torch.randn(5, 8, 3), torch.rand(1, 8, 1)
    >>> mixed = (share * real + (1 - share) * fake).requires_grad_()
    >>> (gradient,) = torch.autograd.grad(critic(mixed)[0].mean(0).sum(), mixed, create_graph=True)
    >>> penalty = (gradient.norm(dim=(0, 2)) - 1).square().mean()
    >>> loss = critic(fake)[0].mean() - critic(real)[0].mean() + 10 * penalty
    >>> loss.backward()
    >>> optimizer.step()

torch.func: an ensemble of three layers in one call, and per-sample gradients.

    >>> from torch.func import functional_call, grad, stack_module_state, vmap
    >>> weights, buffers = stack_module_state([GRU(3, 4) for _ in range(3)])
    >>> vmap(lambda w: functional_call(gru, w, (x,))[0])(weights).shape
    torch.Size([3, 5, 2, 4])
    >>> loss = lambda w, row: functional_call(gru, w, (row,))[0].square().sum()
    >>> gradients = vmap(grad(loss), (None, 1))(dict(gru.named_parameters()), x)
    >>> gradients["weight_hh_l0"].shape
    torch.Size([2, 12, 4])

Parametrised weights (weight norm, pruning, tying): they are read on every call.

    >>> gru = torch.nn.utils.parametrizations.weight_norm(gru, "weight_hh_l0")
    >>> y, h_n = gru(x)

Programs saved by torch.export, AOTInductor or torch.jit.trace call a grucore operator: `import grucore` before loading
them.

Quantised, for inference on CPUs.

    >>> with torch.no_grad():
    ...     y, h_n = GRU(3, 4).quantize("int8")(torch.randn(5, 2, 3))

`grucore.convert` converts to and from ONNX, Keras and Flax. For tools that only know torch.nn's own layers, such as
PyTorch's quantisation, call `grucore.convert.restore_torch` first. For Opacus, import `grucore.integrations.opacus`.
"""

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

from grucore.cell import GRUCell
from grucore.errors import InputError
from grucore.functional import gru, gru_cell
from grucore.kernels import Gates
from grucore.module import GRU, Trace
from grucore.quantized import QuantizedGRU
from grucore.truncated import truncated_bptt

__all__ = ["GRU", "GRUCell", "Gates", "InputError", "QuantizedGRU", "Trace", "gru", "gru_cell", "truncated_bptt"]


def __getattr__(name: str) -> Any:
    """Imports `grucore.convert` when it is first used."""
    if name == "convert":
        return import_module("grucore.convert")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
