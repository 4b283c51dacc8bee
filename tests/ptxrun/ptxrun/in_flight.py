"""Products that a loop leaves unfinished while it overwrites their operands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from contract import draw
from triton.compiler.compiler import CompiledKernel

from .cases import Run
from .device import Device
from .layer import DTYPES, Layer
from .ptx import Instruction, Kernel, parse


def factor_in_registers(instruction: Instruction) -> bool:
    """Whether it is a wgmma whose left factor is in registers, which stay its own until it is waited for."""
    shape = re.match(r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k", instruction.name)
    return bool(shape) and len(instruction.operands) == int(shape[1]) // 2 + 9


def overwritten_factors(kernel: Kernel) -> Iterator[str]:
    """The loops whose next round may write the registers of a wgmma that was not waited for.

    Triton leaves such loops where it takes operands ahead of time (triton-lang/triton#9433).
    """
    for number, branch in enumerate(kernel.code):
        if not 0 <= branch.target <= number:
            continue
        in_flight = None
        for instruction in kernel.code[branch.target : number]:
            if factor_in_registers(instruction):
                in_flight = instruction
            elif instruction.name.startswith("wgmma.wait_group") and instruction.operands[0][1] == 0:
                in_flight = None
        if in_flight:
            yield f"a loop leaves a wgmma with a factor in registers in flight: {in_flight.text}"


class Compiler(Device):
    """Compiles what is launched, and runs nothing."""

    wrong: list[str]

    def launch(self, kernel: CompiledKernel, *arguments: Any) -> None:
        """Notes what is wrong with the kernel."""
        self.wrong += [f"{kernel.name}: {found}" for found in overwritten_factors(parse(kernel.asm["ptx"]))]


def refused(run: Run) -> str:
    """What is wrong with the kernels that a layer launches, a line each."""
    compiler = Compiler(run.arch)
    compiler.wrong = []
    Layer(run, compiler)(draw(run.case, DTYPES[run.dtype]))
    return "\n".join(dict.fromkeys(compiler.wrong))
