"""Every plan of the fused kernels, compiled ahead of time (in processes where Triton does not interpret)."""

import json
import os
import subprocess
import sys

import pytest
from grucore.kernels import plan

from benchmarks import compile_report

ROOT = compile_report.BUDGET.parent.parent


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_every_plan_is_within_its_budget(arch, tmp_path):
    """No spills, shared memory as the table says, and on sm_90 the loop's instructions within the committed budget."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.compile_report", "--arch", str(arch), "--json", str(tmp_path / "rows")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "rows").read_text())
    chosen = [row for row in plan.TABLE if row["shared_bytes"] <= compile_report.SHARED_MEMORY[arch]]
    chosen = [row for row in chosen if row["capability"] <= arch]
    assert {(row["kernel"], row["H"]) for row in rows} == {(row["recurrence"], row["max_hidden"]) for row in chosen}


def test_faults_are_found():
    """A kernel that spills, takes more memory or has a longer loop does not pass."""
    row = {"shared_bytes": 100}
    good = {"kernel": "forward", "arch": 90, "dtype": "bf16", "H": 64, "flags": False}
    good |= {"spill_bytes": 0, "shared_bytes": 100, "loop_instructions": 10}
    budget = {"forward bf16 H=64": 10}
    assert compile_report.faults(good, row, budget) == []
    for wrong in ({"spill_bytes": 8}, {"shared_bytes": 101}, {"loop_instructions": 11}, {"H": 32}):
        assert len(compile_report.faults(good | wrong, row, budget)) == 1


def test_lengths_cost_at_most_a_third_of_a_step():
    budget = json.loads(compile_report.BUDGET.read_text())
    for name, instructions in budget.items():
        if name.endswith("flags"):
            assert instructions <= 1.3 * budget[name.removesuffix(" flags")]


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


@pytest.mark.parametrize(
    "kind, hidden_size, block_k, block_j",
    [("half", 1, 16, 0), ("half", 65, 128, 0), ("ieee", 33, 64, 0), ("half", 129, 256, 64)],
)
def test_plan_is_the_smallest_that_fits(kind, hidden_size, block_k, block_j):
    chosen = plan.plan("forward", hidden_size, kind, 232_448, 90)
    assert (chosen.block_k, chosen.block_j) == (block_k, block_j)


def test_no_plan_says_what_is_the_largest():
    assert plan.largest_hidden_size("ieee", 232_448, 90) == 64
    assert plan.largest_hidden_size("half", 166_912, 80) == 128
    assert plan.largest_hidden_size("half", 101_376, 89) == 64
    with pytest.raises(ValueError, match=r"no plan for 1025 hidden units in half .*; the largest is 1024"):
        plan.plan("backward", 1025, "half", 232_448, 90)
