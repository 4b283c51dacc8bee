"""The GRU written down once more, in NumPy and plain loops, without PyTorch and without a line of grucore.

Numbers are float64, or complex128: every function here is analytic where it is smooth, so that the derivative along a
direction v is the imaginary part of f(x + i e v) / e, exact to the last digits for e = 1e-100 (the complex step of
Squire & Trapp 1998). 1 - z is sigmoid of the negative argument, which keeps its digits where z is nearly 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray
EPSILON = 1e-5  # of layer normalisation, as torch.nn.functional.layer_norm has it


def sigmoid(x: Array) -> Array:
    small = np.exp(np.where(x.real > 0, -x, x))  # at most 1
    return np.where(x.real > 0, 1, small) / (1 + small)


def clamped(x: Array, least: float, most: float) -> Array:
    return np.where(x.real < least, least, np.where(x.real > most, most, x))


ACTIVATIONS = {
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "relu": lambda x: np.where(x.real > 0, x, 0),
    "hard_sigmoid": lambda x: clamped(x / 6 + 0.5, 0, 1),
    "hard_tanh": lambda x: clamped(x, -1, 1),
    "softsign": lambda x: x / (1 + np.where(x.real < 0, -x, x)),
    "linear": lambda x: x,
}


@dataclass
class Parameters:
    """One layer in one direction."""

    w_ih: Array  # (3H, I), gates in the order r, z, n
    w_hh: Array  # (3H, H)
    b_ih: Array | None = None  # (3H,)
    b_hh: Array | None = None
    gain_ih: Array | None = None  # (3H,), of layer normalisation
    gain_hh: Array | None = None


def block_diagonal(w: Array) -> Array:
    """W_hh (heads, 3H/heads, H/heads) as (3H, H), gates first."""
    heads, gates, units = w.shape
    dense = np.zeros((gates * heads, units * heads), w.dtype)
    for gate in range(3):
        for head in range(heads):
            row, column = (gate * heads + head) * units, head * units
            dense[row : row + units, column : column + units] = w[head, gate * units : (gate + 1) * units]
    return dense


@dataclass
class Form:
    """Which equations."""

    reset_after: bool = True
    activation: str = "tanh"
    recurrent_activation: str = "sigmoid"
    zoneout: float = 0.0  # its expectation: h' = p h + (1 - p) h'


def product(w: Array, v: Array, bias: Array | None, gain: Array | None) -> Array:
    """W v + b, the product normalised where there is a gain."""
    result = w @ v
    if gain is not None:
        centred = result - result.mean()
        result = centred / np.sqrt((centred * centred).mean() + EPSILON) * gain
    return result if bias is None else result + bias


def step(x: Array, h: Array, p: Parameters, form: Form) -> tuple[Array, list[Array]]:
    """h' and the gates r, z and n, from x (I,) and h (H,)."""
    H = len(h)
    gate, candidate = ACTIVATIONS[form.recurrent_activation], ACTIVATIONS[form.activation]
    a_r, a_z, a_n = np.split(product(p.w_ih, x, p.b_ih, p.gain_ih), 3)
    if form.reset_after:
        u_r, u_z, u_n = np.split(product(p.w_hh, h, p.b_hh, p.gain_hh), 3)
        r, z = gate(a_r + u_r), gate(a_z + u_z)
        n = candidate(a_n + r * u_n)
    else:
        b_rz, b_n = (None, None) if p.b_hh is None else (p.b_hh[: 2 * H], p.b_hh[2 * H :])
        u_r, u_z = np.split(product(p.w_hh[: 2 * H], h, b_rz, None), 2)
        r, z = gate(a_r + u_r), gate(a_z + u_z)
        n = candidate(a_n + product(p.w_hh[2 * H :], r * h, b_n, None))
    rest = sigmoid(-(a_z + u_z)) if form.recurrent_activation == "sigmoid" else 1 - z
    h_new = rest * n + z * h
    return form.zoneout * h + (1 - form.zoneout) * h_new, [r, z, n]


def row(
    x: Array, h0: Array, h_reset: Array, real: Sequence[bool], start: Sequence[bool], p: Parameters, form: Form, d: int
) -> tuple[Array, Array, Array]:
    """y (T, H), h_n (H,) and gates (T, 3, H) of one sequence in one direction.

    A cut before step t parts the steps from t on from those before it. What follows a cut in the direction of travel
    begins from h_reset; padding holds the state, gives 0 and is not read.
    """
    T, H = len(x), len(h0)
    y, gates = np.zeros((T, H), h0.dtype), np.zeros((T, 3, H), h0.dtype)
    h, is_cut = h0, False
    for t in range(T) if d == 0 else range(T - 1, -1, -1):
        is_cut = is_cut or (start[t] if d == 0 else t + 1 < T and start[t + 1])
        if real[t]:
            h, gates[t] = step(x[t], h_reset if is_cut else h, p, form)
            y[t], is_cut = h, False
    return y, h, gates


def gru(
    x: Array,  # (T, B, I)
    h0: Array,  # (K*D, B, H)
    layers: Sequence[Parameters],  # K*D
    form: Form,
    directions: int = 1,
    real: Array | None = None,  # (T, B) bool
    start: Array | None = None,  # (T, B) bool
    h_reset: Array | None = None,  # as h0
) -> dict[str, Any]:
    """y (T, B, D*H), h_n (K*D, B, H) and gates (K*D, 3, T, B, H)."""
    T, B = x.shape[:2]
    H, D = h0.shape[2], directions
    real = np.ones((T, B), bool) if real is None else real
    start = np.zeros((T, B), bool) if start is None else start
    h_reset = h0 if h_reset is None else h_reset
    dtype = np.result_type(x, h0, h_reset, *(w for p in layers for w in vars(p).values() if w is not None))
    h_n, gates = np.zeros((len(layers), B, H), dtype), np.zeros((len(layers), 3, T, B, H), dtype)
    for first in range(0, len(layers), D):
        y = np.zeros((T, B, D * H), dtype)
        for d in range(D):
            k = first + d
            for b in range(B):
                h = (h0[k, b].astype(dtype), h_reset[k, b].astype(dtype))
                result = row(x[:, b].astype(dtype), *h, real[:, b], start[:, b], layers[k], form, d)
                y[:, b, d * H : (d + 1) * H], h_n[k, b], of_row = result
                gates[k, :, :, b] = of_row.transpose(1, 0, 2)
        x = y
    return {"y": x, "h_n": h_n, "gates": gates}
