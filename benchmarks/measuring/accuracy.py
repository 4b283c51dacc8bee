"""Measures the errors of our results and torch.nn.GRU's against float64, and writes a CSV.

    python -m benchmarks.measuring.accuracy --out FOLDER            a few minutes; --longest 100 for a quick look

"plain": freshly initialised layers, T from 10 to 10,000. The others have T = 100: "open" (update gates biased by 15, so
that 1 - z is 3e-7: a long memory), "shut" (by -15), "large" (inputs times 1e4, which saturates every gate), "denormal"
(inputs times 1e-40 or, in float16, 1e-7, without biases), and "steep" and "flat" (the gradient of the loss times 1e20
and 1e-20, or 1e3 and 1e-3 in float16). "nan" and "inf" put one such number into one row, and count the numbers in other
rows that change.

The error is RMS(got - want) / RMS(want), where want is torch.nn.GRU in float64 from the same rounded numbers. In "open"
and "large", where 1 - z or 1 - n n would round to 0 even there, the same equations compute both from exponentials.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.measuring.environment import environment, on_cpu
from benchmarks.results import new_file
from grucore import GRU
from grucore.kernels.native.library import UNAVAILABLE

COLUMNS = ["provider", "case", "dtype", "T", "quantity", "error", "what"]
COLUMNS += ["device", "torch", "triton", "cudnn", "commit", "threads", "instruction_set", "date"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PROVIDERS = ["torch", "reference", "eager", *([] if UNAVAILABLE else ["native"])]
B, I, H = 8, 32, 64  # noqa: E741
LENGTHS = (10, 100, 1000, 10_000)
CASES = ("open", "shut", "large", "denormal", "steep", "flat")


class Problem(NamedTuple):
    """A layer's numbers, rounded to a dtype, in float64."""

    layer: nn.GRU
    x: Tensor  # (T, B, I)
    h0: Tensor  # (1, B, H)
    dy: Tensor  # (T, B, H)


def problem(case: str, dtype: torch.dtype, T: int) -> Problem:
    """Draws the numbers of a case."""
    torch.manual_seed(0)
    half = dtype is torch.float16
    layer = nn.GRU(I, H, bias=case != "denormal", dtype=torch.float64)
    x, h0, dy = (torch.randn(*shape, dtype=torch.float64) for shape in ((T, B, I), (1, B, H), (T, B, H)))
    with torch.no_grad():
        if case in ("open", "shut"):
            layer.bias_hh_l0[H : 2 * H] += 15 if case == "open" else -15
        x *= {"large": 1e4, "denormal": 1e-7 if half else 1e-40}.get(case, 1.0)
        h0 *= {"denormal": 1e-7 if half else 1e-40}.get(case, 1.0)
        scale = 1e3 if half else 1e20
        dy *= {"steep": scale, "flat": 1 / scale}.get(case, 1.0)
        for p in layer.parameters():
            p.copy_(p.to(dtype))
    return Problem(layer, *(t.to(dtype).double() for t in (x, h0, dy)))


def results(layer: nn.Module, given: Problem, dtype: torch.dtype) -> dict[str, Tensor]:
    """Runs a layer forward and backward."""
    x, h0 = (t.to(dtype).requires_grad_() for t in (given.x, given.h0))
    y, _ = layer(x, h0)
    names = ["dx", "dh0", "dw_ih", "dw_hh"]
    gradients = torch.autograd.grad(y, [x, h0, layer.weight_ih_l0, layer.weight_hh_l0], given.dy.to(dtype))
    return {"y": y.detach(), **dict(zip(names, gradients, strict=True))}


