"""Puts a finished run among the published results.

    python examples/imdb/collect.py runs/imdb-folder --name book-masked-cpu

writes results/book-masked-cpu.json: the run's configuration, summary and metrics. `python -m benchmarks.report` makes
the README's table of these files.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from run_folder import RunError, RunFolder

RESULTS = Path(__file__).parent / "results"


def collect(run: Path, target: Path) -> None:
    """Writes the run as one JSON file.

    Raises:
        RunError: the run has not finished, or the file exists.
    """
    if target.exists():
        raise RunError(f"{target} exists: published results are never overwritten; give another --name")
    folder = RunFolder(run)
    config = {k: v for k, v in folder.read_json("config.json").items() if k != "data_path"}
    summary, checkpoint = folder.read_json("summary.json"), folder.read_checkpoint()
    target.parent.mkdir(exist_ok=True)
    target.write_text(
        json.dumps({"summary": summary, "config": config, "metrics": checkpoint["metrics"]}, indent=1) + "\n"
    )


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
