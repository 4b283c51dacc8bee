"""Makes the modules of examples/imdb importable, and runs its scripts."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import torch

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "imdb"
sys.path.insert(0, str(EXAMPLE))

TINY = ["--hidden-size", "16", "--embedding-size", "8", "--device", "cpu", "--cache", "none"]
BEST = ["--preset", "best", "--ngrams", 500, "--batch-size", 20, "--epochs", 2]


def environment() -> dict[str, str]:
    """The environment of a script: the checkout importable, as many threads as here, so that sums round alike."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}


def run(script: str, *arguments: object, **options) -> subprocess.CompletedProcess:
    """Runs a script of the example and returns what it printed."""
    command = [sys.executable, str(EXAMPLE / script), *map(str, arguments)]
    options = {"text": True} | options
    return subprocess.run(command, capture_output=True, env=environment(), timeout=240, **options)


def train(output: Path, *arguments: object) -> subprocess.CompletedProcess:
    """Trains a small model; the sample unless --data is given. In this process, which saves seconds of imports."""
    from data import DataError
    from run_folder import RunError

    out, errors = io.StringIO(), io.StringIO()
    code: int | str | None = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            train_here(output, *arguments)
        except SystemExit as end:
            code = end.code
        except (DataError, RunError) as error:  # as train.py's last lines do
            code = 1
            print(f"error: {error}", file=sys.stderr)
    return subprocess.CompletedProcess(["train.py", *map(str, arguments)], code, out.getvalue(), errors.getvalue())


def write_tree(folder: Path, train: int = 40, test: int = 12) -> None:
    """A small corpus laid out as the extracted aclImdb."""
    import sample

    for part, (texts, labels) in zip(("train", "test"), sample.corpus(train, test), strict=True):
        for i, (text, label) in enumerate(zip(texts, labels, strict=True)):
            path = folder / part / ("neg", "pos")[label] / f"{i}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def write_parquet(folder: Path, train: int = 40, test: int = 12) -> None:
    """The same corpus as parquet."""
    import pyarrow
    import pyarrow.parquet
    import sample

    folder.mkdir(parents=True, exist_ok=True)
    for part, (texts, labels) in zip(("train", "test"), sample.corpus(train, test), strict=True):
        pyarrow.parquet.write_table(pyarrow.table({"text": texts, "label": labels}), folder / f"{part}.parquet")


def train_here(output: Path, *arguments: object) -> Path:
    """`train`, whose errors are raised."""
    import train

    command = ["train.py", "--output", output, *TINY, *arguments]
    with mock.patch.object(sys, "argv", list(map(str, command))):
        train.main()
    return output
