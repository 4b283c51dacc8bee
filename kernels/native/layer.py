"""The contract in C++: float32 on the CPU, reset-after form, forward only."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import Form, State, Steps, Weights
from ..packing import first_states, pack
from .library import LIBRARY

_FIELDS = 23  # of GruCall
_Call = ctypes.c_int64 * _FIELDS
_CACHE_LINE = 64


def gru_forward(x: Tensor, state: State, weights: Sequence[Weights], steps: Steps, form: Form) -> tuple[Tensor, Tensor]:
    """y (T, B, D*H) and h_n (D, B, H) of one layer, from the weights of each direction: nothing is stacked."""
    T, B, _ = x.shape
    D, _, H = state.h0.shape
    if steps.real is None and steps.start is None:
        y = x.new_empty(T, B, D * H)
        for d in range(D if T and B else 0):
            _run(x, state.h0[d], weights[d], y if D == 1 else y[:, :, d * H : (d + 1) * H], reverse=d == 1)
        if T == 0:
            return y, state.h0.clone(memory_format=torch.contiguous_format)
        ends = [y[0 if d == 1 else T - 1, :, d * H : (d + 1) * H] for d in range(D)]
        return y, torch.stack(ends)
    y, h_n = x.new_zeros(T, B, D * H), state.h0.clone(memory_format=torch.contiguous_format)
    for d in range(D if T and B else 0):
        part, packing = y[:, :, d * H : (d + 1) * H], pack(steps, reverse=d == 1)
        if packing is not None and packing.sizes:
            sizes = torch.tensor(packing.sizes, device="cpu")
            _run(x, first_states(state, packing, d), weights[d], part, d == 1, packing.position, sizes)
            last = packing.position[packing.last_step]
            h_n[d].index_copy_(0, packing.ended, part[last // B, last % B])
    return y, h_n


def gru_step(x: Tensor, h: Tensor, weights: Weights) -> Tensor:
    """The state (B, H) after one step, from x (B, I) and h (B, H)."""
    y = torch.empty_like(h, memory_format=torch.contiguous_format)
    _run(x.unsqueeze(0), h, weights, y.unsqueeze(0), function="gru_step")
    return y


def _run(
    x: Tensor,  # (T, B, I)
    h0: Tensor,  # (R, H)
    weights: Weights,  # without D
    y: Tensor,  # (T, B, H), out
    reverse: bool = False,
    position: Tensor | None = None,
    sizes: Tensor | None = None,
    function: str = "gru_forward",
) -> None:
    """Fills a GruCall, see gru.h, and calls the library; tensors are kept until it returns."""
    assert LIBRARY is not None
    x, h0 = _dense(x), _dense(h0)
    dense = [None if w is None else w.resolve_neg().contiguous() for w in weights]
    T, B, I = x.shape  # noqa: E741
    steps, segments = (T, B) if sizes is None else (len(sizes), len(h0))
    call = _Call(
        *(T, B, I, h0.shape[1]),
        *(x.data_ptr(), x.stride(0), x.stride(1)),
        *(h0.data_ptr(), h0.stride(0)),
        *(0 if w is None else w.data_ptr() for w in dense),
        *(y.data_ptr(), y.stride(0), y.stride(1)),
        reverse,
        *(0 if t is None else t.data_ptr() for t in (position, sizes)),
        *(steps, segments),
        0,
        torch.get_num_threads(),
    )
    if function == "gru_forward":
        workspace = torch.empty(LIBRARY.gru_workspace(call) + _CACHE_LINE // 4, dtype=torch.float32, device="cpu")
        call[_FIELDS - 2] = -(-workspace.data_ptr() // _CACHE_LINE) * _CACHE_LINE
    getattr(LIBRARY, function)(call)


def _dense(t: Tensor) -> Tensor:
    """The tensor with adjacent elements in its last dimension, and the sign that memory holds."""
    t = t.resolve_neg()
    return t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()
