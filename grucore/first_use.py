"""Checks a fused kernel on its first use, on GPU generations for which there are no measurements yet.

Once per process, device and launch plan, a tiny layer runs with the same plan, backward too if gradients are wanted,
and is compared with the equations in float32. It uses the kernels that the call compiles anyway, and waits for the
device once. backend="triton" skips the check.
"""

import functools
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grucore import compat
from grucore.kernels import Form, State, Steps, Weights, regularised
from grucore.kernels.regularised import Variant
from grucore.kernels.triton import plan

MEASURED: frozenset[int] = frozenset({90})  # capabilities (90 for 9.0) whose measured rows are in benchmarks/results
# RMS errors far above those of rounding (5e-3, 7e-4, 8e-4, 5e-7) and far below those of a wrong kernel.
LIMITS = {"bfloat16": 5e-2, "float16": 1e-2, "tf32": 1e-2, "ieee": 1e-4}


class Case(NamedTuple):
    """The properties that a launch is compiled for."""

    device: torch.device
    dtype: torch.dtype
    precision: str
    batch: int  # of the tiny layer
    hidden_size: int
    directions: int  # times heads
    is_step: bool  # T = D = 1, which has a kernel of its own
    has_steps: bool
    wants_gradient: bool
    plans: tuple[plan.Plan, ...]
    heads: int = 1
    regularised: tuple[str, ...] = ()  # recurrent_dropout, zoneout
    training: bool = False

    @property
    def variant(self) -> tuple[Variant, Tensor | None] | tuple[()]:
        """The options and the seed of their masks, as the kernels take them."""
        if not self.regularised:
            return ()
        seed = torch.tensor(7, device=self.device) if self.training else None
        return Variant(**dict.fromkeys(self.regularised, 0.3), training=self.training), seed  # type: ignore[arg-type]


def obstacle(
    device: torch.device, dtype: torch.dtype, form: Form, hidden_size: int, batch: int, directions: int, **flags: Any
) -> str | None:
    """Why calls like this one should avoid the fused kernels, or None.

    Nothing is checked where the check itself would be recorded: under torch.compile, in dispatch modes and while a CUDA
    graph is captured.
    """
    if device.type != "cuda" or torch.compiler.is_compiling() or compat.in_dispatch_mode():
        return None
    limits = plan.device(device)
    if limits.capability in MEASURED or torch.cuda.is_current_stream_capturing():
        return None
    kind = plan.kind(dtype, form.precision)
    names = ["step" if flags["is_step"] else "forward"] + ["backward"] * flags["wants_gradient"]
    plans = tuple(plan.plan(name, batch, hidden_size, directions, kind, limits) for name in names)
    sizes = rows_like(batch, plans[0].block_b), hidden_size, directions
    return checked(Case(device, dtype, form.precision, *sizes, plans=plans, heads=form.heads, **flags))


def rows_like(batch: int, block_b: int) -> int:
    """The rows of a tiny batch that has the plans of `batch` rows: two tiles, if that many have these plans."""
    limits = {row["max_batch"] for row in plan.TABLE} - {None}
    least = max((most for most in limits if most < batch), default=0) + 1
    return min(max(least, block_b + 1), *(most for most in limits if most >= batch), 2**31)


@functools.cache
def checked(case: Case) -> str | None:
    """`difference`, computed once per case; warns and asks for a report if there is one."""
    said = difference(case)
    if said is not None:
        warnings.warn(
            f"the fused kernels give wrong results on this GPU, so backend='auto' does not use them: {said}. "
            f"Please report it with {case}",
            RuntimeWarning,
            stacklevel=2,
        )
    return said


def difference(case: Case) -> str | None:
    """How the kernels differ from the equations in a tiny case, or None."""
    kind = plan.kind(case.dtype, case.precision)
    limit = LIMITS[str(case.dtype).removeprefix("torch.") if kind == "half" else kind]
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(case.device.type, enabled=False):
        try:
            errors = _errors(case)
        except torch.OutOfMemoryError:  # says nothing of the kernels
            raise
        except Exception as error:  # whatever it is, the call can go on without these kernels
            return f"{type(error).__name__}: {error}"
    wrong = [f"{name} by {error:.1e}" for name, error in errors.items() if not error <= limit]
    return f"errors of {', '.join(wrong)} (at most {limit:.0e})" if wrong else None


def _errors(case: Case) -> dict[str, float]:
    """RMS errors relative to the results' own, by name."""
    from grucore.kernels.triton import layer  # which imports Triton

    T, B, I = 1 if case.is_step else 3, case.batch, 8  # noqa: E741
    H, D = case.hidden_size, case.directions
    generator = torch.Generator("cpu").manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cpu").to(case.device, case.dtype)

    real = torch.arange(T, device=case.device)[:, None] >= torch.arange(B, device=case.device) % 2
    steps = Steps(real) if case.has_steps else Steps()
    x, h0, dy, dh_n = drawn(T, B, I), drawn(D, B, H), drawn(T, B, D * H), drawn(D, B, H)
    scale = (1 / H) ** 0.5
    weights = Weights(drawn(D, 3 * H, I), drawn(D, 3 * H, H) * scale, drawn(D, 3 * H), drawn(D, 3 * H))
    form = Form(precision=case.precision, heads=case.heads)
    y, h_n = layer.gru_forward(x, State(h0), weights, steps, form, *case.variant)
    got: dict[str, Any] = {"y": y, "h_n": h_n}

    leaves = [t.to(torch.float32, copy=True).requires_grad_() for t in (x, h0, *weights)]  # type: ignore[union-attr]
    with torch.enable_grad():
        noise = case.variant or (Variant(), None)
        exact = State(leaves[1]), Weights(*leaves[2:]), None, steps, form, *noise
        y_want, h_n_want, _ = regularised.gru_layer(leaves[0], *exact)
        want: dict[str, Any] = {"y": y_want, "h_n": h_n_want}
        if case.wants_gradient:
            made = layer.gru_backward(dy, dh_n, y, x, State(h0), weights, steps, form, True, *case.variant)
            names = ("x", "h0", "w_ih", "w_hh", "b_ih", "b_hh")
            got |= {f"d{name}": getattr(made, name) for name in names}
            ends, d_ends = (y_want, h_n_want), (dy.float(), dh_n.float())
            want |= {f"d{name}": g for name, g in zip(names, torch.autograd.grad(ends, leaves, d_ends), strict=True)}
    errors = [(got[name].float() - want[name]).norm() / want[name].norm() for name in want]
    return dict(zip(want, torch.stack(errors).tolist(), strict=True))
