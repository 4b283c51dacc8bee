"""One case of the contract in `kernels/__init__.py`, and the comparison of an implementation with torch.nn.GRU.

The oracle runs torch.nn.GRU in float64; with masks or resets row by row on the non-padding steps, in pieces between
resets. It has no `reset_after=False`: there the oracle is `kernels/reference.py`, which test_reference.py compares with
the equations written out. With dropout and zoneout it is `kernels/regularised.py`, as in grucore/test_variants.py.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from oracle import FUSED_LIMITS, LIMITS, assert_near
from torch import Tensor

from grucore.kernels import Form, Gradients, State, Steps, Weights, reference, regularised
from grucore.kernels.eager import layer as eager
from grucore.kernels.native import layer as native
from grucore.kernels.native.library import UNAVAILABLE
from grucore.kernels.regularised import Variant
from grucore.kernels.triton import layer as triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # of the fused kernels: elsewhere Triton interprets them


class Case(NamedTuple):
    """Sizes, options and layout of one call."""

    T: int = 6
    B: int = 3
    I: int = 4  # noqa: E741
    H: int = 8
    two_way: bool = False
    bias: bool = True
    flags: str = ""  # words: lengths, gaps, left, padding (all of it), resets, state (to another state than h0)
    loss: str = "y h_n"  # what a gradient comes from: y, only its "first" step, h_n
    layout: str = "contiguous"  # of x, h0 and dy; or "strided", "expanded"
    need_dx: bool = True
    reset_after: bool = True
    heads: int = 1  # of each direction, each of H units
    large: bool = False  # too slow for Triton's interpreter
    dropout: float = 0.0  # of the state in the products
    zoneout: float = 0.0
    training: bool = True  # whether these are random, or their expectation

    @property
    def D(self) -> int:
        return (1 + self.two_way) * self.heads


class Call(NamedTuple):
    """The arguments of gru_forward and gru_backward except y."""

    x: Tensor
    state: State
    weights: Weights
    steps: Steps
    form: Form
    dy: Tensor | None
    dh_n: Tensor | None
    need_dx: bool
    noise: tuple[Variant, Tensor | None] | tuple[()] = ()  # of the contract's last arguments, where there are any

    def to(self, where: torch.dtype | str) -> "Call":
        """All in another dtype, which the flags do not take, or on another device."""

        def moved(t: Tensor | None) -> Tensor | None:
            return t if t is None or (t.dtype is torch.bool and isinstance(where, torch.dtype)) else t.to(where)

        state, weights, steps = (type(group)(*map(moved, group)) for group in (self.state, self.weights, self.steps))
        noise = self.noise
        if noise and noise[1] is not None and isinstance(where, str):
            noise = noise[0], noise[1].to(where)
        dy, dh_n = moved(self.dy), moved(self.dh_n)
        return Call(moved(self.x), state, weights, steps, self.form, dy, dh_n, self.need_dx, noise)


def flags_of(case: Case) -> Steps:
    """Draws padding and resets as described by `case.flags`."""
    T, B, words = case.T, case.B, case.flags.split()
    real = start = None
    if "lengths" in words:  # the first row has no step, the last all
        lengths = torch.randint(1, T + 1, (B,))
        lengths[0], lengths[-1] = 0, T
        real = torch.arange(T).unsqueeze(1) < lengths
    if "left" in words:
        real = torch.arange(T).unsqueeze(1) >= torch.randint(0, T + 1, (B,))
    if "gaps" in words:  # one row has no step
        real = torch.rand(T, B) < 0.6
        real[:, 0] = False
    if "padding" in words:
        real = torch.zeros(T, B, dtype=torch.bool)
    if "resets" in words:  # one row is cut at every step, another at its ends
        start = torch.rand(T, B) < 0.3
        start[:, -1], start[[0, -1], 1 % B] = True, True
    return Steps(real, start)


def laid_out(shape: tuple, layout: str) -> Tensor:
    """Random numbers in memory of that layout."""
    if layout == "strided":  # every other number of a tensor whose dimensions lie in reverse order
        return torch.randn([2 * n for n in reversed(shape)]).permute(2, 1, 0)[1::2, ::2, ::2]
    if layout == "expanded":
        return torch.randn(shape[0], 1, shape[2]).expand(shape)
    return torch.randn(shape)


def gradient(shape: tuple, layout: str) -> Tensor:
    """A gradient of an output; where the layout is expanded, one number for each step, as that of a sum is."""
    return torch.randn(shape[0], 1, 1).expand(shape) if layout == "expanded" else laid_out(shape, layout)


def draw(case: Case, dtype: torch.dtype) -> Call:
    """A random call, its values rounded to dtype, NaN wherever padding makes the contract ignore a value."""
    T, B, I, H, D = *case[:4], case.D  # noqa: E741
    x = laid_out((T, B, I), case.layout) * min(1, 16 / I) ** 0.5  # so that no gate is quite open or shut
    state = State(laid_out((D, B, H), case.layout), torch.randn(D, B, H) if "state" in case.flags else None)
    weights = [
        torch.empty(D, 3 * H, *n).uniform_(-(H**-0.5), H**-0.5) for n in ((I,), (H,), (), ())
    ]  # as nn.GRU begins
    if not case.bias:
        weights[2:] = None, None
    steps, dy, dh_n = flags_of(case), None, None
    if case.loss != "h_n":
        dy = gradient((T, B, D * H), case.layout)
    if "first" in case.loss:
        dy[1:] = 0
    if "h_n" in case.loss:
        dh_n = gradient((D, B, H), case.layout)
    if steps.real is not None:
        padding = ~steps.real.unsqueeze(-1)
        x, dy = (t if t is None else t.masked_fill(padding, torch.nan) for t in (x, dy))
    form = Form(case.reset_after, heads=case.heads)
    noise: tuple = ()
    if case.dropout or case.zoneout:
        variant = Variant(case.dropout, case.zoneout, training=case.training)
        noise = variant, torch.tensor(case.T) if case.training else None
    return Call(x, state, Weights(*weights), steps, form, dy, dh_n, case.need_dx, noise).to(dtype)


class Implementation(NamedTuple):
    """An implementation and its limits."""

    run: Callable[[Call], tuple[Tensor, Tensor, Gradients]]  # y, h_n and the gradients
    dtypes: tuple[torch.dtype, ...]
    limits: dict
    device: str = "cpu"


def computed_by(module: Any) -> Callable[[Call], tuple[Tensor, Tensor, Gradients]]:
    """Runs the two functions of the contract."""

    def run(call: Call) -> tuple[Tensor, Tensor, Gradients]:
        values = (call.state, call.weights, call.steps, call.form)
        y, h_n = module.gru_forward(call.x, *values, *call.noise)
        return y, h_n, module.gru_backward(call.dy, call.dh_n, y, call.x, *values, call.need_dx, *call.noise)

    return run


def computed_natively(call: Call) -> tuple[Tensor, Tensor, Gradients]:
    """The two functions of the native kernels with what they keep in between, after a run that keeps nothing."""
    values = (call.state, call.weights, call.steps, call.form)
    without = computed_by(native)(call)
    kept = native.new_kept(call.x, call.state.h0)
    y, h_n = native.gru_forward(call.x, *values, kept)
    gradients = native.gru_backward(call.dy, call.dh_n, y, call.x, *values, call.need_dx, kept)
    for a, b in zip((y, h_n, *gradients), (*without[:2], *without[2]), strict=True):
        assert (
            (a is None and b is None) or a.dtype.itemsize == 2 or torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
        ), "the same bits, kept or not"
    return y, h_n, gradients


def differentiated(forward: Callable) -> Callable[[Call], tuple[Tensor, Tensor, Gradients]]:
    """Runs a function that PyTorch differentiates; no gradient for a bias that is absent."""

    def run(call: Call) -> tuple[Tensor, Tensor, Gradients]:
        inputs = [None if t is None else t.detach().requires_grad_() for t in (call.x, *call.state, *call.weights)]
        y, h_n = forward(inputs[0], State(*inputs[1:3]), Weights(*inputs[3:]), call.steps, call.form)[:2]
        dy = call.dy
        if dy is not None and call.steps.real is not None:
            dy = dy.masked_fill(~call.steps.real.unsqueeze(-1), 0)
        given = [t for t in inputs if t is not None]
        total = sum(0 * t.sum() for t in given)  # so that all have a gradient
        total = total + sum((t * d).sum() for t, d in ((y, dy), (h_n, call.dh_n)) if d is not None)
        grads = iter(torch.autograd.grad(total, given))
        gradients = Gradients(*(None if t is None else next(grads) for t in inputs))
        return y.detach(), h_n.detach(), gradients if call.need_dx else gradients._replace(x=None)

    return run


f64, f32, bf16, f16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
IMPLEMENTATIONS = {
    "reference": Implementation(differentiated(reference.gru_layer), (f64,), LIMITS),
    "eager": Implementation(computed_by(eager), (f64, f32, bf16, f16), LIMITS),
    **({} if UNAVAILABLE else {"native": Implementation(computed_natively, (f64, f32, bf16, f16), LIMITS)}),
    "triton": Implementation(computed_by(triton), (f32, bf16, f16), FUSED_LIMITS, DEVICE),
}
QUANTITIES = Gradients("dx", "dh0", "dh0", "dw", "dw", "db", "db")


def check(implementation: Implementation, case: Case, dtype: torch.dtype) -> None:
    """Outputs and all gradients of a random call are the oracle's."""
    call = draw(case, dtype)
    y, h_n, grads = implementation.run(call.to(implementation.device))
    exact = call.to(torch.float64)
    if not case.bias:
        zeros = exact.weights.w_ih.new_zeros(exact.weights.w_ih.shape[:2])
        exact = exact._replace(weights=exact.weights._replace(b_ih=zeros, b_hh=zeros))
    oracle = nn_gru if case.reset_after else reference.gru_layer
    if call.noise:
        oracle = regularised_gru(*call.noise)
    y_want, h_n_want, wants = differentiated(oracle)(exact)
    for name, got, want in (("y", y, y_want), ("h_n", h_n, h_n_want)):
        assert got.dtype is dtype, name
        assert_near("output", got.cpu(), want, implementation.limits)
    for name, quantity, got, want in zip(Gradients._fields, QUANTITIES, grads, wants, strict=True):
        if got is None and name.startswith("b_") and implementation.run is IMPLEMENTATIONS["reference"].run:
            continue
        assert (got is None) == (want is None), name
        if got is not None:
            assert got.dtype is dtype, name
            assert_near(quantity, got.cpu(), want, implementation.limits)


