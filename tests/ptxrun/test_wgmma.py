"""Products that go on while the program does: a plan that leaves one in flight with its operands overwritten.

No plan of the table has any (tests/kernels/triton/test_compile.py); tiles of 64 rows, as it had once, do.
"""

import json

import pytest
from ptxrun.child import UNAVAILABLE, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.exhaustive,
    pytest.mark.skipif(UNAVAILABLE is not None, reason=UNAVAILABLE or ""),
]

SCRIPT = """
import json
from contract import Case
from ptxrun import in_flight, layer
from ptxrun.cases import Run
results = []
for stages in (3, 1):
    run = Run("bf16", Case(2, 33, 3, 256), processors=3, block_b=64, stages=stages)
    results.append([in_flight.refused(run), layer.execute(run, 0).wrong])
print(json.dumps(results))
"""


def test_a_loop_that_overwrites_operands_of_an_unfinished_product_is_refused():
    """Both by its PTX and when executed; without pipelining, neither."""
    result = run("-c", SCRIPT)
    assert result.returncode == 0, result.stderr
    (refused, wrong), waited_for = json.loads(result.stdout)
    assert "_gru_backward_kernel: a loop leaves a wgmma with a factor in registers in flight" in refused
    assert "operand of an unfinished wgmma written" in wrong
    assert waited_for == ["", ""]
