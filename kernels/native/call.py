"""Fills a `GruCall` of gru.h for each direction, and calls the library."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..packing import Packing
from .library import LIBRARY

_PACK = struct.Struct("=43q").pack
_NO_GRADIENTS = (0,) * 13
_NOWHERE = (0, 0, 0)  # a tensor that is not given, with two strides


class Backward(NamedTuple):
    """What only backward takes: gradients that are given, dense, and those that it fills."""

    dy: Tensor | None  # (T, B, D*H)
    d_last: Tensor | None  # (D, R, H), of each segment's last state
    dx: Tensor | None  # (D, T, B, I)
    d_first: Tensor  # (D, R, H), of what each segment begins from
    d_w_ih: Tensor
    d_w_hh: Tensor
    d_b_ih: Tensor
    d_b_hh: Tensor

    def fields(self, d: int, H: int) -> tuple[int, ...]:
        """Those of direction d."""
        dy, d_last, dx, *filled = self
        return (
            *(_NOWHERE if dy is None else (dy.data_ptr() + d * H * dy.element_size(), dy.stride(0), dy.stride(1))),
            *((0, 0) if d_last is None else (d_last[d].data_ptr(), d_last.stride(1))),
            *(_NOWHERE if dx is None else (dx[d].data_ptr(), dx.stride(1), dx.stride(2))),
            *(gradient[d].data_ptr() for gradient in filled),
        )


def run(
    function: str,
    x: Tensor,  # (T, B, I)
    first: Sequence[Tensor] | None,  # (R, H) of each direction: what each segment begins from; None: zeros
    weights: Sequence[Sequence[Tensor | None]],  # of each direction
    reset_after: bool,
    y: Tensor,  # (T, B, D*H)
    last: Tensor | None = None,  # (D, R, H), filled
    kept: Tensor | None = None,  # (D, rows, size), filled or read
    packings: Sequence[Packing] | None = None,
    backward: Backward | None = None,
) -> None:
    """Calls gru_forward or gru_backward; all tensors are held until it returns.

    Raises:
        MemoryError: there is not enough for its workspace.
    """
    assert LIBRARY is not None
    x, y = dense(x), dense(y)
    T, B, I = x.shape  # noqa: E741
    D = len(weights)
    H = y.shape[2] // D
    size, threads = x.element_size(), torch.get_num_threads()
    x_t, x_b, _ = x.stride()
    y_t, y_b, _ = y.stride()
    x_at, y_at = x.data_ptr(), y.data_ptr()
    held: list[object] = []
    calls = []
    for d, group in enumerate(weights):
        group = [None if w is None else w if w.is_contiguous() and not w.is_neg() else contiguous(w) for w in group]
        w_ih, w_hh, b_ih, b_hh = group if len(group) == 4 else (*group, None, None)
        h0 = h0_r = h_n = h_n_r = position = sizes = kept_at = kept_rows = kept_r = 0
        steps, segments = T, B
        if first is not None:
            h = dense(first[d])
            h0, h0_r = h.data_ptr(), h.stride(0)
            held.append(h)
        if last is not None:
            h_n, h_n_r = last.data_ptr() + d * last.stride(0) * size, last.stride(1)
        if kept is not None:
            kept_at, kept_rows, kept_r = kept.data_ptr() + d * kept.stride(0) * size, kept.shape[1], kept.shape[2]
        if packings is not None:
            packing = packings[d]
            sizes_of = torch.tensor(packing.sizes, device="cpu")
            position, sizes = packing.position.data_ptr(), sizes_of.data_ptr()
            steps, segments = len(packing.sizes), len(packing.row)
            held.append(sizes_of)
        held.append(group)
        calls.append(
            _PACK(
                size == 8,
                reset_after,
                threads,
                T,
                B,
                I,
                H,
                d,
                position,
                sizes,
                steps,
                segments,
                x_at,
                x_t,
                x_b,
                h0,
                h0_r,
                w_ih.data_ptr(),
                w_hh.data_ptr(),
                0 if b_ih is None else b_ih.data_ptr(),
                0 if b_hh is None else b_hh.data_ptr(),
                0,
                y_at + d * H * size,
                y_t,
                y_b,
                h_n,
                h_n_r,
                kept_at,
                kept_rows,
                kept_r,
                *(_NO_GRADIENTS if backward is None else backward.fields(d, H)),
            )
        )
    if getattr(LIBRARY, function)(calls[0] if D == 1 else b"".join(calls), D):
        raise MemoryError(f"{function}: not enough memory for {T} x {B} rows of {I} features and {H} units")


def step(x: Tensor, h: Tensor, weights: Sequence[Tensor | None], y: Tensor, last: Tensor | None = None) -> None:
    """Calls gru_step: from x (B, I) and h (B, H) the next state, written to y (B, H) and, if given, to last (B, H)."""
    assert LIBRARY is not None
    x, h = dense(x), dense(h)
    group = [None if w is None else w if w.is_contiguous() and not w.is_neg() else contiguous(w) for w in weights]
    w_ih, w_hh, b_ih, b_hh = group if len(group) == 4 else (*group, None, None)
    B, I = x.shape  # noqa: E741
    H = h.shape[1]
    call = _PACK(
        *(x.element_size() == 8, 1, 1, 1, B, I, H, 0, 0, 0, 1, B),
        *(x.data_ptr(), 0, x.stride(0), h.data_ptr(), h.stride(0), w_ih.data_ptr(), w_hh.data_ptr()),
        *(0 if b_ih is None else b_ih.data_ptr(), 0 if b_hh is None else b_hh.data_ptr(), 0),
        *(y.data_ptr(), 0, y.stride(0), 0 if last is None else last.data_ptr(), H, 0, 0, 0),
        *_NO_GRADIENTS,
    )
    LIBRARY.gru_step(call)


def dense(t: Tensor) -> Tensor:
    """The tensor with adjacent elements in its last dimension, and the sign that memory holds."""
    if t.is_neg():
        t = t.resolve_neg()
    return t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


def contiguous(t: Tensor) -> Tensor:
    """The tensor as it lies in memory without gaps, and the sign that memory holds."""
    return t.resolve_neg().contiguous()
