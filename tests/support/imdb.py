"""Makes the modules of examples/imdb importable, and runs its scripts."""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import torch

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "imdb"
sys.path.insert(0, str(EXAMPLE))

BOOK = ["--gru", "torch"]
TINY = ["--hidden-size", "8", "--embedding-size", "8", "--device", "cpu"]
SMALL = ["--ngrams", "500", "--batch-size", "20", "--members", "2", "--vocabulary-size", "200"]
BEST = ["--preset", "best", *SMALL, "--plain", "0", "--pretraining-epochs", "0"]
SEMI = ["--preset", "semi", *SMALL, "--plain", "1", "--epochs", "1"]


def environment() -> dict[str, str]:
    """The environment of a script: the checkout importable, as many threads as here, so that sums round alike."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}


def train(output: Path, *arguments: object, pictures: bool = False) -> Path:
    """Trains a small model in this process, which saves seconds of imports; its errors are raised.

    Without `pictures`, their files are empty: drawing takes longer than training so small a model.
    """
    import train
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # another precision is refused otherwise
    command = ["train.py", "--output", output, *TINY, *arguments]
    with contextlib.ExitStack() as patches:
        patches.enter_context(mock.patch.object(sys, "argv", list(map(str, command))))
        for name in () if pictures else ("save_curves", "save_predictions"):
            patches.enter_context(mock.patch.object(train, name, lambda *given: Path(given[-1]).touch()))
        train.main()
    return output


def run(script: str, *arguments: object, text: bytes = b"") -> tuple[int, str, str]:
    """Runs a script's `main` in this process; returns its exit status and output. Its own errors end it as usual."""
    import importlib

    from config import command

    main = importlib.import_module(script.removesuffix(".py")).main
    out, errors, code = io.StringIO(), io.StringIO(), 0
    given = io.TextIOWrapper(io.BytesIO(text))
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
        mock.patch.object(sys, "argv", [script, *map(str, arguments)]),
        mock.patch.object(sys, "stdin", given),
    ):
        try:
            command(main)
        except SystemExit as end:
            code = 1 if isinstance(end.code, str) else end.code or 0
            errors.write(str(end.code))
    return code, out.getvalue(), errors.getvalue()


def start(*arguments: object, before: Sequence[str] = ()) -> subprocess.Popen:
    """Starts train.py in its own process, with the arguments `before` in front."""
    command = [sys.executable, *before, str(EXAMPLE / "train.py"), *TINY, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment(), **pipes)


def metrics(folder: Path) -> list[dict]:
    """A run's epochs, without the values that differ between equal runs."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "tokens_per_second")} for line in lines]


def state(folder: Path) -> dict[str, torch.Tensor]:
    """A run's best model and its last checkpoint, by name."""
    from safetensors.torch import load_file

    trainer = torch.load(folder / "last.pt", weights_only=True)["trainer"]
    moments = trainer["optimizer"]["state"]
    return (
        load_file(folder / "best.safetensors")
        | {f"last {name}": value for name, value in trainer["model"].items()}
        | {f"{i} {name}": value for i, of_one in moments.items() for name, value in of_one.items()}
    )


def write_parquet(folder: Path, train: int = 40, test: int = 12, unlabelled: int = 0) -> Path:
    """A small corpus as parquet."""
    import pyarrow
    import pyarrow.parquet
    import sample

    folder.mkdir(parents=True, exist_ok=True)
    parts = dict(zip(("train", "test"), sample.corpus(train, test), strict=True))
    if unlabelled:
        parts["unsupervised"] = (sample.generate(unlabelled, seed=2)[0], [-1] * unlabelled)
    for part, (texts, labels) in parts.items():
        pyarrow.parquet.write_table(pyarrow.table({"text": texts, "label": labels}), folder / f"{part}.parquet")
    return folder


def write_tree(folder: Path, train: int = 40, test: int = 12) -> Path:
    """The same in the folders of the extracted aclImdb."""
    import sample

    for part, (texts, labels) in zip(("train", "test"), sample.corpus(train, test), strict=True):
        for i, (text, label) in enumerate(zip(texts, labels, strict=True)):
            path = folder / part / ("neg", "pos")[label] / f"{i}_{1 + 8 * label}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return folder
