"""The contract in C++, for tensors on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import Form, Gradients, State, Steps, Weights
from ..noise import seed_of, threshold
from ..packing import first_states, gradients_of_first_states, gradients_of_last_states
from ..regularised import ACTIVATIONS, Gains, Variant, dropout_of_state
from .call import DX, PLAIN, Backward, Noise, dense, run, step
from .segments import Segments

KEPT_BYTES = 32 << 20  # what a layer keeps for backward beyond x and y, at most
_FACTORS = 5  # numbers that backward needs of a unit in a step; see cell.h
_NORMALISED = 6  # those of layer normalisation; and two scales
_DTYPES = {torch.float16: torch.float32, torch.bfloat16: torch.float32}  # what the others are computed in


def new_kept(x: Tensor, h0: Tensor, layer_norm: bool = False) -> Tensor:
    """Memory for what forward can keep for backward, (D, rows, size): of as many steps as KEPT_BYTES hold."""
    T, B, _ = x.shape
    D, _, H = h0.shape
    dtype = _DTYPES.get(x.dtype, x.dtype)
    padded = -(-H // 16) * 16
    size = (_FACTORS + _NORMALISED) * padded + 16 if layer_norm else _FACTORS * padded
    room = KEPT_BYTES // (D * size * dtype.itemsize) if H else 0
    return x.new_empty(D, torch.sym_min(T * B, room), size, dtype=dtype)


def gru_forward(
    x: Tensor, state: State, weights: Weights, steps: Steps, form: Form, kept: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """y (T, B, D*H) and h_n (D, B, H) of one layer; fills `kept`, a `new_kept`, for backward."""
    return forward_by_direction(x, state, [weights.of(d) for d in range(len(state.h0))], steps, form, kept)


def forward_by_direction(
    x: Tensor,
    state: State,
    weights: Sequence[Weights],
    steps: Steps,
    form: Form,
    kept: Tensor | None = None,
    variant: Variant | None = None,
    seed: Tensor | None = None,
    gains: Sequence[Gains] | None = None,
) -> tuple[Tensor, Tensor]:
    """y and h_n from the weights of each direction, without D; a variant's masks are those of the seed, () int64."""
    if (dtype := _DTYPES.get(x.dtype)) is not None:
        state, weights = State(*_converted(state, dtype)), [Weights(*_converted(each, dtype)) for each in weights]
        y, h_n = forward_by_direction(x.to(dtype), state, weights, steps, form, kept, variant, seed, gains)
        return y.to(x.dtype), h_n.to(x.dtype)
    T, B, _ = x.shape
    D, _, H = state.h0.shape
    functions = _activations(variant), _converted_gains(gains, x.dtype)
    if steps.real is None and steps.start is None:
        y, h_n = x.new_empty(T, B, D * H), x.new_empty(D, B, H)
        if T == 0 or B == 0 or H == 0:
            return y, state.h0.clone(memory_format=torch.contiguous_format)
        noise = _noise(variant, seed, state)
        run("gru_forward", x, state.h0, weights, form, y, h_n, kept, None, None, noise, *functions)
        return y, h_n
    segments = _segments(steps, form, D)
    y, h_n = x.new_zeros(T, B, D * H), state.h0.clone(memory_format=torch.contiguous_format)
    if H == 0 or not len(segments[0]):
        return y, h_n
    noise = _noise(variant, seed, state, None if steps.start is None else segments)
    if steps.start is None:
        run("gru_forward", x, state.h0, weights, form, y, h_n, kept, segments, None, noise, *functions)
        return y, h_n
    first = [first_states(state, each.ends, d) for d, each in enumerate(segments)]
    last = x.new_empty(D, max(map(len, segments)), H)
    run("gru_forward", x, first, weights, form, y, last, kept, segments, None, noise, *functions)
    for d, each in enumerate(segments):
        h_n[d].index_copy_(0, each.ends.ended, last[d, each.ends.last_segment])
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
    return backward_by_direction(dy, dh_n, y, x, state, groups, steps, form, need_dx, kept)[0]


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
    variant: Variant | None = None,
    seed: Tensor | None = None,
    gains: Sequence[Gains] | None = None,
) -> tuple[Gradients, Gains | None]:
    """The gradients from the weights of each direction, without D, and those of the gains, with D."""
    if (dtype := _DTYPES.get(x.dtype)) is not None:
        dy, dh_n, y_, x_ = _converted((dy, dh_n, y, x), dtype)
        state, weights = State(*_converted(state, dtype)), [Weights(*_converted(each, dtype)) for each in weights]
        others = (steps, form, need_dx, kept, variant, seed, gains)
        gradients, d_gains = backward_by_direction(dy, dh_n, y_, x_, state, weights, *others)
        return Gradients(*_converted(gradients, x.dtype)), d_gains
    T, B, I = x.shape  # noqa: E741
    D, _, H = state.h0.shape
    segments = None
    first: Sequence[Tensor] | Tensor = state.h0
    last, rows, has_steps = dh_n, B, T > 0 and B > 0
    if steps.real is not None or steps.start is not None:
        segments = _segments(steps, form, D)
        has_steps = len(segments[0]) > 0
    is_cut = segments is not None and steps.start is not None
    if segments is not None and is_cut:
        first, rows = [first_states(state, each.ends, d) for d, each in enumerate(segments)], max(map(len, segments))
        if dh_n is not None:
            last = torch.stack([gradients_of_last_states(dh_n[d], each.ends) for d, each in enumerate(segments)])
    has_steps = has_steps and H > 0
    new = x.new_empty if has_steps else x.new_zeros
    dx = (new if segments is None else x.new_zeros)(min(D, DX), T, B, I) if need_dx else None
    d_first = new(D, rows, H)
    d_weights = new(D, 3 * H, I), new(D, 3 * H, H), new(D, 3 * H), new(D, 3 * H)
    d_gains = None if gains is None else Gains(new(D, 3 * H), new(D, 3 * H))
    if (segments is not None and not is_cut) or not has_steps:  # a row without steps ends where it began
        d_first.zero_() if last is None else d_first.copy_(last)
    if has_steps:
        dy, last = (None if t is None else dense(t.clone() if t._is_zerotensor() else t) for t in (dy, last))
        to_fill = Backward(dy, last, dx, d_first, *d_weights, *(d_gains or ()))
        noise = _noise(variant, seed, state, segments if is_cut else None)
        functions = _activations(variant), _converted_gains(gains, x.dtype)
        run("gru_backward", x, first, weights, form, y, None, kept, segments, to_fill, noise, *functions)
    if dx is not None:
        dx = dx[0] if len(dx) == 1 else dx[0].add_(dx[1])
    dh0, dh_reset = d_first, None if state.h_reset is None else torch.zeros_like(d_first)
    if segments is not None and is_cut:
        parts = [
            gradients_of_first_states(d_first[d, : len(each)], None if dh_n is None else dh_n[d], state, each.ends)
            for d, each in enumerate(segments)
        ]
        dh0 = torch.stack([part for part, _ in parts])
        dh_reset = None if state.h_reset is None else torch.stack([part for _, part in parts])  # type: ignore[misc]
    return Gradients(dx, dh0, dh_reset, *d_weights), d_gains


