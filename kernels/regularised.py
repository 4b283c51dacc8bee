"""The regularised GRU, step by step in PyTorch: the equations of `reference.py` with four additions.

    recurrent dropout    W h becomes W (m h / (1 - p)), with one mask m for all steps of a row, so that a unit is
                         dropped from the recurrence for the whole sequence; z h stays whole. Gal & Ghahramani 2016
                         (arXiv:1512.05287)
    zoneout              a unit keeps its state with probability p: h' = h + m (h' - h). Krueger et al. 2016
                         (arXiv:1606.01305)
    layer normalisation  W x and W h, each over all three gates at once, with a gain, before the biases are added. Ba et
                         al. 2016 (arXiv:1607.06450), in the form of haste's LayerNormGRU
    activations          other than tanh for n and sigmoid for r and z

Outside training, the masks are replaced by their expectation: m / (1 - p) is 1, and h' = p h + (1 - p) h'.
Differentiable any number of times; the masks come from `noise.py`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from . import Form, Gates, State, Steps, Weights
from .noise import keep_mask, new_seed
from .reference import gru_update, unroll, without_padding

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "hard_sigmoid": lambda x: torch.clamp(x / 6 + 0.5, 0, 1),  # torch's own has no second derivative
    "hard_tanh": lambda x: torch.clamp(x, -1, 1),
    "softsign": torch.nn.functional.softsign,
    "linear": lambda x: x,
}


class Variant(NamedTuple):
    """The options of a layer beyond the equations; by default none."""

    recurrent_dropout: float = 0.0
    zoneout: float = 0.0
    layer_norm: bool = False
    activation: str = "tanh"
    recurrent_activation: str = "sigmoid"
    training: bool = False


_PLAIN = list(Variant()[:-1])


def acting(variant: Variant) -> tuple[str, ...]:
    """The options that have an effect, as names of `GRU`'s arguments."""
    *values, training = variant
    if values == _PLAIN:
        return ()
    names = [name for name, value, plain in zip(Variant._fields[:-1], values, _PLAIN, strict=True) if value != plain]
    if not training and "recurrent_dropout" in names:
        names.remove("recurrent_dropout")  # no effect in expectation
    return tuple(names)


def drawn_seed(variant: Variant | None, device: torch.device) -> Tensor | None:
    """A seed of a call's masks, None where none are random."""
    is_noisy = variant is not None and variant.training and (variant.recurrent_dropout > 0 or variant.zoneout > 0)
    return new_seed(device) if is_noisy else None


def dropout_of_state(seed: Tensor, p: float, h: Tensor, direction: int) -> Tensor:
    """The factor (B, H) of h in the products of a direction."""
    return keep_mask(seed, 2 * direction, 0, (h.shape[0], h.shape[1]), p).to(h.dtype) / max(1 - p, 1e-7)


class Gains(NamedTuple):
    """The gains of layer normalisation."""

    of_x: Tensor  # (D, 3H), for W x
    of_h: Tensor  # (D, 3H), for W h


def gru_layer(
    x: Tensor,  # (T, B, I)
    state: State,
    weights: Weights,
    gains: Gains | None,
    steps: Steps,
    form: Form,
    variant: Variant,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor, Gates]:
    """One layer: y (T, B, D*H), h_n (D, B, H) and the gates, each (D, T, B, H), 0 at padding.

    The other arguments are those of the contract in `kernels/__init__.py`. Without a seed, each call draws its own.
    """
    x = without_padding(x, steps)
    seed = drawn_seed(variant, x.device) if seed is None else seed

    def step_of(d: int) -> _Step:
        gains_d = (None, None) if gains is None else (gains.of_x[d], gains.of_h[d])
        return _Step(x, state.h0[d], weights.of(d), gains_d, form, variant, seed, d)

    return unroll(step_of, len(x), state, steps, form.heads)


class _Step:
    """The function of a step in one direction, for `unroll`."""

    def __init__(
        self,
        x: Tensor,
        h0: Tensor,
        weights: Weights,  # without D
        gains: tuple[Tensor | None, Tensor | None],
        form: Form,
        variant: Variant,
        seed: Tensor | None,
        direction: int,
    ):
        w_ih, self.w_hh, b_ih, self.b_hh = weights
        gain_x, self.gain_h = gains
        self.gx = _product(x, w_ih, b_ih, gain_x).unbind()  # T of (B, 3H)
        self.reset_after, self.variant, self.seed, self.direction = form.reset_after, variant, seed, direction
        self.keep: Tensor | float = 1.0  # of the state, in the products
        if seed is not None and variant.recurrent_dropout > 0:
            self.keep = dropout_of_state(seed, variant.recurrent_dropout, h0, direction)

    def __call__(self, t: int, h: Tensor) -> tuple[Tensor, Gates]:
        gates = self.gates(t, h * self.keep)
        return self.zoned_out(t, gru_update(gates, h), h), gates

    def gates(self, t: int, h: Tensor) -> Gates:
        """The gates of step t; dropout has been applied to h."""
        to_gate = ACTIVATIONS[self.variant.recurrent_activation]
        to_candidate = ACTIVATIONS[self.variant.activation]
        gx_r, gx_z, gx_n = self.gx[t].chunk(3, -1)
        if self.reset_after:
            gh_r, gh_z, gh_n = _product(h, self.w_hh, self.b_hh, self.gain_h).chunk(3, -1)
            r, z = to_gate(gx_r + gh_r), to_gate(gx_z + gh_z)
            return Gates(r, z, to_candidate(gx_n + r * gh_n))
        sizes = [2 * h.shape[-1], h.shape[-1]]
        w_rz, w_n = self.w_hh.split(sizes)
        b_rz, b_n = (None, None) if self.b_hh is None else self.b_hh.split(sizes)
        gh_r, gh_z = linear(h, w_rz, b_rz).chunk(2, -1)
        r, z = to_gate(gx_r + gh_r), to_gate(gx_z + gh_z)
        return Gates(r, z, to_candidate(gx_n + linear(r * h, w_n, b_n)))

    def zoned_out(self, t: int, h_new: Tensor, h: Tensor) -> Tensor:
        """The new state, after zoneout."""
        p = self.variant.zoneout
        if p == 0:
            return h_new
        if self.seed is None:
            return p * h + (1 - p) * h_new
        return torch.where(keep_mask(self.seed, 2 * self.direction + 1, t, (h.shape[0], h.shape[1]), p), h_new, h)


def _product(x: Tensor, w: Tensor, b: Tensor | None, gain: Tensor | None) -> Tensor:
    """W x + b, with the product normalised over its last dimension if there is a gain."""
    if gain is None:
        return linear(x, w, b)
    product = layer_norm(linear(x, w), gain.shape, gain)
    return product if b is None else product + b
