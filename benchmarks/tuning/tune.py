"""Times candidate plans of the fused kernels on this GPU and writes a launch table of the fastest.

    python -m benchmarks.tuning.tune --out FOLDER [--seconds 120]
    python -m benchmarks.tuning.tune --compile I/N            only compiles, the I-th of N parts: all at once, before
    python -m benchmarks.tuning.tune --choose CSV --out FOLDER       only chooses, without a GPU

FOLDER/tune.csv has a line per candidate, including wrong and refused ones; FOLDER/plans.json is
kernels/triton/plans.json with the rows of this device's generation replaced where they were measured. The times include
the products around the recurrence, which all candidates share. Cells not reached before the time limit keep their row.
"""

from __future__ import annotations

import argparse
import ast
import csv
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.measuring.run import part
from benchmarks.measuring.timing import replayed
from benchmarks.results import new_file
from benchmarks.tuning import compile_report
from grucore.kernels import Form, State, Steps, Weights
from grucore.kernels.eager import layer as eager_layer
from grucore.kernels.triton import layer as triton_layer
from grucore.kernels.triton import plan
from grucore.kernels.triton.exchange import INTERPRETED
from grucore.kernels.triton.plan import H100, Plan

KINDS = {"half": (torch.bfloat16, "ieee"), "tf32": (torch.float32, "tf32"), "ieee": (torch.float32, "ieee")}
LARGE = 2048  # the hidden size that represents all above 1024
LIMITS = {"half": 1e-2, "tf32": 4e-3, "ieee": 1e-5}  # RMS error, above which a candidate is wrong and not timed
NUMBERS = ("max_hidden", "max_batch", "T", *(set(Plan._fields) - {"exchange"}), "ms", "error_rms")  # of tune.csv
SERVES_ALL = {"capability": 0, "max_hidden": None, "max_batch": None}
TABLE_ORDER = ("forward", "backward", "step"), ("half", "tf32", "ieee")


class Cell(NamedTuple):
    """The sizes that one row of the table covers."""

    recurrence: str
    kind: str
    max_hidden: int | None
    max_batch: int | None

    @property
    def sizes(self) -> tuple[int, int]:
        """The B and H that are timed for it."""
        return 16 if self.max_batch else 128, self.max_hidden or LARGE


def cells() -> list[Cell]:
    """Lists all cells that the table may distinguish, the most used first."""
    hidden = (128, 64, 512, 256, 1024, None, 32, 16)
    return [
        Cell(recurrence, kind, max_hidden, max_batch)
        for kind, max_hidden, recurrence, max_batch in itertools.product(
            KINDS, hidden, ("forward", "backward"), (32, None)
        )
    ]


def candidates(cell: Cell, bytes_of_element: int, shared_memory: int) -> Iterator[Plan]:
    """Yields neighbours of the current plan: whole if W_hh fits into one program, split, and streamed."""
    batch, hidden_size = cell.sizes
    weights = 3 * hidden_size * bytes_of_element  # of one unit
    if hidden_size * weights < shared_memory:
        for warps, stages, block_b in itertools.product((1, 2, 4, 8), (1, 2, 3, 4), (16, 32)):
            if hidden_size // 16 <= 2 * warps <= hidden_size // 4 and block_b <= batch:
                yield Plan(block_b, 0, hidden_size, False, "", warps, stages, 0)
    if hidden_size >= 128:
        for width, exchange, warps, block_k in itertools.product((32, 64, 16), ("data", "counter"), (8, 4), (256, 128)):
            if width * weights < shared_memory and block_k <= hidden_size:
                yield Plan(16, width, block_k, False, exchange, warps, 1, 0)
        for block_b, width, block_k, stages in itertools.product((16, 32), (32, 64), (64, 128), (3, 4)):
            if block_b <= batch:
                yield Plan(block_b, width, block_k, True, "counter", 8 if width * block_b > 512 else 4, stages, 0)


def runs(cell: Cell, steps: int, device: torch.device) -> tuple[Callable[[], Any], Callable[[], float]]:
    """Makes the call to be timed, and a function for its RMS error against float64."""
    batch, hidden_size = cell.sizes
    dtype, precision = KINDS[cell.kind]
    generator = torch.Generator().manual_seed(0)
    shapes = [(steps, batch, hidden_size), (1, batch, hidden_size)]
    shapes += [(1, 3 * hidden_size, hidden_size)] * 2 + [(1, 3 * hidden_size)] * 2
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    tensors = [t.to(device, dtype) * (1 if i < 2 else hidden_size**-0.5) for i, t in enumerate(tensors)]
    x, h0, *weights = tensors
    y, _ = triton_layer.gru_forward(x, State(h0), Weights(*weights), Steps(), Form(precision=precision))

    def run(kernels: Any = triton_layer, to: Callable = lambda t: t) -> Tensor:
        values = (State(to(h0)), Weights(*map(to, weights)), Steps(), Form(precision=precision))
        if cell.recurrence == "forward":
            return kernels.gru_forward(to(x), *values)[0]
        return kernels.gru_backward(to(y), None, to(y), to(x), *values, True).x

    want = run(eager_layer, lambda t: t.double())

    def error() -> float:
        got = run().double()
        return float((got - want).square().mean().sqrt() / want.square().mean().sqrt())

    return run, error


