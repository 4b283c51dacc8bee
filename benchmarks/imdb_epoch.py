"""Times an epoch of the IMDB example end to end, data loading and validation included, with each GRU.

    python -m benchmarks.imdb_epoch --data sample|PATH --device cpu --out FOLDER

writes FOLDER/imdb-DEVICE.csv, a row for each layer: the last of `--epochs` epochs, which compile and warm up nothing.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.environment import environment
from benchmarks.run import COLUMNS

TRAIN = Path(__file__).resolve().parent.parent / "examples" / "imdb" / "train.py"
LAYERS = {
    "grucore": {"cpu": "grucore-reference", "cuda": "grucore-triton"},
    "torch": dict.fromkeys(("cpu", "cuda"), "torch"),
}


def epoch(gru: str, options: argparse.Namespace) -> dict[str, Any]:
    """The row of one layer."""
    row = dict.fromkeys(COLUMNS, "") | environment(options.device)
    row |= {"provider": LAYERS[gru][options.device], "mode": "epoch", "lengths": "imdb", "dtype": "float32"}
    row["note"] = f"{options.preset}, {options.data if options.data == 'sample' else 'IMDB'}"
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, TRAIN, "--preset", options.preset, "--data", options.data, "--gru", gru]
        command += ["--device", options.device, "--epochs", str(options.epochs), "--output", run]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            row["note"] += f": {(result.stderr.strip().splitlines() or ['failed'])[-1][:150]}"
            return row
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        config = json.loads((run / "config.json").read_text())
    row |= {"B": config["batch_size"], "I": config["embedding_size"], "H": config["hidden_size"], "layers": 1}
    row |= {"bidirectional": False, "ms_p50": f"{lines[-1]['seconds'] * 1e3:.4g}"}
    return row


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="sample", help="sample, or a folder with the real reviews")
    parser.add_argument("--preset", choices=["book", "book-masked"], default="book-masked")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    target = options.out / f"imdb-{options.device}.csv"
    if target.exists():
        sys.exit(f"error: {target} exists: results are never overwritten; give another --out or move it away")
    rows = [epoch(gru, options) for gru in LAYERS]
    options.out.mkdir(parents=True, exist_ok=True)
    with target.open("x", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(f"{row['provider']:18} {row['ms_p50'] or '-':>8} ms an epoch; {row['note']}")
    if not all(row["ms_p50"] for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
