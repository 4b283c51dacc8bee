"""Puts a finished run, or the runs of several seeds, among the published results.

    python examples/imdb/collect.py runs/imdb-folder --name book-masked-cpu

writes results/book-masked-cpu.json: the run's configuration, summary and metrics; for `--seeds` the summary of all, and
each run's own. `python -m benchmarks.publishing.report` makes the README's table of these files.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from run_folder import RunError, RunFolder

RESULTS = Path(__file__).parent / "results"


def collect(run: Path, target: Path) -> None:
    """Writes the run as one JSON file.

    Raises:
        RunError: the run has not finished, or the file exists.
    """
    if target.exists():
        raise RunError(f"{target} exists: published results are never overwritten; give another --name")
    summary = RunFolder(run).read_json("summary.json")
    if "seeds" in summary:
        runs = [_one(run / f"seed-{seed}") for seed in summary["seeds"]]
        config = {k: v for k, v in runs[0]["config"].items() if k != "seed"}
        result = {
            "summary": summary,
            "config": config,
            "runs": [{k: r[k] for k in ("summary", "metrics")} for r in runs],
        }
    else:
        result = _one(run)
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n")


def _one(run: Path) -> dict[str, Any]:
    folder = RunFolder(run)
    config = {k: v for k, v in folder.read_config().items() if k != "data_path"}
    summary, checkpoint = folder.read_json("summary.json"), folder.read_checkpoint()
    return {"summary": summary, "config": config, "metrics": checkpoint["metrics"]}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the --output folder of a finished train.py")
    parser.add_argument("--name", required=True)
    given = parser.parse_args()
    try:
        collect(given.run, RESULTS / f"{given.name}.json")
    except RunError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
