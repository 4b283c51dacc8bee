"""The items to run, each a line of the file of results: a layer with a seed, a kind of fault, a layer's plans."""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, NamedTuple

import torch

from . import cases, faults, in_flight, layer


class Item(NamedTuple):
    """A line of the file."""

    what: str
    run: cases.Run
    number: int = 0  # the seed of a layer, or in how many places of a kernel a fault is planted
    kind: str = ""  # of fault

    def __str__(self) -> str:
        rest = {"layers": f", seed={self.number}", "faults": f", {self.kind}, places={self.number}", "plans": ""}
        return f"{self.what}: {self.run}{rest[self.what]}"


def items(options: argparse.Namespace) -> list[Item]:
    """The requested items."""
    runs = cases.FEW if options.few else cases.all_runs()
    planted = faults.FEW if options.few else faults.ALL
    places = 1 if options.few else options.places
    everything = {
        "layers": [Item("layers", run, seed) for run in runs for seed in range(options.seeds)],
        "faults": [Item("faults", run, places, kind) for run, kinds in planted.items() for kind in kinds],
        "plans": [Item("plans", run) for run in runs],
    }
    wanted = [item for what in options.what for item in everything[what] if options.only in str(item)]
    return sorted(wanted, key=lambda item: item.run.case.H)  # the quick ones first


def done(item: Item) -> dict[str, Any]:
    """Runs an item and returns its result."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # fresh memory holds NaN
    begin = time.time()
    if item.what == "layers":
        result = layer.execute(item.run, item.number)._asdict()
    elif item.what == "plans":
        result = {"wrong": in_flight.refused(item.run)}
    else:
        texts = faults.texts(item.run)
        planted = texts.planted(item.kind, item.number)
        missed = [fault for fault in planted if not texts.caught(fault, 3)]
        result = {"wrong": "\n".join(f"not caught: {fault}" for fault in missed)}
        result |= {"planted": len(planted), "caught": len(planted) - len(missed)}
    seconds = round(time.time() - begin, 1)
    names = {"name": str(item), "what": item.what, "kind": item.kind, "dtype": item.run.dtype}
    return {**names, **result, "seconds": seconds}


def all_done(items: list[Item], jobs: int) -> Iterator[dict[str, Any]]:
    """The results, in the order in which they finish."""
    if jobs == 1:
        yield from map(done, items)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(done, item) for item in items]):
            yield future.result()
