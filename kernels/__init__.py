"""The recurrence of one GRU layer, as the equations and as implementations of one contract.

    reference.py     the four equations in plain PyTorch: read this first; everything else computes the same
    regularised.py   the equations with dropout, zoneout, layer normalisation and other activations (masks: noise.py)
    eager/           PyTorch operators, with hand-written backpropagation through time
    native/          C++ for CPUs
    triton/          fused GPU kernels that keep the recurrent weights on chip
    packing.py       lengths, masks and resets as an index of the steps that are not padding
    heads.py         a layer of several heads as a layer of more recurrences

The contract, for one layer and its D directions; T time, B batch, I input, H hidden:

    y, h_n = gru_forward(x, state, weights, steps, form)
    gradients = gru_backward(dy, dh_n, y, x, state, weights, steps, form, need_dx)

    x      (T, B, I)     the input, time-major, any strides
    y      (T, B, D*H)   the state after each step, 0 at padding
    h_n    (D, B, H)     the state after each row's last step in the direction of travel; h0 if it has none

The second direction runs from the last step to the first. With `form.heads` there are as many recurrences in each
direction, side by side on the same x: D counts them all, those of the first direction first, and H is the number of
units of one (`heads.py`).

Backward takes the gradients of y and h_n (either may be None) and y itself, and recomputes the gates. The native
kernels can keep these intermediate results: both functions take one more argument, `kept`. Nothing here imports
`grucore`.
"""

from typing import NamedTuple

from torch import Tensor


class State(NamedTuple):
    """The states that rows and reset sequences begin from."""

    h0: Tensor  # (D, B, H): before a row's first step
    h_reset: Tensor | None = None  # (D, B, H): after a reset; h0 if None


class Weights(NamedTuple):
    """The parameters of a layer, gates in the order r, z, n; both biases or neither."""

    w_ih: Tensor  # (D, 3H, I)
    w_hh: Tensor  # (D, 3H, H)
    b_ih: Tensor | None = None  # (D, 3H)
    b_hh: Tensor | None = None  # (D, 3H)

    def of(self, d: int) -> "Weights":
        """The parameters of one direction, without D."""
        return Weights(*(None if w is None else w[d] for w in self))  # type: ignore[arg-type]


class Steps(NamedTuple):
    """The mask and the resets of a batch; None if there is no padding or no reset."""

    real: Tensor | None = None  # (T, B) bool, False at padding: the state is unchanged, y = 0, no gradient, x unread
    start: Tensor | None = None  # (T, B) bool, True for a reset before step t: the steps from t on begin from h_reset


class Form(NamedTuple):
    """The form of the equations and the precision of products."""

    reset_after: bool = True  # False: n = tanh(W_in x + b_in + W_hn (r * h) + b_hn), as in the paper
    precision: str = "ieee"  # of float32 products on a GPU: "ieee" or "tf32"
    heads: int = 1  # recurrences in each direction: d travels from the end where d >= heads


class Gates(NamedTuple):
    """Reset gate r, update gate z and candidate n, in that order, all of one shape."""

    r: Tensor
    z: Tensor
    n: Tensor


class Gradients(NamedTuple):
    """The gradients of a layer's inputs; always those of biases, those of x and h_reset only if wanted and given."""

    x: Tensor | None  # (T, B, I)
    h0: Tensor  # (D, B, H)
    h_reset: Tensor | None  # (D, B, H)
    w_ih: Tensor  # (D, 3H, I)
    w_hh: Tensor  # (D, 3H, H)
    b_ih: Tensor  # (D, 3H)
    b_hh: Tensor  # (D, 3H)
