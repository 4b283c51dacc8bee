"""Executes a layer's launcher, compiled code and exchange together, and compares with an oracle in float64."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest.mock import patch

import contract
import oracle
import torch
from contract import Call, Implementation
from torch import Tensor

from benchmarks.tuning.compile_report import DEVICES
from grucore.kernels import Gradients
from grucore.kernels.triton import launch, layer, plan, step

from .cases import Run
from .device import Device
from .machine import Fault, Settings

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "fp32": torch.float32}
LIMITS = {
    **dict.fromkeys(("bf16", "fp16", "fp32"), oracle.FUSED_LIMITS),
    "tf32": {torch.float32: oracle.FUSED_LIMITS[torch.float16]},  # which has as many bits
}


class Outcome(NamedTuple):
    """The result of a run."""

    wrong: str  # "" where nothing was
    rows: list[int]  # of plans.json
    launches: dict[str, int]  # of each kernel
    instructions: int  # of all warps
    worst: dict[str, float]  # errors, by quantity


PLAN = plan.plan


def row_plan(row: dict[str, Any]) -> plan.Plan:
    return plan.Plan(*(row[name] for name in plan.Plan._fields))


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


class Layer:
    """Executes a run's calls, launched as the run says."""

    def __init__(self, run: Run, device: Device):
        self.run, self.device = run, device
        self.rows: set[int] = set()
        self.hardware = DEVICES[run.arch]
        if run.processors:
            self.hardware = self.hardware._replace(processors=run.processors)

    def plan(self, recurrence: str, *arguments: Any) -> plan.Plan:
        """The plan of the table, noted, with what the run changes."""
        chosen, kind = PLAN(recurrence, *arguments), arguments[3]
        for number, row in enumerate(plan.TABLE):
            if (row["recurrence"], row["kind"]) == (recurrence, kind) and chosen == row_plan(row):
                self.rows.add(number)
        if self.run.exchange and chosen.exchange:
            chosen = chosen._replace(exchange=self.run.exchange)
        if self.run.block_b and recurrence == "backward":
            chosen = chosen._replace(block_b=self.run.block_b)
        return chosen._replace(stages=self.run.stages) if self.run.stages else chosen

    def __call__(self, call: Call) -> tuple[Tensor, Tensor, Gradients]:
        """y, h_n and the gradients."""
        form = call.form._replace(precision="tf32" if self.run.dtype == "tf32" else "ieee")
        values = (call.state, call.weights, call.steps, form)
        inputs = [t for t in (call.x, call.dy, call.dh_n, *call.state, *call.weights) if t is not None]
        before = [t.clone() for t in inputs]
        changes: dict[str, Any] = {"plan": self.plan, "device": lambda of: self.hardware}
        chunk = {"chunk_steps": lambda *_: self.run.chunk} if self.run.chunk else {}
        with patch.multiple(launch, **changes, **chunk), patch.multiple(step, **changes), self.device:
            y, h_n = layer.gru_forward(call.x, *values, *call.noise)
            gradients = layer.gru_backward(call.dy, call.dh_n, y, call.x, *values, call.need_dx, *call.noise)
        assert all(map(same_bits, before, inputs)), "an input was written to"
        return y, h_n, gradients


def check_filling(computed: Callable[[Call], tuple[Tensor, Tensor, Gradients]], run: Run) -> None:
    """Rows that contain NaN with the bits of an empty slot stay NaN, and do not change other rows."""
    dtype = DTYPES[run.dtype]
    call = contract.draw(run.case, dtype)
    real = call.steps.real.clone()
    real[:, 1], real[:, 2] = False, True
    call = call._replace(steps=call.steps._replace(real=real), x=call.x.nan_to_num(), dy=call.dy.nan_to_num())
    filling = torch.full((1,), -1, dtype={2: torch.int16, 4: torch.int32}[dtype.itemsize]).view(dtype)
    x, h0 = call.x.clone(), call.state.h0.clone()
    h0[:, 1] = filling  # held throughout
    x[len(x) // 2, 2] = filling
    others = [b for b in range(run.case.B) if b not in (1, 2)]
    y, h_n, gradients = computed(call._replace(x=x, state=call.state._replace(h0=h0)))
    y_want, h_n_want, wants = computed(call)
    assert h_n[:, 1].isnan().all() and not y[:, 1].any() and y[-1, 2, : run.case.H].isnan().all()
    for got, want in ((y, y_want), (h_n, h_n_want), (gradients.x, wants.x), (gradients.h0, wants.h0)):
        assert same_bits(got[:, others], want[:, others]), "a NaN came into another row"


def execute(run: Run, seed: int, edit: Callable[[str, str], str] | None = None, **settings: Any) -> Outcome:
    """Runs a layer forward and backward in the interleavings of a seed."""
    torch.manual_seed(seed)
    oracle.worst.clear()
    settings = {"exact": run.filling, **settings}  # where two calls are to give the same bits
    device = Device(run.arch, Settings(seed, **settings), **({"edit": edit} if edit else {}))
    computed, wrong = Layer(run, device), ""
    try:
        if run.filling:
            check_filling(computed, run)
        else:
            dtype = DTYPES[run.dtype]
            contract.check(Implementation(computed, (dtype,), LIMITS[run.dtype]), run.case, dtype)
    except (Fault, AssertionError) as error:
        wrong = str(error) or type(error).__name__
    worst: dict[str, float] = {}
    for name, (error, _) in oracle.worst.items():
        quantity = name.split()[-1]
        worst[quantity] = max(worst.get(quantity, 0.0), error)
    counts = Counter(one.kernel for one in device.launches)
    return Outcome(wrong, sorted(computed.rows), counts, sum(one.instructions for one in device.launches), worst)
