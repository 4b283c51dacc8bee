"""FLOP formulas for torch.utils.flop_counter: the products of the equations, counted as for torch.nn.GRU.

Gates that are recomputed in backward are not counted.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from grucore import compat


def register() -> None:
    """Registers our operators if the counter's module is loaded; importing it would take a quarter of a second.

    Counters that are already active have their own copy of the registry, which is updated too.
    """
    counting = sys.modules.get("torch.utils.flop_counter")
    if counting is None:
        return
    if torch.ops.grucore.gru_layer not in counting.flop_registry:
        counting.register_flop_formula(torch.ops.grucore.gru_layer, get_raw=True)(_forward)
        counting.register_flop_formula(torch.ops.grucore.gru_layer_backward, get_raw=True)(_backward)
    for mode in compat.dispatch_modes():
        if isinstance(counter := getattr(mode, "counter", None), counting.FlopCounterMode):
            ours = (torch.ops.grucore.gru_layer, torch.ops.grucore.gru_layer_backward)
            counter.flop_registry |= {operator: counting.flop_registry[operator] for operator in ours}


def _steps(x: Tensor, real: Tensor | None) -> tuple[int, int]:
    """The number of non-padding steps, and of rows that have one; all steps and rows if the mask has no values."""
    steps, batch, _ = x.shape
    if real is None or not compat.has_values(real):
        return steps * batch, batch if steps else 0
    return int(real.sum()), int(real.any(0).sum())


def _forward(*arguments: Any, out_val: Any = None) -> int:
    x, _h0, _h_reset, w_ih, w_hh, _b_ih, _b_hh, _gain_x, _gain_h, real, *_ = arguments
    steps, _first = _steps(x, real)
    return 2 * steps * (w_ih.numel() + w_hh.numel())


def _backward(*arguments: Any, out_val: Any = None) -> int:
    x, h0, _h_reset, w_ih, w_hh, _b_ih, _b_hh, _gain_x, _gain_h, real, *_, need_dx = arguments[4:]
    steps, first = _steps(x, real)
    chained = steps if h0.requires_grad else steps - first  # steps that pass a gradient on to the state before
    return 2 * (steps * (1 + need_dx) * w_ih.numel() + (steps + chained) * w_hh.numel())
