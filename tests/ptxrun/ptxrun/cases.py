"""The layers that are run: every row of plans.json on its GPUs, and further cases that may go wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from contract import Case

from benchmarks.tuning.compile_report import DEVICES, DTYPES, is_chosen
from grucore.kernels.triton.plan import TABLE


class Run(NamedTuple):
    """A layer, and how it is launched."""

    dtype: str  # bf16, fp16, tf32, fp32
    case: Case
    arch: int = 90
    exchange: str = ""  # instead of what the plan says
    chunk: int = 0  # steps, instead of those of `launch.CHUNKS`
    processors: int = 0  # instead of the device's
    stages: int = 0  # instead of what the plan says
    block_b: int = 0  # same, for backward
    filling: bool = False  # rows hold NaN with the bits of an empty slot of the exchange

    def __str__(self) -> str:
        sizes = [f"{name}={value}" for name, value in zip("TBIH", self.case, strict=False)]
        defaults = self.case._field_defaults | self._field_defaults
        options = {**self.case._asdict(), **self._asdict()}.items()
        others = [
            f"{name}={value}" for name, value in options if value != defaults.get(name, value) and name not in "TBIH"
        ]
        return " ".join([self.dtype, *sizes, *others])


HALF = ("bf16", "fp16")
SINGLE = ("tf32", "fp32")


def rows(arch: int) -> Iterator[Run]:
    """Every row that a device uses, in each of its dtypes: with its most units, and with its fewest and flags.

    Where another row serves fewer rows of a batch, with more than that one serves.
    """
    device = DEVICES[arch]
    for row in TABLE:
        if not is_chosen(row, device):
            continue
        like = [r for r in TABLE if (r["kind"], r["recurrence"]) == (row["kind"], row["recurrence"])]
        limits = [r["max_hidden"] for r in like]
        fewer = [r["max_batch"] or 0 for r in like if r["max_hidden"] == row["max_hidden"] and is_chosen(r, device)]
        more = 0 if row["max_batch"] else 1 + max(fewer)
        below = max((most for most in limits if most and most < (row["max_hidden"] or 2**20)), default=0)
        wide = row["max_hidden"] is None and row["max_batch"] is None
        for dtype in DTYPES[row["kind"]]:
            if row["recurrence"] == "step":
                yield Run(dtype, Case(1, 18, 5, 33), arch)
                yield Run(dtype, Case(1, 2, 200, 128, flags="resets state", bias=False), arch)
            elif wide:
                yield Run(dtype, Case(2, 33, 3, below + 16), arch)
                yield Run(dtype, Case(2, 34, 3, below + 1, two_way=True, flags="lengths resets"), arch)
            else:
                yield Run(dtype, Case(3, max(18, more), 3, row["max_hidden"] or below + 16), arch)
                flags = "gaps resets state" if below < 512 else "lengths"
                yield Run(dtype, Case(3, max(5, more), 3, below + 1, two_way=True, flags=flags), arch)


def others() -> Iterator[Run]:
    """Combinations of exchanges, chunks, batches and devices that no plan has, losses, and NaN."""
    for dtype in (*HALF, *SINGLE):
        single = dtype in SINGLE
        yield Run(dtype, Case(6, 17, 3, 60, two_way=True, flags="lengths resets"), chunk=2)
        yield Run(dtype, Case(5, 1, 16, 16, bias=False, loss="h_n", need_dx=False))
        yield Run(dtype, Case(3, 33, 3, 48, two_way=True, flags="left resets"), 80)
        yield Run(dtype, Case(1, 3, 3, 20, flags="lengths"))
        yield Run(dtype, Case(5, 18, 3, 160, two_way=True, flags="gaps resets"), exchange="counter", chunk=2)
        yield Run(dtype, Case(5, 18, 3, 160, two_way=True, flags="gaps resets"), exchange="data", chunk=2)
        yield Run(dtype, Case(4, 17, 3, 192, loss="y"), exchange="counter")
        yield Run(dtype, Case(5, 18, 3, 33, two_way=True, heads=3, flags="gaps resets state"), chunk=2)
        yield Run(dtype, Case(3, 5, 3, 160, two_way=True, heads=2, flags="gaps resets"), chunk=2)
        noise = {"dropout": 0.3, "zoneout": 0.4}
        yield Run(dtype, Case(4, 18, 3, 48, two_way=True, heads=2, flags="gaps resets state", **noise), chunk=2)
        yield Run(dtype, Case(4, 5, 3, 33, flags="lengths", zoneout=0.4, training=False), chunk=2)
        for exchange in ("data", "counter"):
            yield Run(dtype, Case(4, 18, 3, 160, two_way=True, flags="gaps", **noise), exchange=exchange, chunk=2)
            yield Run(dtype, Case(2, 3, 3, 520 if single else 1040, **noise), exchange=exchange)
        yield Run(dtype, Case(2, 2, 3, 520 if single else 1040, two_way=True), exchange="data")
        yield Run(dtype, Case(2, 33, 3, 520 if single else 1040, flags="gaps"), exchange="data")
        yield Run(dtype, Case(2, 70, 3, 96 if dtype == "fp32" else 192, flags="lengths state"))
        # Fewer processors than a group has programs: a launch for each step. And several launches, one for each tile.
        yield Run(dtype, Case(3, 17, 3, 320, two_way=True, flags="gaps resets"), processors=9)
        yield Run(dtype, Case(3, 50, 3, 256, flags="lengths"), processors=9)
        for exchange in ("data", "counter"):
            hidden = 96 if single else 192
            yield Run(dtype, Case(4, 18, 3, hidden, two_way=True, flags="gaps"), exchange=exchange, filling=True)
        yield Run(dtype, Case(4, 18, 3, 64, flags="gaps"), filling=True)
        for stages in (2, 4):  # operands that are less or further ahead
            yield Run(dtype, Case(4, 3, 3, 64, flags="gaps resets"), stages=stages)
            yield Run(dtype, Case(2, 3, 3, 520 if single else 1040), stages=stages)


def all_runs() -> list[Run]:
    """All runs, without duplicates."""
    return list(dict.fromkeys([*rows(90), *rows(80), *others()]))


DROPOUT = Run("bf16", Case(3, 18, 3, 160, flags="gaps resets", dropout=0.3, zoneout=0.4), exchange="data", chunk=2)
# For the normal suite: each kernel, with flags, both exchanges, streamed weights, a launch for each step.
FEW = [
    Run("bf16", Case(4, 18, 3, 64, two_way=True, flags="gaps resets state"), chunk=2),
    Run("tf32", Case(3, 17, 3, 33, two_way=True, loss="h_n", need_dx=False)),
    Run("fp32", Case(3, 18, 3, 20, flags="lengths resets"), 80, chunk=2),
    Run("bf16", Case(3, 18, 3, 160, flags="gaps resets"), exchange="data", chunk=2),
    Run("fp16", Case(3, 5, 3, 160, two_way=True, flags="lengths"), exchange="counter"),
    Run("bf16", Case(2, 5, 3, 160, flags="gaps resets"), processors=2),
    Run("bf16", Case(1, 18, 5, 33)),
    Run("bf16", Case(3, 5, 3, 20, two_way=True, heads=2, flags="gaps resets"), chunk=2),
    Run("bf16", Case(3, 5, 3, 32, two_way=True, flags="gaps resets state", dropout=0.3, zoneout=0.4), chunk=2),
    DROPOUT,
    Run("fp16", Case(2, 5, 3, 160, dropout=0.3, zoneout=0.4), exchange="counter"),
    Run("bf16", Case(6, 5, 3, 32, zoneout=0.4, training=False)),
]