def milliseconds(run: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Returns the median time of a run, on a GPU as a CUDA graph, which excludes the host's overhead."""
    if device.type == "cuda":
        return replayed(run, repeats)
    times = []
    for i in range(repeats + 2):
        start = time.perf_counter()
        run()
        elapsed = (time.perf_counter() - start) * 1e3
        if i >= 2:
            times.append(elapsed)
    return statistics.median(times)


def merged(table: list[dict], winners: dict[Cell, Plan], capability: int) -> list[dict]:
    """Puts the winners' rows into the table, ordered so that the first matching row is the best."""
    new = [
        {"recurrence": cell.recurrence, "kind": cell.kind, "capability": capability, "max_hidden": cell.max_hidden}
        | {"max_batch": cell.max_batch}
        | chosen._asdict()
        for cell, chosen in winners.items()
    ]
    by_rest: dict[str, dict] = {}  # a plan that is best for few rows and for many needs one row of the table
    for row in sorted(new, key=lambda row: row["max_batch"] or 2**30):
        by_rest[json.dumps(row | {"max_batch": None})] = row
    new = list(by_rest.values())
    names = ("recurrence", "kind", "max_hidden", "capability")
    covered = {tuple(row[name] for name in names) for row in new if not row["max_batch"]}
    kept = [row for row in table if tuple(row[name] for name in names) not in covered]
    recurrences, kinds = TABLE_ORDER
    return sorted(
        new + kept,
        key=lambda row: (
            recurrences.index(row["recurrence"]),
            kinds.index(row["kind"]),
            row["max_hidden"] or 2**30,
            -row["capability"],
            row["max_batch"] or 2**30,
        ),
    )


def write_table(path: Path, table: list[dict]) -> None:
    """Writes the table as JSON, a row per line, never half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text("[\n " + ",\n ".join(json.dumps(row) for row in table) + "\n]\n")
    partial.replace(path)


def main() -> None:
    """Tunes all cells, or as many as time allows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a folder; tune.csv and plans.json are written there")
    parser.add_argument("--seconds", type=float, default=120, help="no candidate is started after this time")
    parser.add_argument("--steps", type=int, default=256, help="T of the timed layer")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--compile", type=part, metavar="I/N", help="fill Triton's cache, and time nothing")
    parser.add_argument("--only-time", action="store_true", help="write tune.csv only")
    parser.add_argument(
        "--choose", type=Path, metavar="CSV", help="write plans.json only, from a tune.csv of --capability"
    )
    parser.add_argument("--capability", type=int, default=H100.capability)
    parser.add_argument("--dry-run", action="store_true", help="two candidates of the smallest cell, without a GPU")
    options = parser.parse_args()
    wanted = [cell for cell in cells() if cell.kind in options.kinds]
    if options.choose is None and not options.dry_run and not torch.cuda.is_available():
        sys.exit("no GPU that PyTorch can use: nothing to tune (--dry-run tests the script itself)")
    if options.compile is not None:
        return compile_part(*options.compile, wanted, options.seconds)
    if options.out is None:
        parser.error("--out is needed, but for --compile")
    target = options.out / "plans.json"
    if target.exists():
        sys.exit(f"{target} exists: give another --out, or move it away")
    if options.choose is not None:
        return choose(read(options.choose), options.capability, target)
    device = torch.device("cpu" if options.dry_run else "cuda")
    limits, deadline, found = plan.device(device), time.monotonic() + options.seconds, dict[Cell, list[dict]]()
    columns = ["device", *Cell._fields, "B", "H", "T", *Plan._fields, "ms", "error_rms", "note"]
    with new_file(options.out / "tune.csv", columns) as write:
        for cell in wanted[-1:] if options.dry_run else wanted:
            for row in measured(cell, device, limits, options, deadline) if time.monotonic() < deadline else ():
                write(row)
                found.setdefault(cell, []).append(row)
    print(f"{len(found)} of {len(cells())} cells measured: {options.out / 'tune.csv'}", flush=True)
    if not options.only_time:
        choose(found, limits.capability, target)


def read(path: Path) -> dict[Cell, list[dict]]:
    """Reads the rows of a tune.csv by cell."""
    found: dict[Cell, list[dict]] = {}
    with path.open(newline="") as file:
        for text in csv.DictReader(file):
            row: dict[str, Any] = {name: text[name] and ast.literal_eval(text[name]) for name in NUMBERS}
            row = {**text, **row, "max_hidden": row["max_hidden"] or None, "max_batch": row["max_batch"] or None}
            found.setdefault(Cell(*(row[name] for name in Cell._fields)), []).append(row)
    return found


def choose(found: dict[Cell, list[dict]], capability: int, target: Path) -> None:
    """Writes the table with the fastest plan of each cell in its place."""
    winners: dict[Cell, Plan] = {}
    for cell, rows in found.items():
        if best := fastest(rows, capability):
            winners[cell] = Plan(*(best[name] for name in Plan._fields))
            print(*cell, *winners[cell], f"{best['ms'] * 1e3 / best['T']:.2f} us per step", flush=True)
    write_table(target, merged(plan.TABLE, winners, capability))
    print(f"{len(winners)} winners: {target}")


def compile_part(index: int, parts: int, wanted: list[Cell], seconds: float) -> None:
    """Runs every N-th candidate once, so that a later run finds it compiled."""
    device = torch.device("cuda")
    limits, deadline, count = plan.device(device), time.monotonic() + seconds, 0
    for cell in wanted:
        if time.monotonic() > deadline:
            return
        run, _ = runs(cell, 8, device)
        for candidate in tried(cell, limits):
            count += 1
            if count % parts == index - 1 and time.monotonic() < deadline:
                with suppress(Exception), only(cell, candidate):  # it will fail again where it is timed
                    run()


def tried(cell: Cell, limits: plan.Device) -> list[Plan]:
    """Lists a cell's candidates, the current plan first."""
    batch, hidden_size = cell.sizes
    present = plan.plan(cell.recurrence, batch, hidden_size, 1, cell.kind, limits)
    dtype, _ = KINDS[cell.kind]
    return list(dict.fromkeys([present, *candidates(cell, dtype.itemsize, limits.shared_memory)]))


@contextmanager
def only(cell: Cell, candidate: Plan) -> Iterator[None]:
    """Makes a candidate the plan of all sizes of a cell's recurrence and kind."""
    table = plan.TABLE[:]
    try:
        plan.TABLE[:] = [
            {"recurrence": cell.recurrence, "kind": cell.kind, **SERVES_ALL, **candidate._asdict()},
            *(row for row in table if row["recurrence"] != cell.recurrence),
        ]
        plan.found.cache_clear()
        yield
    finally:
        plan.TABLE[:] = table
        plan.found.cache_clear()


def fastest(rows: list[dict[str, Any]], capability: int) -> dict[str, Any] | None:
    """Returns the fastest correct candidate that compiles within its limits, with its shared memory."""
    for row in sorted((row for row in rows if row["ms"] != ""), key=lambda row: row["ms"]):
        if INTERPRETED:  # nothing is compiled
            return row
        kernel = compile_report.KERNELS[row["recurrence"]]
        dtypes = compile_report.DTYPES[row["kind"]]
        variants = ((False, ""), (True, ""), (True, "dropout"))
        results = [
            compile_report.compiled(kernel, dtypes[0], row, flags, capability, noise) for flags, noise in variants
        ]
        if not any(result["spill_bytes"] or result["asynchronous_products"] for result in results):
            return row | {"shared_bytes": max(result["shared_bytes"] for result in results)}
    return None


def measured(
    cell: Cell, device: torch.device, limits: plan.Device, options: argparse.Namespace, deadline: float
) -> Iterator[dict[str, Any]]:
    """Yields a row per candidate of a cell, the current plan first."""
    batch, hidden_size = cell.sizes
    steps = 2 if options.dry_run else options.steps
    run, error = runs(cell, steps, device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    all_tried = tried(cell, limits)
    for candidate in all_tried[:2] if options.dry_run else all_tried:
        if time.monotonic() > deadline:
            return
        row = {"device": name, **cell._asdict(), "B": batch, "H": hidden_size, "T": steps}
        row |= candidate._asdict() | {"ms": "", "error_rms": "", "note": ""}
        try:
            with only(cell, candidate):
                row["error_rms"] = error()
                if row["error_rms"] <= LIMITS[cell.kind]:
                    row["ms"] = milliseconds(run, device, 1 if options.dry_run else 5)
                else:
                    row["note"] = "wrong"
        except Exception as fault:  # a candidate may fail in many ways: record it and try the next one
            row["note"] = f"{type(fault).__name__}: {(str(fault).splitlines() or [''])[0][:100]}"
        yield row


if __name__ == "__main__":
    main()
