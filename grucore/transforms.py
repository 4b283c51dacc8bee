"""torch.func and forward-mode differentiation: which calls they see, so that those run in differentiable PyTorch."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def transformed() -> bool:
    """Whether torch.func (grad, vmap, jvp and what is made of them) or a forward-mode dual level is at work.

    `torch.library` operators have no rule for these; `kernels.reference` needs none.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
