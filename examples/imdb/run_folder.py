"""A run's folder: its files, written atomically, and the checks before it is used.

config.json        the configuration, with the format's version
vocabulary.json    the tokenizer, in the format of the `tokenizers` library
metrics.jsonl      one line per epoch
best.safetensors   the model: each GRU from the epoch with its lowest validation loss
last.pt            the state that the next step needs
curves.png         loss and accuracy against epochs
summary.json       the test result, when the run has ended
predictions.png    confusion matrix and calibration
soft-labels.safetensors    of `semi`: the teacher's labels of the unlabelled reviews
pretrained.safetensors     where the GRUs of `best` and `semi` start; pretraining.pt until it is complete
.lock              held by the process that trains the run
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from config import UserError
from filelock import FileLock, Timeout
from model import Judge
from safetensors import safe_open
from safetensors.torch import load_file, save
from tokenizers import Tokenizer
from torch import Tensor

FORMAT = 4


class RunFolder:
    """The folder of one run; `start` makes it. Of several processes, one `writes`; the others' writes do nothing."""

    def __init__(self, path: Path, writes: bool = True):
        self.path, self.writes = path, writes

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def start(self, config: dict[str, Any], resume: bool, learn: Callable[[], Tokenizer]) -> None:
        """Creates the folder of a new run, with a vocabulary from `learn`, or checks that it contains this run.

        From then on no other process can start it, as long as this object exists.
        """
        is_new = not (self / "config.json").exists()
        if not is_new and not resume:
            raise UserError(f"{self.path} already contains a run: continue it with --resume, or give another --output")
        found = {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()
        if is_new and any(not name.startswith(".unfinished-") for name in found - {".lock", "vocabulary.json"}):
            raise UserError(f"{self.path} contains files but not a run: give an empty or a new folder as --output")
        self._held = FileLock(self / ".lock", is_singleton=True)
        try:
            self._held.acquire(timeout=0)  # makes the folder
        except Timeout:
            raise UserError(
                f"{self.path} contains a run that another process is training: wait until it ends"
            ) from None
        except OSError as error:
            raise UserError(f"could not write {self / '.lock'}: {error}") from error
        if is_new:
            self.write_text("vocabulary.json", learn().to_str(pretty=True) + "\n")
        before = config if is_new else self.read_config()
        # The schedule depends on the number of epochs, and so does where the next GRU begins.
        may_change = {"epochs"} if config["schedule"] == "constant" and config["members"] == 1 else set()
        names = (before.keys() | config.keys()) - may_change
        pairs = {name: (before.get(name), config.get(name)) for name in sorted(names)}
        if changes := [f"{name}: {old!r} there, {new!r} now" for name, (old, new) in pairs.items() if old != new]:
            raise UserError(f"{self.path} contains another run ({', '.join(changes)}): give another --output")
        if is_new or before != config:
            self.write_text("config.json", json.dumps(config | {"format": FORMAT}, indent=1) + "\n")

    def write(self, name: str, write_to: Callable[[str], object]) -> None:
        """Writes a file atomically, by way of a temporary one."""
        if not self.writes:
            return
        temporary = self / f".unfinished-{name}"
        try:
            write_to(str(temporary))
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(self / name)
        except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError if the disk is full
            raise UserError(f"could not write {self / name}: {error}. The previous file, if any, is intact") from error
        finally:
            with contextlib.suppress(OSError):  # of a folder that cannot be written to
                temporary.unlink(missing_ok=True)

    def write_text(self, name: str, text: str) -> None:
        """Writes a text file."""
        self.write(name, lambda path: Path(path).write_text(text, encoding="utf-8"))

    def write_tensors(self, name: str, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
        """Writes a safetensors file."""
        self.write(name, lambda path: Path(path).write_bytes(save(tensors, metadata)))

    def write_judge(self, judge: Judge, tokenizer: Tokenizer) -> None:
        """Writes the model, with its vocabulary and the number of members trained so far."""
        metadata = {"vocabulary": named(tokenizer), "members": str(len(judge.members)), "format": str(FORMAT)}
        state = {name: tensor.cpu().contiguous() for name, tensor in judge.state_dict().items()}
        if self.read_config()["stored"] == "float16":
            state = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
        self.write_tensors("best.safetensors", state, metadata)

    def read_config(self) -> dict[str, Any]:
        """Reads the run's configuration, which must have the format of this code."""
        with self._reading("config.json", "the config.json of a run"):
            config = json.loads((self / "config.json").read_text(encoding="utf-8"))
            version = config.pop("format", 1)
        if version != FORMAT:
            raise UserError(f"{self.path} contains a run of format {version!r}; this code reads format {FORMAT}")
        return config

    def read_tokenizer(self) -> Tokenizer:
        """Reads the run's tokenizer."""
        with self._reading("vocabulary.json", "the vocabulary.json of a run"):
            return Tokenizer.from_str((self / "vocabulary.json").read_text(encoding="utf-8"))

    def read_judge(self, tokenizer: Tokenizer) -> Judge:
        """Reads the best model, in evaluation mode; it must match the run's `tokenizer` and configuration."""
        path, config = self / "best.safetensors", self.read_config()
        expected = "the model of config.json and vocabulary.json"
        with self._reading(path.name, expected), safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            for name, of_folder in (("format", str(FORMAT)), ("vocabulary", named(tokenizer))):
                if (there := metadata.get(name)) != of_folder:
                    raise ValueError(f"it was written with {name} {there}, but the folder has {name} {of_folder}")
            judge = Judge(SimpleNamespace(**config), tokenizer.get_vocab_size(), int(metadata["members"]))
            judge.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118, no dictionary
        return judge.eval()

    def digest(self) -> str:
        """A short digest of the model."""
        with self._reading("best.safetensors", "the model of a run"):
            return hashlib.sha256((self / "best.safetensors").read_bytes()).hexdigest()[:16]

    def read_tensors(self, name: str) -> dict[str, Tensor]:
        """Reads a safetensors file that is not a model."""
        with self._reading(name, "a file of this run (delete it, to make it again)"):
            return load_file(self / name)

    def read_checkpoint(self, name: str = "last.pt") -> dict[str, Any]:
        """Reads a checkpoint."""
        with self._reading(name, "the checkpoint of a run"):
            return torch.load(self / name, map_location="cpu", weights_only=True)  # executes nothing in the file

    @contextlib.contextmanager
    def _reading(self, name: str, expected: str) -> Iterator[None]:
        """Names the file and what it must be in each error; the libraries raise many kinds."""
        try:
            yield
        except Exception as error:
            raise UserError(f"{self / name} must be {expected}: {error}") from error


def named(tokenizer: Tokenizer) -> str:
    """A short digest of a vocabulary, equal if the ids are."""
    digest = hashlib.sha256(tokenizer.to_str().encode()).hexdigest()[:16]
    return f"{digest} of {tokenizer.get_vocab_size()} words"


DESCRIBE = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
# Of the running code, even if something is committed meanwhile.
COMMIT = (shutil.which("git") and subprocess.run(DESCRIBE, capture_output=True, text=True).stdout.strip()) or None


def provenance(device: torch.device) -> dict[str, Any]:
    """The provenance of a result: versions, processor, threads, device, commit, command."""
    packages = ("grucore", "torch", "numpy", "scipy", "triton", "accelerate", "datasets", "tokenizers")
    installed = {each.metadata["Name"]: each.version for each in importlib.metadata.distributions()}
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.*)", cpuinfo.read_text() if cpuinfo.exists() else "", re.MULTILINE)
    return {
        "versions": {package: installed.get(package) for package in packages},
        "python": platform.python_version(),
        "processor": found[1] if found else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "commit": COMMIT,
        "command": shlex.join(["python", *sys.argv]),
    }
