"""Faults planted in the PTX of the project's kernels, one at a time: each has to be caught."""

from __future__ import annotations

import functools
import re
from typing import NamedTuple
from zlib import crc32

from contract import Case

from . import cases
from .cases import Run
from .layer import execute


class Kind(NamedTuple):
    """A kind of fault: a pattern, and its replacement in one line."""

    pattern: str
    by: str = ""
    where: str = "anywhere"  # or "loop": only there is it sure to matter; or "all lines" of a kernel at once


KINDS = {
    "a barrier dropped": Kind(r"bar\.sync\s+0;", "", "loop"),
    "a barrier of a warp dropped": Kind(r"bar\.warp\.sync\s+-1;"),
    "data not awaited": Kind(r"setp\.ne\.b32 (.*), (65535|-1);", r"setp.ne.b32 \1, 123456;"),
    "filling mistaken": Kind(r"setp\.ne\.b32 (.*), (65535|-1);", r"setp.ne.b32 \1, 65534;"),
    "data read weakly": Kind(r"ld\.volatile\.global", "ld.global"),
    "data stored weakly": Kind(r"st\.relaxed\.gpu\.global", "st.global"),
    "count not awaited": Kind(r"@waiting bra again;"),
    "one more awaited": Kind(r"setp\.lt\.s32 (\s*waiting), ", r"setp.le.s32 \1, "),
    "no acquire": Kind(r"ld\.acquire", "ld.relaxed"),
    "no release": Kind(r"\.release\.add", ".relaxed.add"),
    "no signal": Kind(r"@%p\d+ atom.*;"),
    "copies not waited for": Kind(r"cp\.async\.wait_group\s+\d;", "", "loop"),
    "one more copy in flight": Kind(r"cp\.async\.wait_group\s+2;", "cp.async.wait_group 3;", "loop"),
    "a store's predicate inverted": Kind(r"@(%p\d+) st\.global", r"@!\1 st.global"),
    "stores' predicates dropped": Kind(r"@%p\d+ st\.global", "st.global", "all lines"),
    "loads' predicates dropped": Kind(r"@%p\d+ ld\.global", "ld.global", "all lines"),
    "copies' sizes not masked": Kind(r"(cp\.async.*), %r\d+;", r"\1, 16;", "all lines"),
    "a store 4 bytes off": Kind(r"(st\.global[^\[]*)\[ (%rd\d+) \+ 0 \]", r"\1[ \2 + 4 ]"),
    "a matrix transposed": Kind(r"x4\.shared", "x4.trans.shared"),
    "factors exchanged": Kind(r"(mma\.sync.*\}, \{ )(%r\d+), (%r\d+) (\}, \{[^{]*)$", r"\1\3, \2 \4"),
    "a store to shared memory dropped": Kind(r"st\.shared.*;|stmatrix.*;"),
    "wgmma not waited for": Kind(r"wgmma\.wait_group\.sync\.aligned 0;"),
    "no fence for wgmma": Kind(r"fence\.proxy\.async\.shared::cta;"),
    "a factor dropped": Kind(r"mul\.f32\s+(%r\d+), %r\d+, (%r\d+);", r"mov.b32 \1, \2;", "loop"),
    "a factor in a sum dropped": Kind(r"fma\.rn\.f32\s+(%r\d+), (%r\d+), %r\d+, (%r)", r"add.f32 \1, \2, \3", "loop"),
}
# Sizes that fill all tiles but the last rows', so that every line matters; chunks, so that no state begins as zeros.
RUNS = [
    Run("bf16", Case(3, 18, 3, 32, flags="gaps resets state"), chunk=2),
    Run("fp16", Case(3, 17, 3, 128)),
    Run("fp32", Case(3, 18, 3, 32, flags="gaps"), chunk=2),
    Run("tf32", Case(3, 17, 3, 64, flags="lengths resets state"), chunk=2),
    Run("bf16", Case(3, 18, 3, 256, flags="gaps"), chunk=2),
    Run("fp16", Case(3, 17, 3, 256), exchange="counter"),
    Run("tf32", Case(3, 18, 3, 256)),
    Run("fp32", Case(3, 18, 3, 96, flags="gaps"), chunk=2),
    Run("bf16", Case(1, 18, 128, 128)),
]
# Tiles of 64 rows compile to wgmma; stages=1 is without the fault that `in_flight.py` looks for. Each launch runs one
# step, so that nothing is to be awaited.
WITH_WGMMA = Run("bf16", Case(2, 33, 3, 256), processors=3, block_b=64, stages=1)
FACTORS = tuple(kind for kind in KINDS if kind.startswith("a factor"))  # the first one is, of each, that of dropout
ALL = {run: tuple(kind for kind in KINDS if "wgmma" not in kind and kind not in FACTORS) for run in RUNS}
ALL |= dict.fromkeys((cases.DROPOUT, cases.DROPOUT._replace(exchange="counter")), FACTORS)
ALL[WITH_WGMMA] = tuple(kind for kind in KINDS if "wgmma" in kind)
# For the normal suite, in one place of each kernel.
FEW = {
    cases.FEW[0]: (
        "a barrier dropped",
        "copies not waited for",
        "a store to shared memory dropped",
        "loads' predicates dropped",
        "a store's predicate inverted",
        "a matrix transposed",
    ),
    cases.FEW[3]: ("data not awaited", "filling mistaken", "data read weakly", "data stored weakly"),
    cases.DROPOUT: FACTORS,
    cases.FEW[4]: ("count not awaited", "one more awaited", "no acquire", "no release", "no signal"),
}