class Exact(nn.Module):
    """The equations in float64, with 1 - z and 1 - n n from exponentials rather than from differences."""

    def __init__(self, layer: nn.GRU):
        super().__init__()
        self.layer, self.weight_ih_l0, self.weight_hh_l0 = layer, layer.weight_ih_l0, layer.weight_hh_l0

    def forward(self, x: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the same as torch.nn.GRU with one layer."""
        b_ih, b_hh = (self.layer.bias_ih_l0, self.layer.bias_hh_l0) if self.layer.bias else (None, None)
        gx, h, outputs = nn.functional.linear(x, self.weight_ih_l0, b_ih), h0[0], []
        for gx_t in gx:
            (x_r, x_z, x_n), gh = gx_t.chunk(3, 1), nn.functional.linear(h, self.weight_hh_l0, b_hh)
            h_r, h_z, h_n = gh.chunk(3, 1)
            n = _Tanh.apply(x_n + _Sigmoid.apply(x_r + h_r) * h_n)
            h = _Sigmoid.apply(-x_z - h_z) * n + _Sigmoid.apply(x_z + h_z) * h
            outputs.append(h)
        return torch.stack(outputs), h.unsqueeze(0)


class _Sigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        ctx.save_for_backward(a)
        return a.sigmoid()

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return d * a.sigmoid() * (-a).sigmoid()


class _Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        ctx.save_for_backward(a)
        return a.tanh()

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return d / a.cosh().square()


def layer_of(provider: str, given: Problem, dtype: torch.dtype) -> nn.Module:
    """A provider's layer with the numbers of a problem."""
    layer = nn.GRU(I, H, bias=given.layer.bias) if provider == "torch" else GRU(I, H, bias=given.layer.bias)
    layer.load_state_dict(given.layer.state_dict())
    if provider != "torch":
        layer.backend = provider
    return layer.to(dtype)


def rms_error(got: Tensor, want: Tensor) -> float:
    """RMS(got - want) / RMS(want), infinite for a NaN."""
    difference, scale = (got.double() - want).square().mean().sqrt(), want.square().mean().sqrt()
    error = float(difference / scale) if scale else float(difference)
    return error if error == error else float("inf")


def errors(case: str, dtype: torch.dtype, T: int) -> Iterator[tuple[str, str, float]]:
    """Yields provider, quantity and error."""
    given = problem(case, dtype, T)
    want = results(Exact(given.layer) if case in ("open", "large") else given.layer, given, torch.float64)
    for provider in PROVIDERS:
        got = results(layer_of(provider, given, dtype), given, dtype)
        for quantity, value in got.items():
            yield provider, quantity, rms_error(value, want[quantity])


def contained(value: float, dtype: torch.dtype) -> Iterator[tuple[str, str, float]]:
    """Yields provider, quantity, and how many numbers in other rows a number in row 0 changes."""
    given = problem("plain", dtype, 20)
    x = given.x.clone()
    x[5, 0, 3] = value
    for provider in PROVIDERS:
        layer = layer_of(provider, given, dtype)
        clean, got = results(layer, given, dtype), results(layer, given._replace(x=x), dtype)
        for quantity in ("y", "dx", "dh0"):
            yield provider, quantity, float((clean[quantity][:, 1:] != got[quantity][:, 1:]).sum())


def main() -> None:
    """Measures everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--longest", type=int, default=LENGTHS[-1], help="the longest T of the plain case")
    parser.add_argument("--out", type=Path, required=True, help="a folder; accuracy/cpu.csv is written there")
    given = parser.parse_args()
    under = environment("cpu") | on_cpu("cpu")
    with new_file(given.out / "accuracy" / "cpu.csv", COLUMNS) as write:

        def add(found: Iterator[tuple[str, str, float]], case: str, dtype: str, T: int, what: str) -> None:
            for provider, quantity, error in found:
                row = {"provider": provider, "case": case, "dtype": dtype, "T": T, "quantity": quantity}
                write({**row, "error": error, "what": what, **under})
                print(provider, case, dtype, T, quantity, f"{error:.2e}", flush=True)

        for name, dtype in DTYPES.items():
            for T in (T for T in LENGTHS if given.longest >= T):
                add(errors("plain", dtype, T), "plain", name, T, "RMS error")
            for case in CASES:
                add(errors(case, dtype, 100), case, name, 100, "RMS error")
            for case in ("nan", "inf"):
                add(contained(float(case), dtype), case, name, 20, "numbers of other rows changed")


if __name__ == "__main__":
    main()