def gru_step(
    x: Tensor, h: Tensor, weights: Weights, variant: Variant | None = None, gains: Gains | None = None
) -> Tensor:
    """The state (B, H) after one step, reset-after form, from x (B, I) and h (B, H); a variant without noise."""
    if (dtype := _DTYPES.get(x.dtype)) is not None:
        weights = Weights(*_converted(weights, dtype))
        return gru_step(x.to(dtype), h.to(dtype), weights, variant, gains).to(x.dtype)
    y = x.new_empty(h.shape)
    step(x, h, weights, y, _activations(variant), None if gains is None else _converted(gains, x.dtype))
    return y


def _segments(steps: Steps, form: Form, D: int) -> list[Segments]:
    """Returns the segments of each recurrence, which are the same for all of a direction."""
    of_directions = [Segments(steps, reverse) for reverse in (False, True)[: D // form.heads]]
    return [segments for segments in of_directions for _ in range(form.heads)]


def _noise(
    variant: Variant | None, seed: Tensor | None, state: State, segments: Sequence[Segments] | None = None
) -> Noise | None:
    """A variant's options for the kernels; `segments` if states are per segment, not per row."""
    if variant is None or not (variant.zoneout or seed is not None):
        return None
    directions, keep, zoneout, seeds, least, part = range(len(state.h0)), None, 0, [0] * len(state.h0), 0, 1.0
    if seed is not None and variant.recurrent_dropout:
        keep = [dropout_of_state(seed, variant.recurrent_dropout, state.h0[d], d) for d in directions]
        if segments is not None:
            keep = [each[its.ends.row] for each, its in zip(keep, segments, strict=True)]
    if variant.zoneout:
        least = threshold(variant.zoneout)
        if seed is None or least == 2**32:
            zoneout, part = 2, 1 - variant.zoneout
        else:
            zoneout, seeds = 1, [seed_of(int(seed), 2 * d + 1) for d in directions]
    return Noise(keep, zoneout, seeds, least, part)


_PLACES = {name: place for place, name in enumerate(ACTIVATIONS)}


def _activations(variant: Variant | None) -> tuple[int, int]:
    """Returns the numbers in activations.h of the candidate's and the gates' activation."""
    return PLAIN if variant is None else (_PLACES[variant.activation], _PLACES[variant.recurrent_activation])


def _converted_gains(gains: Sequence[Gains] | None, dtype: torch.dtype) -> list[Gains] | None:
    return None if gains is None else [Gains(*_converted(each, dtype)) for each in gains]


def _converted(tensors: Sequence[Tensor | None], dtype: torch.dtype) -> list[Any]:
    return [None if t is None else t.to(dtype) for t in tensors]
