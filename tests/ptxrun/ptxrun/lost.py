"""Runs launches in which a store, a count or a program is lost, and prints the results as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import NamedTuple
from unittest.mock import patch

import contract
import torch
from contract import Case

from grucore.kernels.triton import launch, layer

from .cases import Run
from .device import Device
from .layer import Layer
from .machine import Fault, Settings

FIRST = "mov.u32 who, %ctaid.x;\nsetp.{}.s32 {}, who, 0;\n"  # of the launch's programs
POLLS = 8000


class Ended(NamedTuple):
    """The result of a launch."""

    fault: str  # that the executor found
    is_reported: bool  # to the host
    is_nan: bool  # every row of the first tile
    others_are_right: bool  # every row of the second is finite


def stores(ptx: str) -> str:
    """Without those of the first program."""
    pattern = r"\.reg \.pred wanted;([^}]*?)setp\.ne\.s32 wanted, [^;]*;"
    lost = FIRST.format("ne", "wanted")
    return re.sub(pattern, lambda found: f".reg .pred wanted; .reg .b32 who;{found[1]}{lost}", ptx)


def program(ptx: str) -> str:
    """Without the first program, which returns at once."""
    lost = FIRST.format("eq", "lost")
    return ptx.replace("\n{", f"\n{{\n{{ .reg .pred lost; .reg .b32 who;\n{lost}@lost ret;\n}}\n", 1)


def counts(ptx: str) -> str:
    """Without any."""
    return re.sub(r"@%p\d+ atom.*;", "", ptx)


def ended(exchange: str, lose: Callable[[str], str]) -> Ended:
    """Runs a layer forward, two tiles of rows in three steps."""
    run = Run("bf16", Case(3, 32, 3, 160), exchange=exchange)
    device = Device(90, Settings(7), edit=lambda name, ptx: lose(ptx) if name == "_gru_forward_kernel" else ptx)
    computed, call = Layer(run, device), contract.draw(run.case, torch.bfloat16)
    changes = {"plan": computed.plan, "device": lambda of: computed.hardware, "PATIENCE": POLLS - 3 * 256}
    h_n, fault = torch.zeros(1, 32, 160), ""
    with patch.multiple(launch, **changes), device:
        try:
            _, h_n = layer.gru_forward(call.x, call.state, call.weights, call.steps, call.form)
        except Fault as error:
            fault = str(error)
    failed = launch.failed_on(call.x.device)
    is_reported = bool(failed.item())
    failed.zero_()
    return Ended(fault, is_reported, bool(h_n[0, :16].isnan().any(1).all()), bool(h_n[0, 16:].isfinite().all()))


if __name__ == "__main__":
    lost = {"nothing": ("data", str), "stores": ("data", stores), "a program": ("data", program)}
    lost["counts"] = ("counter", counts)
    print(json.dumps({name: ended(*each)._asdict() for name, each in lost.items()}))