def regularised_gru(variant: Variant, seed: Tensor | None) -> Callable:
    """The equations with dropout and zoneout, whose masks are those of a seed."""

    def run(x: Tensor, state: State, weights: Weights, steps: Steps, form: Form) -> tuple[Tensor, Tensor]:
        return regularised.gru_layer(x, state, weights, None, steps, form, variant, seed)[:2]

    return run


def nn_gru(x: Tensor, state: State, weights: Weights, steps: Steps, form: Form) -> tuple[Tensor, Tensor]:
    """y and h_n of torch.nn.GRU: with flags row by row, on the steps that are not padding, in pieces between cuts."""
    T, B, I = x.shape  # noqa: E741
    D, _, H = state.h0.shape
    h_reset = state.h0 if state.h_reset is None else state.h_reset
    given = steps.real if steps.real is not None else steps.start
    rows = [slice(0, B)] if given is None else [slice(b, b + 1) for b in range(B)]
    real = torch.ones(T, B, dtype=torch.bool) if steps.real is None else steps.real
    cuts = torch.zeros(T, B, dtype=torch.long) if steps.start is None else steps.start.long().cumsum(0)
    ys, h_ns = [], []
    for d in range(D):
        layer = torch.nn.GRU(I, H, dtype=x.dtype, device="meta")
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        parameters = dict(zip(names, weights.of(d), strict=True))
        y_rows, h_rows = [x.new_zeros(T, 0, H)], [x.new_zeros(0, H)]
        for row in rows if B else ():
            b = row.start
            entry = cuts[-1:, b].sum() * (d >= form.heads)  # the number of cuts where the row is entered
            order = [t for t in (reversed(range(T)) if d >= form.heads else range(T)) if real[t, b]]
            y, h = x.new_zeros(T, row.stop - b, H), state.h0[d : d + 1, row]
            for count, piece in itertools.groupby(order, key=lambda t, b=b: int(cuts[t, b])):
                piece = torch.tensor(list(piece))
                begin = (state.h0 if count == entry else h_reset)[d : d + 1, row]
                inputs = (x[piece][:, row].contiguous(), begin.contiguous())
                y_piece, h = torch.func.functional_call(layer, parameters, inputs)
                y = y.index_copy(0, piece, y_piece)
            y_rows.append(y)
            h_rows.append(h[0])
        ys.append(torch.cat(y_rows, 1))
        h_ns.append(torch.cat(h_rows))
    return torch.cat(ys, -1), torch.stack(h_ns)
