"""The contract in C++, for tensors on the CPU."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import Form, Gradients, State, Steps, Weights
from ..packing import Packing, first_states, gradients_of_first_states, gradients_of_last_states, pack
from .library import LIBRARY

KEPT_BYTES = 32 << 20  # what a layer keeps for backward beyond x and y, at most
_FACTORS = 5  # numbers that backward needs of a unit in a step; see cell.h
_DTYPES = {torch.float16: torch.float32, torch.bfloat16: torch.float32}  # what the others are computed in
_GRU_CALL = struct.Struct("=43q")
_NOTHING = (0,) * 13  # the fields of backward, in forward


def new_kept(x: Tensor, h0: Tensor) -> Tensor:
    """Memory for what forward can keep for backward, (D, rows, size): of as many steps as KEPT_BYTES hold."""
    T, B, _ = x.shape
    D, _, H = h0.shape
    dtype = _DTYPES.get(x.dtype, x.dtype)
    size = _FACTORS * (-(-H // 16) * 16)
    room = KEPT_BYTES // (D * size * dtype.itemsize) if H else 0
    return x.new_empty(D, torch.sym_min(T * B, room), size, dtype=dtype)


def gru_forward(
    x: Tensor, state: State, weights: Weights, steps: Steps, form: Form, kept: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """y (T, B, D*H) and h_n (D, B, H) of one layer; fills `kept`, a `new_kept`, for backward."""
    return forward_by_direction(x, state, [weights.of(d) for d in range(len(state.h0))], steps, form, kept)


def forward_by_direction(
    x: Tensor, state: State, weights: Sequence[Weights], steps: Steps, form: Form, kept: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """y and h_n from the weights of each direction, without D."""
    if (dtype := _DTYPES.get(x.dtype)) is not None:
        state, weights = State(*_converted(state, dtype)), [Weights(*_converted(each, dtype)) for each in weights]
        y, h_n = forward_by_direction(x.to(dtype), state, weights, steps, form, kept)
        return y.to(x.dtype), h_n.to(x.dtype)
    T, B, _ = x.shape
    D, _, H = state.h0.shape
    packings = [pack(steps, reverse=d == 1) for d in range(D)]
    if packings[0] is None:
        y, h_n = x.new_empty(T, B, D * H), x.new_empty(D, B, H)
        if T == 0 or B == 0 or H == 0:
            return y, state.h0.clone(memory_format=torch.contiguous_format)
        _run("gru_forward", x, state.h0, weights, packings, form, y, h_n, kept)
        return y, h_n
    y, h_n = x.new_zeros(T, B, D * H), state.h0.clone(memory_format=torch.contiguous_format)
    if packings[0].sizes:
        first = [first_states(state, packing, d) for d, packing in enumerate(packings)]
        last = x.new_empty(D, max(len(each) for each in first), H)
        _run("gru_forward", x, first, weights, packings, form, y, last, kept)
        for d, packing in enumerate(packings):
            h_n[d].index_copy_(0, packing.ended, last[d, packing.last_segment])
    return y, h_n


def gru_backward(
    dy: Tensor | None,  # (T, B, D*H)
    dh_n: Tensor | None,  # (D, B, H)
    y: Tensor,  # (T, B, D*H)
    x: Tensor,
    state: State,
    weights: Weights,
    steps: Steps,
    form: Form,
    need_dx: bool,
    kept: Tensor | None = None,
) -> Gradients:
    """The gradients of one layer, from what forward kept as far as it did."""
    groups = [weights.of(d) for d in range(len(state.h0))]
    return backward_by_direction(dy, dh_n, y, x, state, groups, steps, form, need_dx, kept)


def backward_by_direction(
    dy: Tensor | None,
    dh_n: Tensor | None,
    y: Tensor,
    x: Tensor,
    state: State,
    weights: Sequence[Weights],
    steps: Steps,
    form: Form,
    need_dx: bool,
    kept: Tensor | None = None,
) -> Gradients:
    """The gradients from the weights of each direction, without D."""
    if (dtype := _DTYPES.get(x.dtype)) is not None:
        dy, dh_n, y_, x_ = _converted((dy, dh_n, y, x), dtype)
        state, weights = State(*_converted(state, dtype)), [Weights(*_converted(each, dtype)) for each in weights]
        gradients = backward_by_direction(dy, dh_n, y_, x_, state, weights, steps, form, need_dx, kept)
        return Gradients(*_converted(gradients, x.dtype))  # type: ignore[arg-type]
    T, B, I = x.shape  # noqa: E741
    D, _, H = state.h0.shape
    packings = [pack(steps, reverse=d == 1) for d in range(D)]
    is_empty = not packings[0].sizes if packings[0] is not None else T == 0 or B == 0
    if packings[0] is None:
        first: Any = state.h0
        last = dh_n
    else:
        first = [first_states(state, packing, d) for d, packing in enumerate(packings)]
        last = None
        if dh_n is not None:
            last = torch.stack([gradients_of_last_states(dh_n[d], packing) for d, packing in enumerate(packings)])
    new = x.new_zeros if is_empty or H == 0 else x.new_empty
    rows = B if packings[0] is None else max(len(each) for each in first)
    d_first, d_w_ih, d_w_hh = new(D, rows, H), new(D, 3 * H, I), new(D, 3 * H, H)
    d_biases = new(2, D, 3 * H)
    dx = None
    if need_dx:
        dx = (x.new_empty if packings[0] is None else x.new_zeros)(D, T, B, I)
    if is_empty or H == 0:
        d_first = torch.zeros_like(d_first) if last is None else last
    else:
        _run(
            "gru_backward", x, first, weights, packings, form, y, None, kept,
            (dy, last, dx, d_first, d_w_ih, d_w_hh, d_biases[0], d_biases[1]),
        )  # fmt: skip
    if dx is not None:
        dx = dx[0] if D == 1 else dx[0].add_(dx[1])
    dh0, dh_reset = d_first, None if state.h_reset is None else torch.zeros_like(d_first)
    if packings[0] is not None:
        parts = [
            gradients_of_first_states(d_first[d, : len(packing.row)], None if dh_n is None else dh_n[d], state, packing)
            for d, packing in enumerate(packings)
        ]
        dh0 = torch.stack([part for part, _ in parts])
        dh_reset = None if state.h_reset is None else torch.stack([part for _, part in parts])
    return Gradients(dx, dh0, dh_reset, d_w_ih, d_w_hh, *d_biases)


def gru_step(x: Tensor, h: Tensor, weights: Weights) -> Tensor:
    """The state (B, H) after one step, reset-after form, from x (B, I) and h (B, H)."""
    if (dtype := _DTYPES.get(x.dtype)) is not None:
        return gru_step(x.to(dtype), h.to(dtype), Weights(*_converted(weights, dtype))).to(x.dtype)
    y = torch.empty_like(h, memory_format=torch.contiguous_format)
    x, h = _dense(x), _dense(h)
    B, I = x.shape  # noqa: E741
    H = h.shape[1]
    held = [None if w is None else _contiguous(w) for w in weights]
    call = _GRU_CALL.pack(
        *(x.element_size() == 8, 1, 1, 1, B, I, H, 0, 0, 0, 1, B),
        *(x.data_ptr(), 0, x.stride(0), h.data_ptr(), h.stride(0)),
        *(0 if w is None else w.data_ptr() for w in held),
        *(0, y.data_ptr(), 0, H, 0, 0, 0, 0, 0),
        *_NOTHING,
    )
    LIBRARY.gru_step(call)
    return y


def _run(
    function: str,
    x: Tensor,
    first: Sequence[Tensor],
    weights: Sequence[Weights],
    packings: Sequence[Packing | None],
    form: Form,
    y: Tensor,
    last: Tensor | None,
    kept: Tensor | None,
    gradients: tuple[Tensor | None, ...] | None = None,
) -> None:
    """Fills a GruCall, see gru.h, for each direction; tensors are held until the library returns."""
    held: list[Any] = [x := _dense(x), y := _dense(y)]
    T, B, I = x.shape  # noqa: E741
    D, H = len(weights), first[0].shape[-1]
    y_t, y_b = y.stride(0), y.stride(1)
    size, threads = x.element_size(), torch.get_num_threads()
    if gradients is not None and gradients[0] is not None:
        gradients = (_dense(gradients[0]), *gradients[1:])
        held.append(gradients)
    calls = b""
    for d, packing in enumerate(packings):
        h0 = _dense(first[d])
        these = [None if w is None else _contiguous(w) for w in weights[d]]
        walk = (d, 0, 0, T, B)
        if packing is not None:
            sizes = torch.tensor(packing.sizes, device="cpu")
            walk = (d, packing.position.data_ptr(), sizes.data_ptr(), len(sizes), len(h0))
            held.append(sizes)
        held += h0, these
        calls += _GRU_CALL.pack(
            *(size == 8, form.reset_after, threads, T, B, I, H, *walk),
            *(x.data_ptr(), x.stride(0), x.stride(1), h0.data_ptr(), h0.stride(0)),
            *(0 if w is None else w.data_ptr() for w in these),
            *(0, y.data_ptr() + d * H * size, y_t, y_b),
            *((0, 0) if last is None else (last[d].data_ptr(), last.stride(1))),
            *((0, 0, 0) if kept is None else (kept[d].data_ptr(), kept.shape[1], kept.shape[2])),
            *(_NOTHING if gradients is None else _gradient_fields(d, H, *gradients)),
        )
    if getattr(LIBRARY, function)(calls, D):
        raise MemoryError(f"{function}: not enough memory for {T} x {B} rows of {I} features and {H} units")


def _gradient_fields(
    d: int, H: int, dy: Tensor | None, last: Tensor | None, dx: Tensor | None, *gradients: Any
) -> tuple[int, ...]:
    """The fields of backward for direction d."""
    fields: list[int] = [0] * 8
    if dy is not None:
        fields[:3] = dy.data_ptr() + d * H * dy.element_size(), dy.stride(0), dy.stride(1)
    if last is not None:
        fields[3:5] = last[d].data_ptr(), last.stride(1)
    if dx is not None:
        fields[5:] = dx[d].data_ptr(), dx.stride(1), dx.stride(2)
    return *fields, *(gradient[d].data_ptr() for gradient in gradients)


def _dense(t: Tensor) -> Tensor:
    """The tensor with adjacent elements in its last dimension, and the sign that memory holds."""
    if t.is_neg():
        t = t.resolve_neg()
    return t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


def _contiguous(t: Tensor) -> Tensor:
    return t.contiguous() if not t.is_neg() else t.resolve_neg().contiguous()


def _converted(tensors: Sequence[Tensor | None], dtype: torch.dtype) -> list[Any]:
    return [None if t is None else t.to(dtype) for t in tensors]
