"""Compiled kernels in which stores, counts or a program are lost: the launch ends, and the host hears of it."""

import json

import pytest
from ptxrun.child import UNAVAILABLE, run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(UNAVAILABLE is not None, reason=UNAVAILABLE or "")]

SCRIPT = """
import json, re
from unittest.mock import patch
import contract, torch
from contract import Case
from ptxrun.cases import Run
from ptxrun.device import Device
from ptxrun.layer import Layer
from ptxrun.machine import Fault, Settings
from grucore.kernels.triton import launch, layer

FIRST = "mov.u32 who, %ctaid.x;\\nsetp.{}.s32 {}, who, 0;\\n"
def stores(ptx):  # of the first program
    return re.sub(r"\\.reg \\.pred wanted;([^}]*?)setp\\.ne\\.s32 wanted, [^;]*;",
                  lambda found: ".reg .pred wanted; .reg .b32 who;" + found[1] + FIRST.format("ne", "wanted"), ptx)
def program(ptx):  # the first
    return ptx.replace("\\n{", "\\n{\\n{ .reg .pred lost; .reg .b32 who;\\n" + FIRST.format("eq", "lost") + "@lost ret;\\n}\\n", 1)
def counts(ptx):
    return re.sub(r"@%p\\d+ atom.*;", "", ptx)

def ends(exchange, lose):
    case = Run("bf16", Case(3, 32, 3, 160), exchange=exchange)
    device = Device(90, Settings(7), edit=lambda name, ptx: lose(ptx) if name == "_gru_forward_kernel" else ptx)
    computed, call, said = Layer(case, device), contract.draw(case.case, torch.bfloat16), ""
    changes = {"plan": computed.plan, "device": lambda of: computed.hardware, "PATIENCE": 50 - 3 * 256}
    h_n = torch.zeros(1, 32, 160)
    with patch.multiple(launch, **changes), device:
        try:
            _, h_n = layer.gru_forward(call.x, call.state, call.weights, call.steps, call.form)
        except Fault as error:
            said = str(error)
    failed = bool(launch.failed_on(call.x.device).item())
    launch.failed_on(call.x.device).zero_()
    return [said, failed, h_n[0, :16].isnan().any(1).all().item(), h_n[0, 16:].isfinite().all().item()]

print(json.dumps([ends("data", stores), ends("data", program), ends("counter", counts), ends("data", str)]))
"""


def test_a_launch_ends_whatever_is_lost():
    """Rows of the group concerned are NaN, the others right. What a count would have ordered is a race then."""
    result = run("-c", SCRIPT)
    assert result.returncode == 0, result.stderr
    lost_stores, lost_program, lost_counts, nothing = json.loads(result.stdout)
    assert lost_stores == lost_program == ["", True, True, True]
    assert nothing == ["", False, False, True]
    said, failed, *_ = lost_counts
    assert failed and "race" in said and "deadlock" not in said
