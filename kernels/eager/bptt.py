"""One GRU layer from PyTorch operators, with a hand-written backward pass through time.

Forward computes gx = x W_ih^T + b_ih for a chunk of time at once, then step by step

    gh = h W_hh^T + b_hh;   r, z = sigmoid(gx_rz + gh_rz);   n = tanh(gx_n + r gh_n);   h' = (1 - z) n + z h

Backward visits the chunks from the end. Since all states are known, two products recompute a chunk's gates, and from
them the local derivatives of the new state with respect to the pre-activations, for all its steps at once (reset-after
form):

    a_n = (1 - z) (1 - n^2)      a_z = (h - n) z (1 - z)      a_r = a_n gh_n r (1 - r)

1 - s of a sigmoid s(u) is computed as sigmoid(-u), and 1 - n^2 as 1 / cosh^2(u): as differences they would lose digits
where a gate is nearly open or n is nearly 1.

Only  dg = (a_r, a_z, a_n r) dh'  and  dh = z dh' + dg W_hh  remain sequential. The gradient of each weight is one
product per chunk; chunks are added in a fixed order. Only x, h0 and y are saved for backward.

Sequences are flat (N, features), see `schedule.py`; the first step has R rows. float16 and bfloat16 are computed in
float32. Equations and names are those of `reference.py`; gradients are prefixed with d.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from .. import Gradients, Weights
from .schedule import Schedule


def _product(x: Tensor, w: Tensor, b: Tensor | None, out: Tensor | None = None) -> Tensor:
    """x @ w.T + b for x (M, K), w (N, K) and b (N,) or None, written to out if it has M rows."""
    if out is not None and len(out) != len(x):
        out = None
    return torch.mm(x, w.t(), out=out) if b is None else torch.addmm(b, x, w.t(), out=out)


def _rz_and_n(g: Tensor) -> Sequence[Tensor]:
    """Splits (M, 3H) into r and z together, (M, 2H), and n, (M, H)."""
    hidden_size = g.shape[1] // 3
    return torch.split_with_sizes(g, [2 * hidden_size, hidden_size], 1)


def _updated(u_n: Tensor, z: Tensor, not_z: Tensor, h: Tensor, out: Tensor | None = None) -> Tensor:
    """h' = (1 - z) tanh(u_n) + z h; overwrites u_n."""
    return torch.addcmul(u_n.tanh_().mul_(not_z), z, h, out=out)


