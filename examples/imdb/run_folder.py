"""A run's folder: what is in it, how it is written so that nothing is ever half there, and when it may be used.

config.json        what was trained, and how
vocabulary.json    the words in the order of their ids
metrics.jsonl      a line an epoch
best.safetensors   the model with the lowest validation loss
last.pt            all that the next epoch needs
curves.png         loss and accuracy against epochs
summary.json       the test result, when the run has ended
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

FREE_TO_CHANGE = {"epochs", "patience", "device", "data_path"}  # between a run and its continuation


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

    def start(self, config: dict[str, Any], vocabulary: list[str], resume: bool) -> bool:
        """Makes the folder for a new run, or checks that it holds the run to continue. True if there is one.

        Raises:
            RunError: the folder holds a run and `resume` is not given, or another run than the one described.
        """
        if not (self / "config.json").exists():
            if self.path.exists() and any(self.path.iterdir()):
                raise RunError(f"{self.path} holds files and no run: give an empty or a new folder as --output")
            self.path.mkdir(parents=True, exist_ok=True)
            self.write_json("vocabulary.json", vocabulary)
            self.write_json("config.json", config)
            return False
        if not resume:
            raise RunError(f"{self.path} holds a run already: continue it with --resume, or give another --output")
        before = self.read_json("config.json")
        names = (before.keys() | config.keys()) - FREE_TO_CHANGE
        differing = [name for name in sorted(names) if before.get(name) != config.get(name)]
        if differing:
            changes = ", ".join(f"{name}: {before.get(name)!r} there, {config.get(name)!r} now" for name in differing)
            raise RunError(f"{self.path} holds another run ({changes}): give another --output")
        if self.read_json("vocabulary.json") != vocabulary:
            raise RunError(f"{self.path} was trained with another vocabulary: the data have changed since")
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
        self.write(name, lambda path: Path(path).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n"))

    def write_metrics(self, metrics: list[dict[str, Any]]) -> None:
        """Writes all epochs so far, a line each."""
        lines = "".join(json.dumps(line) + "\n" for line in metrics)
        self.write("metrics.jsonl", lambda path: Path(path).write_text(lines))

    def write_model(self, state: dict[str, Tensor]) -> None:
        """Writes the best model."""
        self.write("best.safetensors", lambda path: Path(path).write_bytes(save(state)))

    def write_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Writes what the next epoch needs."""
        self.write("last.pt", lambda path: torch.save(checkpoint, path))

    def read_json(self, name: str) -> Any:
        """A JSON file of the run.

        Raises:
            RunError: it is missing or no JSON.
        """
        try:
            return json.loads((self / name).read_text())
        except (OSError, ValueError) as error:
            raise RunError(f"{self / name} must be the {name} of a run: {error}") from error

    def read_model(self) -> dict[str, Tensor]:
        """The best model's tensors.

        Raises:
            RunError: the file is missing or damaged.
        """
        try:
            return load_file(self / "best.safetensors")
        except (OSError, SafetensorError) as error:
            raise RunError(f"{self / 'best.safetensors'} must be the model of a run: {error}") from error

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