class Planted(NamedTuple):
    """A fault in lines of a kernel."""

    kind: str
    kernel: str
    lines: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.kind}: {self.kernel}, line {self.lines[0] + 1}"


def looped(lines: list[str]) -> set[int]:
    """The lines of loops: those from a label to a branch that goes back to it."""
    labels = {line.split(":")[0]: number for number, line in enumerate(lines) if re.match(r"\$\w+:", line)}
    branches = [(number, re.search(r"bra(?:\.uni)?\s+(\$\w+);", line)) for number, line in enumerate(lines)]
    return {n for number, branch in branches if branch for n in range(labels[branch[1]], number)}


class Texts:
    """The PTX of the kernels that a run launches, by name and digest: both recurrences launch some."""

    def __init__(self, run: Run):
        self.run = run
        self.ptx: dict[str, str] = {}
        outcome = execute(run, 0, edit=lambda name, ptx: self.ptx.setdefault(f"{name} {crc32(ptx.encode()):08x}", ptx))
        if outcome.wrong:
            raise ValueError(f"{run} has a fault before any is planted: {outcome.wrong}")

    def lines(self, kernel: str, kind: Kind) -> list[int]:
        """Lines of a kernel that a fault changes."""
        ptx = self.ptx[kernel]
        text = ptx.split("\n")
        always = set(re.findall(r"mov\.pred\s+(%p\d+), -1;", ptx))  # whatever is done to them changes nothing
        begin, end = text.index("{"), text.index("}")
        found = []
        for number in looped(text) if kind.where == "loop" else range(begin, end):
            code = text[number].split("//")[0].strip()
            guard = re.match(r"@(%p\d+) ", code)
            harmless = "ld.param" in code or ("@" in kind.pattern and guard and guard[1] in always)
            if not harmless and re.search(kind.pattern, code):
                found.append(number)
        return sorted(found)

    def planted(self, name: str, most: int) -> list[Planted]:
        """Faults of a kind, at most so many per kernel, spread over it."""
        faults, kind = [], KINDS[name]
        for kernel in self.ptx:
            lines = self.lines(kernel, kind)
            chosen = [tuple(lines)] if kind.where == "all lines" else [(line,) for line in lines]
            faults += [Planted(name, kernel, one) for one in chosen[:: max(1, -(-len(chosen) // most))] if one]
        return faults

    def caught(self, fault: Planted, seeds: int) -> str:
        """The finding in the first interleaving that shows a fault, "" if none does."""
        kind, whole = KINDS[fault.kind], self.ptx[fault.kernel]
        lines = whole.split("\n")
        for number in fault.lines:
            lines[number] = re.sub(kind.pattern, kind.by, lines[number], count=1)
        faulty = "\n".join(lines)
        for seed in range(seeds):
            outcome = execute(self.run, seed, edit=lambda _, ptx: faulty if ptx == whole else ptx, most_polls=3000)
            if outcome.wrong:
                return outcome.wrong
        return ""


@functools.lru_cache(2)
def texts(run: Run) -> Texts:
    """The PTX of a run, kept for its next kind of fault."""
    return Texts(run)
