"""The contract in Triton: recurrences between matrix products, all directions in one grid, chunk by chunk of time.

    gru_forward   one product for the input side of a chunk, then `_gru_forward_kernel`
    gru_backward  chunks from the end: two products for the gates, `_gru_derivatives_kernel`, `_gru_backward_kernel`,
                  `_gru_gate_gradients_kernel`, then one product for each gradient

Both take a variant with recurrent dropout and zoneout only, and the seed of its masks, which backward makes again.

Only x and y are saved for backward. All other memory is that of one chunk, at most CHUNK_BYTES for each of a dozen
buffers. Without atomics, results are bitwise repeatable. There is no host-device synchronisation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from .. import Form, Gradients, State, Steps, Weights
from ..regularised import Variant
from .backward import _gru_backward_kernel
from .derivatives import _gru_derivatives_kernel, _gru_gate_gradients_kernel
from .flags import began_at, first_states, states_before, tile_spans
from .forward import _gru_forward_kernel
from .launch import Chunk, Launch
from .plan import kind
from .step import gru_step


def gru_forward(
    x: Tensor,
    state: State,
    weights: Weights,
    steps: Steps,
    form: Form,
    variant: Variant | None = None,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y (T, B, D*H) and h_n (D, B, H) of one layer; `form.reset_after` is True."""
    if len(x) == len(state.h0) == 1 and steps.real is None and variant is None:
        h = state.h0[0]
        if steps.start is not None and state.h_reset is not None:
            h = torch.where(steps.start[0].unsqueeze(1), state.h_reset[0], h)
        h_n = gru_step(x[0], h, weights.of(0), form.precision)
        return h_n.unsqueeze(0), h_n.clone().unsqueeze(0)
    layer = Launch(x, state, weights, steps, form, "forward", variant, seed)
    shape = (layer.steps, layer.batch, layer.directions, layer.H)
    y = x.new_empty(shape) if layer.flags is None else x.new_zeros(shape)
    h = first_states(layer.h0, layer.h_reset, layer.flags, layer.heads).to(torch.float32, copy=True)
    spans = None if layer.flags is None else tile_spans(layer.flags, layer.plan.block_b)
    w_hh = layer.w_hh
    if kind(x.dtype, form.precision) == "ieee":  # as `forward.py` takes it
        w_hh = w_hh.unflatten(1, (3, -1)).transpose(2, 3).contiguous()
    options = {"FAST": layer.fast, "zoneout": layer.zoneout, "HAS_ZONEOUT": layer.zoneout > 0 and seed is None}
    with _launching(layer):
        for chunk in layer.chunks() if layer.batch else ():
            tensors = (layer.input_side(chunk), h, layer.h_reset, w_hh, layer.b_hn, layer.flags, spans, layer.keep, y)
            slots = layer.slots(chunk, h if layer.keep is None else h * layer.keep)
            layer.launch(_gru_forward_kernel, chunk, *tensors, slots=slots, **options)
    narrow = layer.hidden_size
    return y[..., :narrow].flatten(2), h[..., :narrow].to(x.dtype, memory_format=torch.contiguous_format)


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
    variant: Variant | None = None,
    seed: Tensor | None = None,
) -> Gradients:
    """The gradients of one layer."""
    layer = Launch(x, state, weights, steps, form, "backward", variant, seed)
    D, H, batch = layer.directions, layer.H, layer.batch
    y = layer.widened(y.unflatten(2, (D, -1)))  # (T, B, D, H)
    if dy is not None:
        dy = layer.widened(dy.unflatten(2, (D, -1)))
    dh = torch.zeros_like(layer.h0, dtype=torch.float32) if dh_n is None else layer.widened(dh_n).float()
    dh = dh.clone()
    dh_reset = torch.zeros_like(dh)
    dx = torch.zeros(layer.steps * batch, layer.input_size, dtype=torch.float32, device=x.device) if need_dx else None
    d_weights = [torch.zeros_like(w, dtype=torch.float32) for w in (layer.w_ih, layer.w_hh)]
    d_biases = [torch.zeros(D, 3 * H, dtype=torch.float32, device=x.device) for _ in range(2)]
    with _launching(layer):
        for chunk in reversed(list(layer.chunks())) if batch else ():
            states = [_states_before(layer, y, chunk, d) for d in range(D)]
            factors = [_in_products(layer, states[d], d) for d in range(D)]
            gx, gh = layer.input_side(chunk), layer.buffer(chunk, 3)
            a, d_states = layer.buffer(chunk, 4), layer.buffer(chunk, 1)
            for d in range(D):
                torch.mm(factors[d], layer.w_hh[d].t(), out=gh[d])
                flags = None if layer.flags is None else layer.rows(layer.flags, chunk, d)
                _over_rows(
                    _gru_derivatives_kernel,
                    H,
                    gx[d],
                    gh[d],
                    layer.b_hn[d],
                    states[d],
                    flags,
                    a[d],
                    layer.zoneout,
                    HAS_FLAGS=layer.flags is not None,
                    HAS_ZONEOUT=layer.zoneout > 0 and seed is None,
                    UPCAST=layer.upcast,
                )
                if dy is not None:
                    d_states[d] = layer.rows(dy[:, :, d], chunk, d)
                    if flags is not None:
                        d_states[d].masked_fill_((flags.unsqueeze(1) & 1) == 0, 0)
            slots = layer.slots(chunk, dh.new_zeros(D, batch, 3 * H))
            tensors = (d_states, a, layer.w_hh, layer.flags, layer.keep, dh, dh_reset)
            layer.launch(_gru_backward_kernel, chunk, *tensors, slots=slots, HAS_DY=dy is not None)
            if slots is not None:
                _finish_chunk(layer, chunk, slots, dh, dh_reset)
            for d in range(D):
                _over_rows(_gru_gate_gradients_kernel, H, d_states[d], a[d], gx[d], gh[d], UPCAST=layer.upcast)
                x_rows = layer.rows(layer.x, chunk, d)
                d_weights[0][d] += torch.mm(gx[d].t(), x_rows)
                d_weights[1][d] += torch.mm(gh[d].t(), factors[d])
                d_biases[0][d] += gx[d].sum(0, dtype=torch.float32)
                d_biases[1][d] += gh[d].sum(0, dtype=torch.float32)
                if dx is not None:
                    begin = chunk.first[d // layer.heads] * batch
                    dx[begin : begin + len(x_rows)] += torch.mm(gx[d], layer.w_ih[d])
    narrow = layer.hidden_size
    # Where resets go back to h0, it gets their gradients too.
    d_initial: list[Tensor | None] = [dh + dh_reset, None] if state.h_reset is None else [dh, dh_reset]
    d_initial = [None if g is None else g[..., :narrow] for g in d_initial]
    d_weights = [g.unflatten(1, (3, H))[:, :, :narrow].flatten(1, 2) for g in (*d_weights, *d_biases)]
    d_weights[1] = d_weights[1][..., :narrow]
    if dx is not None:
        dx = dx.view(x.shape)
        if steps.real is not None:
            dx.masked_fill_(~steps.real.unsqueeze(-1), 0)
    grads = (None if g is None else _in_dtype(g, x.dtype) for g in (dx, *d_initial, *d_weights))
    return Gradients(*grads)  # type: ignore[arg-type]


def _in_dtype(t: Tensor, dtype: torch.dtype) -> Tensor:
    return t.to(dtype, memory_format=torch.contiguous_format)


def _finish_chunk(layer: Launch, chunk: Chunk, slots: Tensor, dh: Tensor, dh_reset: Tensor) -> None:
    """Adds the product that a group's recurrence leaves out: dh becomes the gradient of the state before the chunk."""
    for d in range(layer.directions):
        last = slots[chunk.steps, d].view(layer.x.dtype)  # (B, 3H)
        product = torch.mm(last.float(), layer.w_hh[d].float())
        dh[d] += product if layer.keep is None else product * layer.keep[d]
        if layer.flags is not None:
            direction = d // layer.heads
            step = chunk.first[direction] + direction * (chunk.steps - 1)
            began = began_at(layer.flags[step], direction).unsqueeze(1)
            dh_reset[d] += dh[d].masked_fill(~began, 0)
            dh[d].masked_fill_(began, 0)


def _states_before(layer: Launch, y: Tensor, chunk: Chunk, d: int) -> Tensor:
    """The state before each step of the chunk in one recurrence, (C*B, H)."""
    y, direction = y[:, :, d], d // layer.heads
    first, end = chunk.first[direction], chunk.first[direction] + chunk.steps
    if layer.flags is not None:
        return states_before(y, layer.h0[d], layer.h_reset[d], layer.flags, direction)[first:end].flatten(0, 1)
    if direction == 0:
        before = layer.h0[d].unsqueeze(0) if first == 0 else y[first - 1 : first]
        return torch.cat([before, y[first : end - 1]]).flatten(0, 1)
    after = layer.h0[d].unsqueeze(0) if end == layer.steps else y[end : end + 1]
    return torch.cat([y[first + 1 : end], after]).flatten(0, 1)


def _in_products(layer: Launch, states: Tensor, d: int) -> Tensor:
    """States (C*B, H) of one recurrence as they enter its products."""
    if layer.keep is None:
        return states
    return (states.unflatten(0, (-1, layer.batch)) * layer.keep[d]).to(states.dtype).flatten(0, 1)


def _over_rows(kernel: Any, H: int, first: Tensor, *others: Any, **options: Any) -> None:
    """Launches a pointwise kernel over the rows of its first tensor."""
    rows, block_m, block_h = len(first), 8, min(256, triton.next_power_of_2(H))
    kernel[(triton.cdiv(rows, block_m), triton.cdiv(H, block_h))](
        first, *others, rows, H=H, BLOCK_M=block_m, BLOCK_H=block_h, **options
    )


@contextmanager
def _launching(layer: Launch) -> Iterator[None]:
    """Makes the tensors' device the current one, as launches require, and sets the layer's precision of products."""
    switch = torch.backends.cuda.matmul
    name = "fp32_precision" if hasattr(switch, "fp32_precision") else "allow_tf32"  # torch 2.9 has the first
    before = getattr(switch, name)
    setattr(switch, name, layer.precision if name == "fp32_precision" else layer.precision == "tf32")
    try:
        with torch.cuda.device(layer.x.device) if layer.x.is_cuda else nullcontext():
            yield
    finally:
        setattr(switch, name, before)
