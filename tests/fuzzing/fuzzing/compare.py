"""Runs a program with torch.nn.GRU and with ours, statement by statement, and reports where they differ."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import differences
from .programs import PREAMBLE, namespace

# Of the largest number of a tensor, by the coarsest dtype that the program names; tests/properties looks closer.
TOLERANCES = {"bfloat16": 8e-2, "half": 2e-2, "float32": 2e-4, "float64": 1e-9}


SEEDED = torch.Generator().manual_seed(0).get_state()


class Outcome(NamedTuple):
    """The result of a statement."""

    value: Any = None
    error: Exception | None = None


class Failure(NamedTuple):
    """The statement where a program gives another result with ours."""

    statement: int
    what: str

    @property
    def kind(self) -> str:
        """The kind of failure, which stays the same while the program is reduced."""
        return self.what.split(":")[0]


def run(statement: str, names: dict[str, Any]) -> Outcome:
    """Runs one statement; each side has its own random generator."""
    names["out"] = None
    torch.set_rng_state(names.get("_state", SEEDED))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            exec(statement, names)
        except Exception as error:
            error.__traceback__ = None
            return Outcome(error=error)
        finally:
            names["_state"] = torch.get_rng_state()
    return Outcome(names["out"])


def differ(theirs: Any, ours: Any, tolerance: float, where: str = "out") -> str | None:
    """The difference between two values, or None."""
    if isinstance(theirs, PackedSequence) and isinstance(ours, PackedSequence):
        return differ(tuple(theirs), tuple(ours), tolerance, where)
    if isinstance(theirs, Tensor) and isinstance(ours, Tensor):
        return _differ_in(theirs, ours, tolerance, where)
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        return differ(list(theirs.items()), list(ours.items()), tolerance, where)
    if isinstance(ours, str):
        ours = re.sub(r", backend='\w+'", "", ours)  # of a representation
    if isinstance(theirs, (list, tuple)) and isinstance(ours, (list, tuple)):
        if len(theirs) != len(ours):
            return f"{where}: {len(theirs)} values, and ours {len(ours)}"
        pairs = enumerate(zip(theirs, ours, strict=True))
        parts = (differ(a, b, tolerance, f"{where}[{i}]") for i, (a, b) in pairs)
        return next((part for part in parts if part), None)
    return None if type(theirs) is type(ours) and theirs == ours else f"{where}: {theirs!r}, and ours {ours!r}"


def _differ_in(theirs: Tensor, ours: Tensor, tolerance: float, where: str) -> str | None:
    for name in ("shape", "dtype", "device", "requires_grad", "layout"):
        a, b = getattr(theirs, name), getattr(ours, name)
        if a != b:
            return f"{where}.{name}: {a}, and ours {b}"
    if theirs.is_meta or not theirs.numel():
        return None
    a, b = theirs.detach(), ours.detach()
    if not (a.is_floating_point() or a.is_complex()):
        return None if torch.equal(a, b) else f"{where}: other numbers"
    tolerance *= max(1e-2, float(a.abs().nan_to_num(0, 0, 0).max()))
    near = torch.isclose(a, b, rtol=0, atol=tolerance, equal_nan=True)
    return None if near.all() else f"{where}: other numbers, by {float((a - b).abs().max()):.1e}"


def failure(program: list[str], backend: str) -> Failure | None:
    """The first statement that gives another result with ours, unless it is one of `differences`."""
    theirs, ours = namespace(False, backend), namespace(True, backend)
    text = "\n".join(program).replace(".float()", "float32")
    dtypes = [name for name in TOLERANCES if name in text] + ["float32"] * ("dtype=" not in program[0])
    tolerance = max(TOLERANCES[name] for name in dtypes)
    for i, statement in enumerate(program):
        want, got = run(statement, theirs), run(statement, ours)
        if what := _compared(want, got, tolerance):
            if differences.known(statement, want, got, what):
                return None  # later statements depend on it
            return Failure(i, what)
        if want.error is not None and "backward" in statement:
            return None  # which gradients exist before an error depends on the order
    return None


def _compared(want: Outcome, got: Outcome, tolerance: float) -> str | None:
    if want.error is None and got.error is None:
        return differ(want.value, got.value, tolerance)
    if want.error is None:
        return f"only ours raises {type(got.error).__name__}: {got.error}"
    if got.error is None:
        return f"only torch.nn raises {type(want.error).__name__}: {want.error}"
    if isinstance(got.error, type(want.error)):
        return None
    return f"ours raises {type(got.error).__name__}, torch.nn {type(want.error).__name__}: {got.error} | {want.error}"


def smaller(program: list[str], found: Failure, backend: str) -> tuple[list[str], Failure]:
    """Reduces a program to as few statements as the failure needs."""
    program, i = program[: found.statement + 1], 0
    while i < len(program) - 1:
        shorter = program[:i] + program[i + 1 :]
        again = failure(shorter, backend)
        if again is not None and again.kind == found.kind and again.statement == len(shorter) - 1:
            program, found = shorter, again
        else:
            i += 1
    return program, found


def snippet(program: list[str], found: Failure, backend: str) -> str:
    """The failure as a script."""
    layer = f"partial(grucore.GRU, backend={backend!r})" if backend != "auto" else "grucore.GRU"
    head = f"{PREAMBLE}\nfrom functools import partial\nfrom fuzzing.theirs import GRU\nimport grucore\n"
    head += f"\n# and then: GRU = {layer}"
    return "\n".join([head, *program, "print(out)", f"# {found.what}"])
