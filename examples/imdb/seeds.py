"""One run for each of several seeds, and their mean.

OUTPUT/seed-N holds each run, OUTPUT/summary.json the mean and the standard deviation. With --resume, runs that have
ended are left as they are, and the others go on.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

from processes import Processes
from provenance import provenance
from run_folder import RunError, RunFolder

MEASURES = ("test_accuracy", "test_accuracy_without_those", "test_loss", "validation_accuracy", "seconds")


def run_seeds(
    given: argparse.Namespace,
    processes: Processes,
    folder: RunFolder,
    run: Callable[[argparse.Namespace, Processes, RunFolder], None],
) -> None:
    """Runs each seed of `given.seeds` and writes what they make together.

    Raises:
        RunError: the folder holds something else than runs of seeds, or such runs and --resume is not given.
    """
    processes.barrier()
    found = sorted(path.name for path in folder.path.iterdir()) if folder.path.exists() else []
    strange = [name for name in found if not name.startswith(("seed-", ".unfinished-")) and name != "summary.json"]
    if strange:
        raise RunError(f"{folder.path} holds more than runs of seeds ({strange[0]}): give another --output")
    if found and not given.resume:
        raise RunError(f"{folder.path} holds runs already: continue them with --resume, or give another --output")
    for seed in given.seeds:
        if processes.first:
            print(f"seed {seed}", flush=True)
        run(argparse.Namespace(**vars(given) | {"seed": seed}), processes, RunFolder(folder / f"seed-{seed}"))
    if not processes.first:
        return
    summaries = [RunFolder(folder / f"seed-{seed}").read_json("summary.json") for seed in given.seeds]
    together = combined(summaries) | {"seeds": given.seeds}
    folder.write_json("summary.json", together | provenance(processes.device))
    mean, deviation = together["test_accuracy"], together["deviation"]["test_accuracy"]
    spread = "" if deviation is None else f", standard deviation {deviation:.4f}"
    print(f"test accuracy of {len(given.seeds)} seeds: mean {mean:.4f}{spread}; see {folder.path}")


def combined(summaries: list[dict[str, Any]]) -> dict[str, Any]:
    """Means and, under `deviation`, sample standard deviations (None for one run); the paths' accuracies too."""
    paths = [name for name in summaries[0] if name in ("test_accuracy_gru", "test_accuracy_ngrams")]
    columns = {name: [summary[name] for summary in summaries] for name in (*MEASURES, *paths)}
    deviations = {name: statistics.stdev(values) if len(values) > 1 else None for name, values in columns.items()}
    means = {name: statistics.fmean(values) for name, values in columns.items()}
    return means | {"deviation": deviations, "test_reviews_also_in_train": summaries[0]["test_reviews_also_in_train"]}
