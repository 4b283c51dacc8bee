"""The schema of results: a measurement is a `Row` of a CSV file, and the rows of one case in one run make a `Cell`.

Measuring writes rows with `new_file`; publishing starts with `read` and `cells`.
"""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.measuring.cases import Case


class Run(NamedTuple):
    """The properties that all rows of one table share: a machine, its software, and the commit."""

    device: str
    torch: str
    triton: str
    cudnn: str
    commit: str
    instruction_set: str = ""  # of the native library; "" in older files

    @property
    def machine(self) -> Run:
        """The run without its number of threads."""
        return self._replace(device=re.sub(r", \d+ threads?$", "", self.device))


@dataclass
class Row:
    """One provider's figures in one mode on one case; None or "" if there are none."""

    # the case
    provider: str
    mode: str  # "inference", "training", "step" (one step of all layers), "first", "memory" or "epoch"
    T: int | None = None
    B: int | None = None
    I: int | None = None  # noqa: E741
    H: int | None = None
    layers: int = 1
    bidirectional: bool = False
    lengths: str = ""
    dtype: str = ""
    precision: str = ""
    data: str = "random"  # of an epoch: "sample" (synthetic reviews) or "IMDB"
    # the results
    ms_p50: float | None = None
    ms_p20: float | None = None
    ms_p80: float | None = None
    ms_cpu_p50: float | None = None  # the CPU's time in the same samples: of the only thread, or of all
    ms_cpu_p20: float | None = None
    ms_cpu_p80: float | None = None
    ms_graph: float | None = None
    us_per_step: float | None = None
    peak_mib: float | None = None
    error_rms: float | None = None
    # the conditions
    device: str = ""
    torch: str = ""
    triton: str = ""
    cudnn: str = ""
    commit: str = ""
    threads: int | None = None  # of a CPU
    instruction_set: str = ""  # of grucore's native library
    date: str = ""
    note: str = ""  # why there is no figure; for an epoch, its preset

    @property
    def case(self) -> Case:
        """The case that was measured."""
        return Case(*(getattr(self, name) for name in Case._fields))

    @property
    def run(self) -> Run:
        """The run that the row belongs to."""
        return Run(*(getattr(self, name) for name in Run._fields))


COLUMNS = [field.name for field in dataclasses.fields(Row)]
NEWER = ("ms_cpu_p50", "ms_cpu_p20", "ms_cpu_p80", "threads", "instruction_set")
COLUMNS_BEFORE_CPU_TIME = [name for name in COLUMNS if name not in NEWER]  # of older files
COLUMNS_BEFORE_DATA = [name for name in COLUMNS_BEFORE_CPU_TIME if name != "data"]  # of those before
FROM_TEXT: dict[Any, Callable[[str], Any]] = {"str": str, "bool": "True".__eq__, "int": int}
FROM_TEXT |= {"int | None": int, "float | None": float}


_WITH_LENGTHS = ("1519587", "bb8bc59")  # commits of the provider before it was made fair
_OF_TIME = ("inference", "step", "first")


class Cell(NamedTuple):
    """One case in one mode in one run, with one row per provider."""

    run: Run
    mode: str
    precision: str
    case: Case
    rows: dict[str, Row]

    def value(self, provider: str, column: str = "ms_p50") -> float | None:
        """Returns a provider's figure, or None."""
        return getattr(self.rows.get(provider), column, None)

    @property
    def ours(self) -> str:
        """Our own provider."""
        names = ("grucore-triton", "grucore-auto", "grucore-eager")
        return next((name for name in names if self.value(name)), "grucore-eager")

    @property
    def baseline(self) -> str:
        """The faster of the timed ways to run nn.GRU."""
        return self.baseline_by("ms_p50")

    def baseline_by(self, column: str) -> str:
        """The faster way to run nn.GRU by one column, among those with a figure there."""
        return min(("torch", "torch-padded"), key=lambda name: self.value(name, column) or float("inf"))

    def ratio(self, provider: str, column: str = "ms_p50") -> float | None:
        """Returns our speed-up over a provider: its time divided by ours."""
        theirs, ours = self.value(provider, column), self.value(self.ours, column)
        return theirs / ours if theirs and ours else None


def read(folders: Iterable[Path]) -> list[Row]:
    """Reads the rows of every CSV in the folders.

    Raises:
        ValueError: a folder without CSV files, or a file with other columns.
    """
    rows = []
    for folder in folders:
        files = sorted(folder.glob("*.csv"))
        if not files:
            raise ValueError(f"{folder} holds no .csv file written by `python -m benchmarks.measuring.run`")
        for file in files:
            with file.open(newline="") as stream:
                reader = csv.DictReader(stream)
                if reader.fieldnames not in (COLUMNS, COLUMNS_BEFORE_CPU_TIME, COLUMNS_BEFORE_DATA):
                    raise ValueError(f"{file} has columns {reader.fieldnames}, expected {COLUMNS}")
                rows += [_row(values) for values in reader]
    return rows


def _row(texts: Mapping[str, str]) -> Row:
    types = {field.name: field.type for field in dataclasses.fields(Row)}
    row = Row(**{name: FROM_TEXT[types[name]](text) for name, text in texts.items() if text})
    row.provider = row.provider.replace("grucore-reference", "grucore-eager")  # what older files call it
    if row.mode == "epoch" and "data" not in texts:  # the note held the data set, and `lengths` "imdb" whichever it was
        preset, _, rest = row.note.partition(", ")
        row.data, _, fault = rest.partition(": ")
        row.lengths, row.note = "", f"{preset}: {fault}" if fault else preset
    if row.provider == "onnxruntime" and row.lengths == "full" and row.commit in _WITH_LENGTHS and row.mode in _OF_TIME:
        row.note = "withdrawn: it ran a file that takes lengths, which costs it up to 40 % where there are none"
        row.ms_p50 = row.ms_p20 = row.ms_p80 = row.ms_cpu_p50 = row.ms_cpu_p20 = row.ms_cpu_p80 = None
    return row


@contextmanager
def new_file(target: Path, columns: Iterable[str] = COLUMNS) -> Iterator[Callable[[Row | Mapping[str, Any]], None]]:
    """Opens a new CSV file and yields a function that writes a row at once, so that rows survive a later failure."""
    if target.exists():
        raise SystemExit(f"error: {target} exists: results are never overwritten; give another --out or move it away")
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("x", newline="") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()

        def write(row: Row | Mapping[str, Any]) -> None:
            values = dataclasses.asdict(row) if isinstance(row, Row) else row
            writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in values.items()})
            file.flush()

        yield write


def cells(rows: Iterable[Row]) -> list[Cell]:
    """Gathers the rows of layers into cells, in order."""
    found: dict[tuple, Cell] = {}
    for row in rows:
        if row.mode != "epoch":
            key = (row.run, row.mode, row.precision, row.case)
            found.setdefault(key, Cell(*key, {})).rows[row.provider] = row
    return list(found.values())
