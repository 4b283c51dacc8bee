"""Fills a `GruCall` of gru.h for each recurrence, and calls the library."""

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import Form
from .library import LIBRARY
from .packed import HELD, packed
from .quantised import Quantised
from .segments import Segments

_PACK = struct.Struct("=32qd23q").pack
_PACKED_FIELD = 22
_NO_GRADIENTS = (0,) * 16
_NO_NOISE = (0, 0, 0, 0, 1.0)
PLAIN = 0, 1  # tanh for the candidate and sigmoid for the gates, as activations.h counts them
_NOWHERE = (0, 0, 0)  # a tensor that is not given, with two strides
_WORTH_PACKED = 2**19  # B H (I + H) of a step: with fewer products, packed weights cost more than they save
DX = 2  # parts that dx is the sum of, at most: recurrence d adds to part d % DX, in an order that no thread changes


class Noise(NamedTuple):
    """Recurrent dropout and zoneout; see gru.h."""

    keep: Sequence[Tensor] | None  # per direction, dense, like the call's initial states
    zoneout: int
    zone_seeds: Sequence[int]  # of each direction
    zone_threshold: int
    zone_keep: float

    def fields(self, d: int) -> tuple[float, ...]:
        """The fields of direction d."""
        keep = 0 if self.keep is None else self.keep[d].data_ptr()
        return keep, self.zoneout, self.zone_seeds[d], self.zone_threshold, self.zone_keep


class Backward(NamedTuple):
    """The arguments of backward only: given gradients, dense, and those that it fills."""

    dy: Tensor | None  # (T, B, D*H)
    d_last: Tensor | None  # (D, B or R, H), of each row's or segment's last state
    dx: Tensor | None  # (D or DX, T, B, I), whose sum is wanted
    d_first: Tensor  # (D, B or R, H), of what each begins from
    d_w_ih: Tensor
    d_w_hh: Tensor
    d_b_ih: Tensor
    d_b_hh: Tensor
    d_gain_x: Tensor | None = None
    d_gain_h: Tensor | None = None

    def fields(self, d: int, H: int) -> tuple[int, ...]:
        """The fields of direction d."""
        dy, d_last, dx, *filled = self
        return (
            *(_NOWHERE if dy is None else (dy.data_ptr() + d * H * dy.element_size(), dy.stride(0), dy.stride(1))),
            *((0, 0) if d_last is None else (_address(d_last, d), d_last.stride(1))),
            *(_NOWHERE if dx is None else (_address(dx, d % DX), dx.stride(1), dx.stride(2))),
            d >= DX,
            *[0 if gradient is None else _address(gradient, d) for gradient in filled],
        )


def _address(t: Tensor, d: int) -> int:
    """The address of t[d], without creating t[d]."""
    return t.data_ptr() + d * t.stride(0) * t.element_size()


