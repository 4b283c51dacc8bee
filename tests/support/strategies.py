"""Calls of a `GRU` that hypothesis draws: a `Case` of words and numbers, and the `Problem` that a case stands for.

A case holds a seed instead of tensors, so that what hypothesis prints can be read, and typed again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import equations
import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from grucore import GRU
from grucore.kernels.native.library import UNAVAILABLE

f64, f32, bf16, f16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
ACTIVATIONS = ("tanh", "sigmoid", "relu", "hard_sigmoid", "hard_tanh", "softsign", "linear")


class Case(NamedTuple):
    """One layer and one call."""

    T: int = 3
    B: int = 2
    I: int = 3  # noqa: E741
    H: int = 4
    layers: int = 1
    two_way: bool = False
    bias: bool = True
    layout: str = "time first"  # or "batch first", "unbatched"
    reset_after: bool = True
    padding: str = ""  # or "lengths", "mask"
    resets: str = ""  # or "to hx", "elsewhere"
    has_hx: bool = True
    strides: str = "contiguous"  # of x and hx; or "strided", "expanded", "negated"
    magnitude: float = 1.0  # of x and hx
    dtype: torch.dtype = f64
    seed: int = 0
    layer_norm: bool = False
    zoneout: float = 0.0
    activation: str = "tanh"
    recurrent_activation: str = "sigmoid"
    learned: bool = False  # the initial state
    heads: int = 1

    @property
    def directions(self) -> int:
        return 1 + self.two_way

    @property
    def is_regularised(self) -> bool:
        return bool(self.layer_norm or self.zoneout) or (self.activation, self.recurrent_activation) != (
            "tanh",
            "sigmoid",
        )

    def options(self) -> dict[str, Any]:
        """The keyword arguments of `GRU`."""
        return {
            "num_layers": self.layers,
            "bias": self.bias,
            "batch_first": self.layout == "batch first",
            "bidirectional": self.two_way,
            "dtype": self.dtype,
            "reset_after": self.reset_after,
            "heads": self.heads,
            "layer_norm": self.layer_norm,
            "zoneout": self.zoneout,
            "activation": self.activation,
            "recurrent_activation": self.recurrent_activation,
            "learn_initial_state": self.learned,
        }


def _possible(case: Case) -> Case:
    """The case without what contradicts itself."""
    case = case._replace(B=1) if case.layout == "unbatched" else case
    case = case._replace(resets="to hx") if case.two_way and case.resets else case
    case = case._replace(reset_after=True) if case.layer_norm else case
    if case.dtype is f16:  # whose range is small
        return case._replace(magnitude=min(max(case.magnitude, 1e-2), 1e2))
    return case


NATIVE = [] if UNAVAILABLE else ["native"]
STRIDES = ("contiguous", "strided", "expanded", "negated")
MAGNITUDES = (1.0, 1e-8, 1e-4, 1e-2, 1e2, 1e4)
PLAIN = {
    "T": st.integers(0, 7),
    "B": st.integers(0, 4),
    "I": st.integers(1, 6),
    "H": st.one_of(st.integers(1, 9), st.sampled_from([16, 17, 33])),
    "layers": st.sampled_from([1, 1, 1, 2, 3]),
    "two_way": st.booleans(),
    "bias": st.booleans(),
    "layout": st.sampled_from(["time first", "batch first", "unbatched"]),
    "reset_after": st.booleans(),
    "padding": st.sampled_from(["", "lengths", "mask"]),
    "resets": st.sampled_from(["", "to hx", "elsewhere"]),
    "has_hx": st.booleans(),
    "strides": st.sampled_from(STRIDES),
    "magnitude": st.sampled_from(MAGNITUDES),
    "dtype": st.sampled_from([f32, f64]),
    "seed": st.integers(0, 999),
}
REGULARISED = {
    "layer_norm": st.booleans(),
    "zoneout": st.sampled_from([0.0, 0.25, 1.0]),
    "activation": st.sampled_from(ACTIVATIONS),
    "recurrent_activation": st.sampled_from(["sigmoid", "hard_sigmoid", "tanh", "softsign"]),
    "learned": st.booleans(),
}
HEADS = {"heads": st.sampled_from([2, 3, 4]), "H": st.sampled_from([12, 36])}


def cases(**fixed: Any) -> st.SearchStrategy[Case]:
    """Cases of the plain equations; `fixed` gives fields a value or a strategy of their own."""
    given = {name: value if isinstance(value, st.SearchStrategy) else st.just(value) for name, value in fixed.items()}
    return st.fixed_dictionaries(PLAIN | given).map(lambda fields: _possible(Case(**fields)))


@dataclass
class Problem:
    """The tensors of a case, time-major and batched whatever the layout is, NaN where padding is not read."""

    case: Case
    x: Tensor  # (T, B, I)
    hx: Tensor | None  # (K*D, B, H)
    real: Tensor  # (T, B)
    start: Tensor | None  # (T, B)
    reset_state: Tensor | None  # as hx
    dy: Tensor  # (T, B, D*H), what a loss weighs the outputs with
    dh_n: Tensor  # (K*D, B, H)

    @property
    def lengths(self) -> Tensor:
        return self.real.sum(0)

    def layer(self, backend: str = "auto") -> GRU:
        """The layer, whose weights are those of the seed, biases and gains too."""
        case = self.case
        layer = GRU(case.I, case.H, **case.options(), backend=backend)
        numbers = torch.Generator().manual_seed(case.seed)
        with torch.no_grad():
            for name, p in layer.named_parameters():
                p.copy_(torch.randn(p.shape, generator=numbers, dtype=f64) * case.H**-0.5 + ("norm" in name))
        return layer.eval()  # where zoneout takes its expectation

    def flags(self) -> dict[str, Any]:
        """The keyword arguments of a call, time-major and batched."""
        given: dict[str, Any] = {}
        if self.case.padding == "lengths":
            given["lengths"] = self.lengths
        elif self.case.padding:
            given["mask"] = self.real
        if self.start is not None:
            given["reset"] = self.start
        if self.reset_state is not None:
            given["reset_state"] = self.reset_state
        return given

    def in_float64(self) -> Problem:
        """The same numbers."""
        tensors = (self.x, self.hx, self.real, self.start, self.reset_state, self.dy, self.dh_n)
        moved = [t if t is None or t.dtype is torch.bool else t.double() for t in tensors]
        return Problem(self.case._replace(dtype=f64), *moved)

    def run(self, layer: GRU) -> dict[str, Tensor]:
        """y, h_n and all gradients of `layer`, called in the layout of the case; results time-major and batched."""
        case, layout = self.case, self.case.layout
        x = self.x.detach().requires_grad_()
        hx, reset_state = (None if t is None else t.detach().requires_grad_() for t in (self.hx, self.reset_state))
        there = {"batch first": lambda t: t.transpose(0, 1), "unbatched": lambda t: t.squeeze(1)}.get(layout, _same)
        state = (lambda t: t.squeeze(1)) if layout == "unbatched" else _same
        given = {name: (there if name in ("mask", "reset") else _same)(flag) for name, flag in self.flags().items()}
        if reset_state is not None:
            given["reset_state"] = state(reset_state)
        y, h_n = layer(there(x), None if hx is None else state(hx), **given)
        if layout == "unbatched":
            y, h_n = y.unsqueeze(1), h_n.unsqueeze(1)
        elif layout == "batch first":
            y = y.transpose(0, 1)
        inputs = {"dx": x, "dh0": hx, "dh_reset": reset_state} | dict(layer.named_parameters())
        inputs = {name: t for name, t in inputs.items() if t is not None}
        nothing = sum(0 * t.sum() for t in inputs.values())  # so that there is a gradient where T is 0
        outputs = [nothing, *(t for t in (y, h_n) if t.requires_grad)]
        weights = [torch.ones_like(nothing), *(d for t, d in ((y, self.dy), (h_n, self.dh_n)) if t.requires_grad)]
        gradients = torch.autograd.grad(outputs, [*inputs.values()], weights)
        assert y.shape == (case.T, case.B, case.directions * case.H) and y.dtype is h_n.dtype is case.dtype
        return {"y": y.detach(), "h_n": h_n.detach(), **dict(zip(inputs, gradients, strict=True))}

    def arrays(self, layer: GRU) -> dict[str, np.ndarray]:
        """What is differentiated, in float64, by the names of `run`; padding is 0."""
        given = {"dx": self.x.masked_fill(~self.real.unsqueeze(-1), 0), "dh0": self.hx, "dh_reset": self.reset_state}
        given |= dict(layer.named_parameters())
        return {name: t.detach().double().resolve_neg().numpy() for name, t in given.items() if t is not None}

    def equations(self, values: dict[str, np.ndarray], layer: GRU) -> dict[str, Any]:
        """What `tests/support/equations.py` makes of those arrays."""
        case, parts = self.case, []
        for k in range(case.layers):
            for d in range(case.directions):
                suffix = f"_l{k}" + "_reverse" * d
                names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "layer_norm_ih", "layer_norm_hh")
                part = equations.Parameters(*(values.get(name + suffix) for name in names))
                part.w_hh = equations.block_diagonal(part.w_hh) if case.heads > 1 else part.w_hh
                parts.append(part)
        states = (len(parts), case.B, case.H)
        h0 = values.get("dh0")
        if h0 is None:
            learned = values.get("initial_state")
            h0 = np.zeros(states) if learned is None else np.broadcast_to(learned[:, None], states)
        form = equations.Form(case.reset_after, case.activation, case.recurrent_activation, case.zoneout)
        start = None if self.start is None else self.start.numpy()
        real = self.real.numpy()
        return equations.gru(values["dx"], h0, parts, form, case.directions, real, start, values.get("dh_reset"))

    def loss(self, results: dict[str, Any]) -> Any:
        """What `run` differentiates, of the results of `equations`; padding of y is 0."""
        dy, dh_n = self.dy.double().numpy(), self.dh_n.double().numpy()
        return (results["y"] * dy).sum() + (results["h_n"] * dh_n).sum()


def _same(t: Any) -> Any:
    return t


def problem_of(case: Case) -> Problem:
    """The tensors of a case."""
    numbers = torch.Generator().manual_seed(case.seed)
    T, B, states = case.T, case.B, (case.layers * case.directions, case.B, case.H)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=numbers, dtype=f64)

    real = torch.ones(T, B, dtype=torch.bool)
    if case.padding == "lengths":
        lengths = torch.randint(T + 1, (B,), generator=numbers)
        real = torch.arange(T).unsqueeze(1) < lengths
    elif case.padding:
        real = torch.rand(T, B, generator=numbers) < 0.6
    x = (case.magnitude * drawn(T, B, case.I)).to(case.dtype)
    hx = (case.magnitude * drawn(*states)).to(case.dtype) if case.has_hx else None
    start = torch.rand(T, B, generator=numbers) < 0.3 if case.resets else None
    reset_state = (case.magnitude * drawn(*states)).to(case.dtype) if case.resets == "elsewhere" else None
    dy, dh_n = drawn(T, B, case.directions * case.H).to(case.dtype), drawn(*states).to(case.dtype)
    x, hx = laid_out(x, case.strides), None if hx is None else laid_out(hx, case.strides)
    if case.strides != "expanded":  # whose memory several places share
        x = x.masked_fill_(~real.unsqueeze(-1), torch.nan) if case.strides != "negated" else x
    return Problem(case, x, hx, real, start, reset_state, dy, dh_n)


def laid_out(t: Tensor, strides: str) -> Tensor:
    """The same numbers in memory of another layout; those of the first row for all, where it is expanded."""
    if strides == "strided":
        memory = torch.full([2 * n for n in reversed(t.shape)], torch.nan, dtype=t.dtype)
        return memory.permute(2, 1, 0)[::2, ::2, ::2].copy_(t)
    if strides == "expanded" and t.shape[1]:
        return t[:, :1].expand(t.shape)
    if strides == "negated" and t.dtype in (f32, f64):  # a view that PyTorch negates as it reads
        return torch.complex(torch.zeros_like(t), -t).conj().imag
    return t
