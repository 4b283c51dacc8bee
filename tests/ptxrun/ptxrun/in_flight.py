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
    """Whether it is a wgmma with its left factor in registers, which must not change until it is awaited."""
    shape = re.match(r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k", instruction.name)
    return bool(shape) and len(instruction.operands) == int(shape[1]) // 2 + 9


def overwritten_factors(kernel: Kernel) -> Iterator[str]:
    """The loops whose next iteration may write the registers of a wgmma that was not awaited.

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
    """Compiles launched kernels without running them."""

    wrong: list[str]

    def launch(self, kernel: CompiledKernel, *arguments: Any) -> None:
        """Records the kernel's errors."""
        self.wrong += [f"{kernel.name}: {found}" for found in overwritten_factors(parse(kernel.asm["ptx"]))]


def refused(run: Run) -> str:
    """The errors of the kernels that a layer launches, one per line."""
    compiler = Compiler(run.arch)
    compiler.wrong = []
    Layer(run, compiler)(draw(run.case, DTYPES[run.dtype]))
    return "\n".join(dict.fromkeys(compiler.wrong))
