"""A run's folder: what is in it, how it is written so that nothing is ever half there, and when it may be used.

config.json        what was trained, and how; the format's version
vocabulary.json    the words in the order of their ids
tokenizer.json     how a text is cut into them, where that takes more than white space
metrics.jsonl      a line an epoch
best.safetensors   the model with the lowest validation loss
last.pt            all that the next step needs
curves.png         loss and accuracy against epochs
summary.json       the test result, when the run has ended
predictions.png    where it errs (confusion) and how sure it is (calibration)
language-model/    the first stage of `semi`, in the same form
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import vocabularies
from presets import COMMON
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor
from vocabularies import Vocabulary

FORMAT = 2
READABLE = (1, FORMAT)  # 1 had no `format`, and neither tokenizer.json nor metadata in best.safetensors
FREE_TO_CHANGE = {"epochs", "patience", "device", "data_path"}  # between a run and its continuation
BEFORE_CONFIG = {"vocabulary.json", "tokenizer.json"}  # all that a run killed at its very start can leave


class RunError(Exception):
    """A run folder that cannot be used, or a file in it that cannot be written or read."""


class RunFolder:
    """The folder of one run.

    Args:
        path: the folder; made by `start`.
    """

    def __init__(self, path: Path):
        self.path = path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def start(self, config: dict[str, Any], vocabulary: Vocabulary, resume: bool) -> bool:
        """Makes the folder for a new run, or checks that it holds the run to continue. True if there is one.

        Raises:
            RunError: the folder holds a run and `resume` is not given, or another run than the one described.
        """
        config = config | {"format": FORMAT}
        if not (self / "config.json").exists():
            found = {path.name for path in self.path.iterdir()} if self.path.exists() else set()
            if any(name not in BEFORE_CONFIG and not name.startswith(".unfinished-") for name in found):
                raise RunError(f"{self.path} holds files and no run: give an empty or a new folder as --output")
            self.path.mkdir(parents=True, exist_ok=True)
            for name, contents in vocabulary.files().items():
                self._write_text(name, contents)
            self.write_json("config.json", config)
            return False
        if not resume:
            raise RunError(f"{self.path} holds a run already: continue it with --resume, or give another --output")
        before = self.read_config()
        # A schedule that ends with the last epoch runs differently towards another one.
        fixed = {"epochs"} if config.get("schedule", "constant") != "constant" else set()
        names = (before.keys() | config.keys()) - (FREE_TO_CHANGE - fixed)
        pairs = {name: [made.get(name, COMMON.get(name)) for made in (before, config)] for name in sorted(names)}
        changes = ", ".join(f"{name}: {old!r} there, {new!r} now" for name, (old, new) in pairs.items() if old != new)
        if changes:
            raise RunError(f"{self.path} holds another run ({changes}): give another --output")
        there, now = self.read_vocabulary(), vocabulary
        if there.fingerprint() != now.fingerprint():
            raise RunError(
                f"{self.path} was trained with another vocabulary ({_named(there)} there, {_named(now)} now): "
                "the data have changed since"
            )
        return (self / "last.pt").exists()

    def write(self, name: str, write_to: Callable[[str], object]) -> None:
        """Writes a file by way of a temporary one, so that the file is always whole, whatever goes wrong.

        Raises:
            RunError: it could not be written; what stood there before is untouched.
        """
        temporary = self / f".unfinished-{name}"
        try:
            write_to(str(temporary))
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(self / name)
        except (OSError, RuntimeError) as error:  # torch.save makes a RuntimeError of a full disk
            raise RunError(f"could not write {self / name}: {error}. The file before it, if any, is whole") from error
        finally:
            temporary.unlink(missing_ok=True)

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file."""
        self._write_text(name, json.dumps(value, indent=1, ensure_ascii=False) + "\n")

    def _write_text(self, name: str, text: str) -> None:
        self.write(name, lambda path: Path(path).write_text(text, encoding="utf-8"))

    def write_metrics(self, metrics: list[dict[str, Any]]) -> None:
        """Writes all epochs so far, a line each."""
        self._write_text("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in metrics))

    def write_model(self, state: dict[str, Tensor], vocabulary: Vocabulary) -> None:
        """Writes the best model, and which vocabulary it was trained with."""
        metadata = {"vocabulary": _named(vocabulary), "format": str(FORMAT)}
        state = {name: tensor.contiguous() for name, tensor in state.items()}
        self.write("best.safetensors", lambda path: Path(path).write_bytes(save(state, metadata)))

    def write_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Writes what the next step needs."""
        self.write("last.pt", lambda path: torch.save(checkpoint, path))

    def read_json(self, name: str) -> Any:
        """A JSON file of the run.

        Raises:
            RunError: it is missing or no JSON.
        """
        try:
            return json.loads((self / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{self / name} must be the {name} of a run: {error}") from error

    def read_config(self) -> dict[str, Any]:
        """The run's configuration.

        Raises:
            RunError: it is missing, or of a version that this code does not know.
        """
        config = self.read_json("config.json")
        if not isinstance(config, dict):
            raise RunError(f"{self / 'config.json'} must be the config.json of a run, got a {type(config).__name__}")
        if (version := config.get("format", 1)) not in READABLE:
            known = " and ".join(map(str, READABLE))
            raise RunError(f"{self.path} holds a run of format {version!r}; this code reads formats {known}")
        return config

    def read_vocabulary(self) -> Vocabulary:
        """The run's vocabulary.

        Raises:
            RunError: it is missing or damaged.
        """
        try:
            return vocabularies.read(self.path)
        except (OSError, ValueError) as error:
            raise RunError(f"{self / 'vocabulary.json'} must be the vocabulary.json of a run: {error}") from error

    def read_model(self, vocabulary: Vocabulary | None = None) -> dict[str, Tensor]:
        """The best model's tensors.

        Args:
            vocabulary: the one that it is to be used with.

        Raises:
            RunError: the file is missing or damaged, or was trained with another vocabulary.
        """
        path = self / "best.safetensors"
        try:
            with safe_open(path, framework="pt") as file:
                trained = (file.metadata() or {}).get("vocabulary")
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise RunError(f"{path} must be the model of a run: {error}") from error
        if vocabulary is not None and trained not in (None, _named(vocabulary)):
            raise RunError(
                f"{path} was trained with the vocabulary {trained}, but vocabulary.json beside it is "
                f"{_named(vocabulary)}"
            )
        return tensors

    def read_checkpoint(self) -> dict[str, Any]:
        """What `write_checkpoint` wrote.

        Raises:
            RunError: the file is missing or damaged.
        """
        try:
            return torch.load(self / "last.pt", map_location="cpu", weights_only=True)
        except (
            Exception
        ) as error:  # torch.load raises by what it stumbles over: RuntimeError, UnpicklingError, EOFError
            raise RunError(f"{self / 'last.pt'} must be the checkpoint of a run: {error}") from error


def _named(vocabulary: Vocabulary) -> str:
    return f"{vocabulary.fingerprint()} of {len(vocabulary.words)} words"
