"""Times an epoch of the IMDB example end to end, data loading and validation included, with each GRU.

    python -m benchmarks.measuring.imdb_epoch --data sample|PATH --device cpu --out FOLDER

writes FOLDER/imdb-DEVICE.csv with one row per layer: the last of `--epochs` epochs, free of compilation and warm-up.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measuring.environment import environment, on_cpu
from benchmarks.results import Row, new_file

TRAIN = Path(__file__).resolve().parents[2] / "examples" / "imdb" / "train.py"
LAYERS = {"grucore": "grucore-auto", "torch": "torch"}  # the example leaves the choice of a backend to "auto"


def epoch(gru: str, options: argparse.Namespace) -> Row:
    """Measures the row of one layer."""
    data = "sample" if options.data == "sample" else "IMDB"
    under = environment(options.device) | on_cpu(options.device)
    row = Row(LAYERS[gru], "epoch", dtype="float32", data=data, **under)
    row.note = options.preset
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, TRAIN, "--preset", options.preset, "--data", options.data, "--gru", gru]
        command += ["--device", options.device, "--epochs", str(options.epochs), "--output", run]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            row.note += f": {(result.stderr.strip().splitlines() or ['failed'])[-1][:150]}"
            return row
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        config = json.loads((run / "config.json").read_text())
    row.B, row.I, row.H = (config[name] for name in ("batch_size", "embedding_size", "hidden_size"))
    row.ms_p50 = lines[-1]["seconds"] * 1e3
    return row


def main() -> None:
    """Measures an epoch with each layer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="sample", help="sample, or a folder with the real reviews")
    parser.add_argument("--preset", choices=["book", "book-masked"], default="book-masked")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    failed = False
    with new_file(options.out / f"imdb-{options.device}.csv") as write:
        for gru in LAYERS:
            row = epoch(gru, options)
            write(row)
            print(f"{row.provider:18} {row.ms_p50 or '-':>8} ms per epoch; {row.note}, {row.data}", flush=True)
            failed |= row.ms_p50 is None
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
