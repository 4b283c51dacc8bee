"""How exact results in some dtype can be: what changes where inputs are rounded in it once more.

Where terms cancel, or a gate gets large arguments, no arithmetic of that dtype is more exact. Layer normalisation
subtracts from a gradient its part along two directions. Where little remains, as of the three values of one unit or of
the products with one feature, it is rounding of the gradients themselves, and not of any input: there products and what
they become are rounded too, forward and backward.

Where the terms of a sum cancel, rounding of the inputs may show less than the arithmetic loses. `tolerances_everywhere`
rounds the result of every operation, which takes long: it is for what exceeds the other tolerances.
"""

from dataclasses import replace
from unittest import mock

import torch
from oracle import LIMITS, quantity
from torch.nn.functional import layer_norm
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map_only

from grucore.kernels import regularised

ROUNDINGS = 4.0  # how many are allowed; in the short profile at most 0.4 of the allowance was used, see its summary
COMPUTED_IN = {torch.bfloat16: torch.float32, torch.float16: torch.float32}


class Rounding:
    """Rounds numbers of float64 at random, as arithmetic of another dtype does; not at all while it is off."""

    def __init__(self, dtype):
        self.epsilon, self.numbers, self.is_on = torch.finfo(dtype).eps, torch.Generator().manual_seed(1), False

    def __call__(self, t):
        if t is None or not self.is_on:
            return t
        return t * (1 + self.epsilon * (torch.rand(t.shape, generator=self.numbers, dtype=torch.float64) - 0.5))

    def both_ways(self, t):
        """The rounded tensor, whose gradient is rounded too."""
        t = self(t)
        if t.requires_grad:
            t.register_hook(self)
        return t

    def layer_norm(self, v, shape, gain):
        return self.both_ways(layer_norm(self.both_ways(v), shape, gain))


class Everywhere(TorchDispatchMode):
    """Rounds what every operation computes, forward and backward."""

    def __init__(self, rounded):
        super().__init__()
        self.rounded = rounded

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **kwargs or {})
        if any(each.alias_info is not None for each in function._schema.returns):  # a view, or in place
            return results
        with _disable_current_modes():
            return tree_map_only(torch.Tensor, lambda t: self.rounded(t) if t.dtype == torch.float64 else t, results)


def rms(t):
    return float(t.double().square().mean().sqrt()) if t.numel() else 0.0


def kind(name):
    return {"y": "output", "h_n": "output", "dx": "dx"}.get(name) or (
        "dh0" if name in ("dh0", "dh_reset", "initial_state") else quantity(name)
    )


def tolerances(problem, layer, want=None):
    """The error (RMS) that each result of `Problem.run` may have: its limit in `oracle.py`, and that of rounding.

    `want` has what is known of the results in float64.
    """
    return _tolerances(problem, layer, want, samples=3, roundings=ROUNDINGS, everywhere=False)


def tolerances_everywhere(problem, layer, want=None):
    """The same, with every operation rounded."""
    return _tolerances(problem, layer, want, samples=8, roundings=1.0, everywhere=True)


def _tolerances(problem, layer, want, samples, roundings, everywhere):
    case, allowed = problem.case, {}
    same, rounded = problem.in_float64(), Rounding(case.dtype)
    there = same.layer("auto" if case.is_regularised else "reference")
    inside = Everywhere(rounded) if everywhere else mock.patch.object(regularised, "layer_norm", rounded.layer_norm)

    def by_steps(*arguments, **flags):
        return there.trace(*arguments, **flags)[:2]

    by_steps.named_parameters = there.named_parameters
    base, changes = {}, {}
    for i in range(samples + 1):
        rounded.is_on = i > 0
        with torch.no_grad():
            for p, original in zip(there.parameters(), layer.parameters(), strict=True):
                p.copy_(rounded(original.double()))
        names = ("x", "hx", "reset_state", "dy", "dh_n")
        with inside:
            results = replace(same, **{name: rounded(getattr(same, name)) for name in names}).run(by_steps)
        base = base or results
        for name, value in results.items():
            changes[name] = max(changes.get(name, 0.0), rms(value - base[name]))
    floor = torch.finfo(COMPUTED_IN.get(case.dtype, case.dtype)).eps
    if layer.backend not in ("eager", "native"):  # h - n times a gate's 1 - z, which is a difference there
        floor *= max(1, case.magnitude)
    for name, change in changes.items():
        scale, least = rms((want or base).get(name, base[name])), floor * (case.magnitude if "weight" in name else 1)
        allowed[name] = LIMITS[case.dtype][kind(name)] * scale + roundings * change + least
    return allowed