def run(
    function: str,
    x: Tensor,  # (T, B, I)
    first: Sequence[Tensor] | Tensor,  # of each direction, what each row (B, H) or segment (R, H) begins from
    weights: Sequence[Sequence[Tensor | None] | Quantised],  # of each direction
    form: Form,
    y: Tensor,  # (T, B, D*H)
    last: Tensor | None = None,  # (D, B or R, H), filled
    kept: Tensor | None = None,  # (D, rows, size), filled or read
    segments: Sequence[Segments] | None = None,
    backward: Backward | None = None,
    noise: Noise | None = None,
    activations: tuple[int, int] = PLAIN,
    gains: Sequence[Sequence[Tensor]] | None = None,  # of each direction, of W x and of W h, where they are normalised
) -> None:
    """Calls gru_forward or gru_backward, or what quantised weights name; all tensors are held until it returns.

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
    held: list[object] = []
    calls = []
    for d in range(D):
        given, h0 = weights[d], dense(first[d])
        if isinstance(given, Quantised):
            function, group, addresses = given.function, None, [0, 0, 0, 0, given.memory.data_ptr()]
        else:
            group = [None if w is None else contiguous(w) for w in given]
            addresses = [*_addresses(group), 0]
        held += group, h0
        fields = [
            *(size == 8, form.reset_after, threads, T, B, I, H, d >= form.heads),
            *((0, 0, 0, T, B) if segments is None else segments[d].fields),
            *(x.data_ptr(), x_t, x_b, h0.data_ptr(), h0.stride(0), *addresses),
            *(y.data_ptr() + d * H * size, y_t, y_b),
            *((0, 0) if last is None else (_address(last, d), last.stride(1))),
            *(_NO_NOISE if noise is None else noise.fields(d)),
            *(*activations, *_gains(None if gains is None else gains[d], held)),
            *(_NOWHERE if kept is None else (_address(kept, d), *kept.shape[1:])),
            *(_NO_GRADIENTS if backward is None else backward.fields(d, H)),
        ]
        calls.append(_PACK(*fields) if group is None else _packed_if_held(fields, group, held))
    if getattr(LIBRARY, function)(calls[0] if D == 1 else b"".join(calls), D):
        raise MemoryError(f"{function}: not enough memory for {T} x {B} rows of {I} features and {H} units")


def step(
    x: Tensor,
    h: Tensor,
    weights: Sequence[Tensor | None],
    y: Tensor,
    activations: tuple[int, int] = PLAIN,
    gains: Sequence[Tensor] | None = None,
) -> None:
    """Calls gru_step, or gru_forward where packed weights are held: y (B, H) from x (B, I) and h (B, H)."""
    assert LIBRARY is not None
    x, h = dense(x), dense(h)
    group = [None if w is None else contiguous(w) for w in weights]
    B, I = x.shape  # noqa: E741
    H = h.shape[1]
    held_gains: list[object] = []
    fields: list[Any] = [
        *(x.element_size() == 8, 1, torch.get_num_threads(), 1, B, I, H, 0, 0, 0, 0, 1, B),
        *(x.data_ptr(), 0, x.stride(0), h.data_ptr(), h.stride(0), *_addresses(group), 0, y.data_ptr(), 0, H, 0, 0),
        *(*_NO_NOISE, *activations, *_gains(gains, held_gains), *_NOWHERE, *_NO_GRADIENTS),
    ]
    held: list[object] = []
    call = _packed_if_held(fields, group, held) if B * H * (I + H) >= _WORTH_PACKED else _PACK(*fields)
    if LIBRARY.gru_forward(call, 1) if held else LIBRARY.gru_step(call):
        raise MemoryError(f"gru_step: not enough memory for {B} rows of {I} features and {H} units")


def _addresses(group: Sequence[Tensor | None]) -> list[int]:
    """The addresses of w_ih, w_hh, b_ih and b_hh, 0 for an absent bias."""
    addresses = [0 if w is None else w.data_ptr() for w in group]
    return addresses if len(addresses) == 4 else [*addresses, 0, 0]


def _gains(gains: Sequence[Tensor] | None, held: list[object]) -> list[int]:
    """Their addresses, 0 where nothing is normalised; they are added to what must live until the call returns."""
    dense_gains = [] if gains is None else [contiguous(gain) for gain in gains]
    held += dense_gains
    return [gain.data_ptr() for gain in dense_gains] or [0, 0]


def _packed_if_held(fields: list[Any], group: Sequence[Tensor | None], held: list[object]) -> bytes:
    """The call, on packed weights if they are held; those are added to what must live until it returns."""
    call = _PACK(*fields)
    if not HELD or (buffer := packed(group, call, LIBRARY, bool(fields[1]))) is None:  # type: ignore[arg-type]
        return call
    held.append(buffer)
    fields[_PACKED_FIELD] = buffer.data_ptr()
    return _PACK(*fields)


def dense(t: Tensor) -> Tensor:
    """The tensor with adjacent elements in its last dimension, and the sign that memory holds."""
    if t.is_neg():
        t = t.resolve_neg()
    return t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


def contiguous(t: Tensor) -> Tensor:
    """The tensor as it lies in memory without gaps, and the sign that memory holds."""
    return t if t.is_contiguous() and not t.is_neg() else t.resolve_neg().contiguous()
