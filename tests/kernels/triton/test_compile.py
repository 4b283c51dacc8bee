"""Every plan of the fused kernels, compiled ahead of time (in processes where Triton does not interpret)."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.tuning import compile_report
from grucore.kernels.triton import plan

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[2]


def run_without_interpreter(*arguments):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command, environment = [sys.executable, *map(str, arguments)], environment | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arch", [pytest.param(80, marks=pytest.mark.exhaustive), 90, pytest.param(100, marks=pytest.mark.exhaustive)]
)
def test_every_plan_is_within_its_budget(arch):
    """No spills, shared memory as the table says, and on sm_90 the loop within the budget, with the Triton it names.

    Every twentieth row, unless something has changed since all of them passed.
    """
    result = run_without_interpreter("-m", "benchmarks.tuning.compile_report", "--arch", arch, "--changed")
    assert result.returncode == 0, result.stdout + result.stderr


def test_plans_cover_every_size():
    covered = {(row["recurrence"], row["kind"], row["max_hidden"] or compile_report.LARGE) for row in plan.TABLE}
    for recurrence, hidden_size in itertools.product(("forward", "backward"), (16, 128, 512, 2048)):
        assert (recurrence, "half", hidden_size) in covered, (recurrence, hidden_size)


def test_all_rows_are_compiled_after_a_change(monkeypatch):
    """The digest is of what is there; CONTRIBUTING says how to record a new one."""
    before = compile_report.sources()
    assert set(json.loads(compile_report.PASSED.read_text())) == {"80", "90", "100"}
    monkeypatch.setattr(compile_report.triton, "__version__", "0.0")
    assert compile_report.sources() != before


@pytest.mark.slow
@pytest.mark.parametrize(
    "hidden_size",
    [pytest.param(64, marks=pytest.mark.exhaustive), 256, pytest.param(1100, marks=pytest.mark.exhaustive)],
    ids=["whole", "split", "streamed"],
)
def test_nothing_is_compiled_again_for_another_batch_or_length(hidden_size):
    """Over 20 random sizes."""
    result = run_without_interpreter(FOLDER / "count_variants.py", hidden_size, 20)
    assert result.returncode == 0, result.stderr
    first, last = json.loads(result.stdout)
    assert first == last == dict.fromkeys(last, 1) and len(last) == 5


def test_faults_are_found():
    """A kernel that spills, takes more memory, or has asynchronous products or a longer loop does not pass."""
    row = {"shared_bytes": 100}
    good = {"kernel": "forward", "arch": 90, "dtype": "bf16", "H": 64, "max_batch": None, "flags": False}
    good |= {"triton": "3.7.1", "noise": ""}
    good |= {"spill_bytes": 0, "shared_bytes": 100, "asynchronous_products": 0, "loop_instructions": 10}
    good |= {"conflicting_operands": 0}
    budget = {"triton": "3.7.1", "loop_instructions": {"forward bf16 H=64": 10}}
    assert compile_report.faults(good, row, budget) == []
    faults = [{"spill_bytes": 8}, {"shared_bytes": 101}, {"asynchronous_products": 1}, {"loop_instructions": 11}]
    faults += [{"conflicting_operands": 3}]
    for wrong in (*faults, {"H": 32}, {"max_batch": 16}, {"noise": "dropout"}):
        assert len(compile_report.faults(good | wrong, row, budget)) == 1
    other = good | {"triton": "3.9.0"}  # with other instructions, but nothing else may differ
    assert compile_report.faults(other | {"loop_instructions": 11}, row, budget) == []
    assert len(compile_report.faults(other | {"shared_bytes": 101}, row, budget)) == 1


WGMMA = """
import json
from benchmarks.tuning import compile_report
row = {"recurrence": "backward", "max_hidden": 1040, "max_batch": None, "block_b": 64, "block_j": 64, "block_k": 64}
row |= {"streamed": True, "exchange": "counter", "warps": 8, "stages": 3, "shared_bytes": 40976}
kernel = compile_report.KERNELS["backward"]
result = compile_report.compiled(kernel, "bf16", row, False, %d)
budget = {"triton": "", "loop_instructions": {}}
print(json.dumps(compile_report.faults(result, row, budget)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("arch", [90, pytest.param(100, marks=pytest.mark.exhaustive)])
def test_products_that_go_on_while_the_program_does_are_refused(arch):
    """Tiles of 64 rows, which the table once had, compile to wgmma on sm_90 and to tcgen05 on sm_100."""
    result = run_without_interpreter("-c", WGMMA % arch)
    assert result.returncode == 0, result.stderr
    (fault,) = json.loads(result.stdout)
    assert "asynchronous products" in fault


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", pytest.param("fp16", marks=pytest.mark.exhaustive), "fp32"])
def test_exchanged_data_is_stored_in_relaxed_words(dtype):
    """A weak store concurrent with another program's polling would be a data race."""
    result = run_without_interpreter(FOLDER / "exchange_ptx.py", dtype)
    assert result.returncode == 0, result.stderr
    data, counter = json.loads(result.stdout)
    assert {"st.relaxed.gpu.global.b32", "ld.volatile.global.v4.b32"} == set(data)
    assert not {"st.relaxed.gpu.global.b32", "ld.volatile.global.v4.b32"} & set(counter)


@pytest.mark.parametrize("what, most", [("flags", 1.3), ("dropout", 1.1), ("zoneout", 1.1)])
def test_options_cost_little_of_a_step(what, most):
    """In instructions: 1.26, 1.07 and 1.07 times as many at worst."""
    budget = json.loads(compile_report.BUDGET.read_text())["loop_instructions"]
    with_it = [name for name in budget if name.endswith(what)]
    assert len(with_it) >= 22
    for name in with_it:
        assert budget[name] <= most * budget[name.removesuffix(f" {what}")]


def test_conflicting_operands_are_right_ones_by_columns_without_tensor_cores():
    layouts = """
        #shared = #ttg.swizzled_shared<{vec = 1, perPhase = 1, maxPhase = 1, order = [1, 0]}>
        #shared1 = #ttg.swizzled_shared<{vec = 1, perPhase = 1, maxPhase = 1, order = [0, 1]}>
    """.replace("        ", "")
    load = "%w = ttg.local_load %0 : !ttg.memdesc<64x64xf32, #shared1, #smem> -> tensor<64x64xf32, #ttg.dot_op<"
    load += "{opIdx = 1, parent = #blocked}>>"
    others = (("#shared1", "#shared"), ("opIdx = 1", "opIdx = 0"), ("#blocked", "#mma"))
    good = [load.replace(*other) for other in others]
    assert compile_report.conflicting_operands("\n".join([layouts, *good])) == 0
    assert compile_report.conflicting_operands("\n".join([layouts, *good, load, load])) == 2


def test_loop_is_the_widest_backward_branch():
    sass = """
        /*0000*/                   MOV R1, R2 ;
        /*0010*/                   FADD R1, R1, R2 ;
        /*0020*/                   BRA 0x10 ;
        /*0030*/                   IADD3 R1, R1, R2, R3 ;
        /*0040*/              @!P0 BRA 0x10 ;
        /*0050*/                   BRA 0x60 ;
        /*0060*/                   EXIT ;
    """
    assert compile_report.loop_instructions(sass) == 4