def _gates_and_complements(u_rz: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """r, z, 1 - r and 1 - z, each (M, H), out of (M, 2H)."""
    r, z = u_rz.sigmoid().chunk(2, 1)
    not_r, not_z = u_rz.neg().sigmoid_().chunk(2, 1)
    return r, z, not_r, not_z


class _ResetAfter:
    """n = tanh(gx_n + r (W_hn h + b_hn))."""

    def __init__(self, w_hh: Tensor, b_hh: Tensor | None):
        self.w_hh, self.b_hh = w_hh, b_hh
        self.gh_parts = self._parts(w_hh.new_empty(0, len(w_hh)))  # of the step before; its memory is reused

    def _parts(self, gh: Tensor) -> tuple[Tensor, ...]:
        gh_rz, gh_n = _rz_and_n(gh)
        return gh, gh_rz, *gh_rz.chunk(2, 1), gh_n

    def step(self, h: Tensor, gx_rz: Tensor, gx_n: Tensor, out: Tensor) -> Tensor:
        """The next state, written to out; overwrites gx_n."""
        gh = _product(h, self.w_hh, self.b_hh, out=self.gh_parts[0])
        if gh is not self.gh_parts[0]:
            self.gh_parts = self._parts(gh)
        _, rz, r, z, gh_n = self.gh_parts
        rz.add_(gx_rz)
        not_z = z.neg().sigmoid_()
        rz.sigmoid_()
        return _updated(gx_n.addcmul_(r, gh_n), z, not_z, h, out)

    def linearise(self, h: Tensor, gx: Tensor) -> tuple[Tensor, ...]:
        """Derivatives of M steps: a = (a_r, a_z, a_n r), (M, 3, H), and a_n and z, (M, H); overwrites gx."""
        gx_rz, u_n = _rz_and_n(gx)
        gh_rz, gh_n = _rz_and_n(_product(h, self.w_hh, self.b_hh))
        r, z, not_r, not_z = _gates_and_complements(gh_rz.add_(gx_rz))
        a_n = not_z / u_n.addcmul_(r, gh_n).cosh().square_()
        a = gx.unflatten(1, (3, -1))
        torch.sub(h, u_n.tanh(), out=a[:, 1]).mul_(z).mul_(not_z)
        torch.mul(a_n, gh_n, out=a[:, 0]).mul_(r).mul_(not_r)
        torch.mul(a_n, r, out=a[:, 2])
        return a, a_n, z

    def step_backward(self, dh: Tensor, a: Tensor, a_n: Tensor, z: Tensor) -> Tensor:
        """From the gradient of the state after the step to that before; a becomes dg_hidden, a_n becomes dgx_n."""
        dg = a.mul_(dh.unsqueeze(1)).flatten(1)
        a_n.mul_(dh)
        return dh.mul_(z).addmm_(dg, self.w_hh)

    def add_parameter_gradients(
        self, dw_hh_t: Tensor, db_hh: Tensor, h: Tensor, a: Tensor, a_n: Tensor, z: Tensor
    ) -> Tensor:
        """Adds the gradients of W_hh and b_hh from M steps, and returns their dgx (M, 3H)."""
        dg = a.flatten(1)
        dw_hh_t.addmm_(h.t(), dg)
        db_hh += dg.sum(0)
        a[:, 2] = a_n
        return dg


class _ResetBefore:
    """n = tanh(gx_n + W_hn (r h) + b_hn): the paper's form, with two dependent products per step."""

    def __init__(self, w_hh: Tensor, b_hh: Tensor | None):
        hidden_size = w_hh.shape[1]
        sizes = [2 * hidden_size, hidden_size]
        self.w_rz, self.w_n = w_hh.split(sizes)
        self.b_rz = None if b_hh is None else b_hh[: sizes[0]]
        self.b_n = None if b_hh is None else b_hh[sizes[0] :]

    def step(self, h: Tensor, gx_rz: Tensor, gx_n: Tensor, out: Tensor) -> Tensor:
        """The next state, written to out; overwrites gx_n."""
        rz = _product(h, self.w_rz, self.b_rz).add_(gx_rz)
        r, z = rz.chunk(2, 1)
        not_z = z.neg().sigmoid_()
        rz.sigmoid_()
        return _updated(gx_n.add_(_product(r * h, self.w_n, self.b_n)), z, not_z, h, out)

    def linearise(self, h: Tensor, gx: Tensor) -> tuple[Tensor, ...]:
        """Derivatives of M steps: (h r (1 - r), a_z), (M, 2, H), and a_n, r and z, (M, H); overwrites gx."""
        u_rz, u_n = _rz_and_n(gx)
        r, z, not_r, not_z = _gates_and_complements(u_rz.add_(_product(h, self.w_rz, self.b_rz)))
        a_n = not_z / u_n.add_(_product(r * h, self.w_n, self.b_n)).cosh().square_()
        a = u_rz.unflatten(1, (2, -1))
        torch.mul(h, r, out=a[:, 0]).mul_(not_r)
        torch.sub(h, u_n.tanh(), out=a[:, 1]).mul_(z).mul_(not_z)
        return a, a_n, r, z

    def step_backward(self, dh: Tensor, a: Tensor, a_n: Tensor, r: Tensor, z: Tensor) -> Tensor:
        """From the gradient of the state after the step to that before; a and a_n become dgx."""
        dg_n = a_n.mul_(dh)
        drh = dg_n @ self.w_n  # the gradient of r h
        a[:, 0].mul_(drh)
        a[:, 1].mul_(dh)
        return dh.mul_(z).addcmul_(drh, r).addmm_(a.flatten(1), self.w_rz)

    def add_parameter_gradients(
        self, dw_hh_t: Tensor, db_hh: Tensor, h: Tensor, a: Tensor, a_n: Tensor, r: Tensor, z: Tensor
    ) -> Tensor:
        """Adds the gradients of W_hh and b_hh from M steps, and returns their dgx (M, 3H)."""
        hidden_size = h.shape[1]
        dg = torch.cat([a.flatten(1), a_n], 1)
        dw_hh_t[:, : 2 * hidden_size].addmm_(h.t(), dg[:, : 2 * hidden_size])
        dw_hh_t[:, 2 * hidden_size :].addmm_((r * h).t(), a_n)
        db_hh += dg.sum(0)
        return dg


def gru_step(x: Tensor, h: Tensor, weights: Weights) -> Tensor:
    """One step in reset-after form, without gradients: from x (B, I) and h (B, H) to the new state (B, H).

    W_hh may be that of heads, (n, 3H/n, H/n).
    """
    w_ih, w_hh, b_ih, b_hh = weights
    gx_rz, gx_n = _rz_and_n(linear(x, w_ih, b_ih))
    rz, gh_n = _rz_and_n(linear(h, w_hh, b_hh) if w_hh.dim() == 2 else _product_of_heads(h, w_hh, b_hh))
    r, z = rz.add_(gx_rz).chunk(2, 1)
    not_z = z.neg().sigmoid_()
    rz.sigmoid_()
    return _updated(gx_n.addcmul_(r, gh_n), z, not_z, h)


def _product_of_heads(h: Tensor, w_hh: Tensor, b_hh: Tensor | None) -> Tensor:
    """W_hh h + b_hh, (B, 3H) gate by gate, from h (B, H) and the blocks (n, 3H/n, H/n) of W_hh."""
    heads, _, units = w_hh.shape
    gh = torch.bmm(h.reshape(len(h), heads, units).transpose(0, 1), w_hh.transpose(1, 2))  # (n, B, 3H/n)
    gh = gh.unflatten(2, (3, units)).permute(1, 2, 0, 3).flatten(1)
    return gh if b_hh is None else gh.add_(b_hh)


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def _converted(weights: Weights, dtype: torch.dtype) -> Weights:
    return Weights(*(None if w is None else w.to(dtype) for w in weights))  # type: ignore[arg-type]


def gru_forward(
    x: Tensor,  # (N, I)
    h0: Tensor,  # (R, H)
    weights: Weights,  # without D
    schedule: Schedule,
    reset_after: bool = True,
) -> Tensor:  # (N, H)
    """The state after every step."""
    dtype = _compute_dtype(x)
    h0, (w_ih, w_hh, b_ih, b_hh) = h0.to(dtype), _converted(weights, dtype)
    y = x.new_empty(len(x), w_hh.shape[1])
    cell = (_ResetAfter if reset_after else _ResetBefore)(w_hh, b_hh)
    h = h0
    for chunk in schedule.chunks():
        gx = _product(x[chunk.rows].to(dtype), w_ih, b_ih)
        y_chunk = y[chunk.rows] if y.dtype is dtype else y.new_empty(len(gx), y.shape[1], dtype=dtype)
        parts = (schedule.blocks(chunk, part) for part in (*_rz_and_n(gx), y_chunk))
        for size, gx_rz, gx_n, y_t in zip(chunk.sizes, *parts, strict=True):
            h = cell.step(h if size == len(h) else h[:size], gx_rz, gx_n, y_t)
        if y.dtype is not dtype:
            y[chunk.rows] = y_chunk
    return y


def gru_backward(
    dy: Tensor | None,  # (N, H)
    dh_n: Tensor | None,  # (R, H), the gradient of each row's last state
    x: Tensor,  # (N, I)
    h0: Tensor,  # (R, H)
    y: Tensor,  # (N, H)
    weights: Weights,  # without D
    schedule: Schedule,
    reset_after: bool = True,
    need_dx: bool = True,
) -> Gradients:
    """The gradients, without D."""
    dtype, given_dtype = _compute_dtype(x), x.dtype
    h0, (w_ih, w_hh, b_ih, b_hh) = h0.to(dtype), _converted(weights, dtype)
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if need_dx else None
    dw_ih_t, dw_hh_t = w_ih.new_zeros(w_ih.shape[::-1]), w_hh.new_zeros(w_hh.shape[::-1])
    db_ih, db_hh = w_ih.new_zeros(len(w_ih)), w_hh.new_zeros(len(w_hh))
    dh_n = torch.zeros_like(h0) if dh_n is None else dh_n.to(dtype)

    cell = (_ResetAfter if reset_after else _ResetBefore)(w_hh, b_hh)
    dh = dh_n[:0].clone()
    for chunk in reversed(list(schedule.chunks())):
        x_chunk = x[chunk.rows].to(dtype)
        h = schedule.states_before(chunk, y, h0).to(dtype)
        factors = cell.linearise(h, _product(x_chunk, w_ih, b_ih))
        blocks = [schedule.blocks(chunk, factor)[::-1] for factor in factors]
        dys = [None] * len(chunk.sizes) if dy is None else schedule.blocks(chunk, dy[chunk.rows].to(dtype))[::-1]
        for size, dy_t, *factors_t in zip(chunk.sizes[::-1], dys, *blocks, strict=True):
            if size > len(dh):  # rows whose last step this is
                dh = torch.cat([dh, dh_n[len(dh) : size]])
            if dy_t is not None:
                dh.add_(dy_t)
            dh = cell.step_backward(dh, *factors_t)
        dgx = cell.add_parameter_gradients(dw_hh_t, db_hh, h, *factors)
        dw_ih_t.addmm_(x_chunk.t(), dgx)
        db_ih += dgx.sum(0)
        if dx is not None:
            dx[chunk.rows] = dgx @ w_ih
    dh0 = dh if len(dh) == len(dh_n) else dh_n.clone()  # no steps at all
    dh0, *d_weights = (grad.to(given_dtype) for grad in (dh0, dw_ih_t.t(), dw_hh_t.t(), db_ih, db_hh))
    return Gradients(dx, dh0, None, *d_weights)
