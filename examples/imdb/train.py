"""Trains a GRU to tell positive film reviews from negative ones.

    python examples/imdb/train.py --preset book-masked --data sample
    python examples/imdb/train.py --preset book --data hub --gru torch --device cuda
    torchrun --nproc-per-node=2 examples/imdb/train.py --preset book-masked --data PATH

Results go to a folder, see run_folder.py. The model is chosen on validation data; the test set is read once, at the
end.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from batches import EvaluationBatches, TrainingBatches, loader
from data import DataError, build_vocabulary, encode, load, split
from model import build, parameter_count
from plots import save_curves
from presets import PRESETS
from run_folder import RunError, RunFolder
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

import grucore


def commit() -> str | None:
    """The checkout's commit, None outside one."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


COMMIT = commit()  # of the code that runs, whatever is committed while it does


def options() -> argparse.Namespace:
    """The command line; flags that are not given take the preset's values."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=list(PRESETS), default="book-masked")
    parser.add_argument("--data", default="sample", help="sample, hub, or a folder (parquet or aclImdb)")
    parser.add_argument("--gru", choices=["grucore", "torch"], default="grucore", help="whose layer")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--patience", type=int, help="stop after so many epochs without a lower validation loss")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--output", type=Path, help="the run's folder; default runs/imdb-PRESET-DATA-GRU-SEED")
    parser.add_argument("--resume", action="store_true", help="continue the run in --output")
    parser.add_argument("--describe", action="store_true", help="print what would be trained as JSON, and stop")
    for name in ("embedding-size", "hidden-size", "batch-size"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("dropout", "learning-rate"):
        parser.add_argument(f"--{name}", type=float)
    return parser.parse_args()


def configuration(given: argparse.Namespace) -> dict:
    """The preset with the command line's overrides: all that decides a run's result."""
    config = {"preset": given.preset, "gru": given.gru, "seed": given.seed, "patience": given.patience}
    for name, value in PRESETS[given.preset].items():
        override = getattr(given, name, None)
        config[name] = value if override is None else override
    for name in ("epochs", "batch_size", "embedding_size", "hidden_size"):
        if config[name] < 1:
            raise RunError(f"--{name.replace('_', '-')} must be 1 or more, got {config[name]}")
    is_folder = given.data not in ("sample", "hub")
    config["data"] = "folder" if is_folder else given.data
    config["data_path"] = given.data if is_folder else None
    return config


class Processes:
    """This process among those that torchrun started, or alone."""

    def __init__(self, device: str):
        self.rank, self.count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if device == "cuda" and not torch.cuda.is_available():
            raise RunError("--device cuda needs a GPU that this PyTorch can use, and there is none; --device cpu works")
        on_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
        self.device = torch.device("cuda", local_rank) if on_cuda else torch.device("cpu")
        if on_cuda:
            torch.cuda.set_device(self.device)
        if self.count > 1:
            dist.init_process_group("nccl" if on_cuda else "gloo")
        self.first = self.rank == 0

    def sum(self, values: torch.Tensor) -> list[float]:
        """The sum of each value over all processes."""
        if self.count > 1:
            dist.all_reduce(values)
        return values.tolist()

    def random_states(self) -> list[torch.Tensor]:
        """Each process's generator of dropout masks."""
        state = torch.cuda.get_rng_state() if self.device.type == "cuda" else torch.get_rng_state()
        states: list = [state] * self.count
        if self.count > 1:
            dist.all_gather_object(states, state)
        return states

    def set_random_state(self, states: list[torch.Tensor]) -> None:
        """Continues where `random_states` was taken."""
        (torch.cuda.set_rng_state if self.device.type == "cuda" else torch.set_rng_state)(states[self.rank])

    def barrier(self) -> None:
        """Waits for the others."""
        if self.count > 1:
            dist.barrier()


def run_epoch(
    model: nn.Module,
    batches: DataLoader,
    processes: Processes,
    name: str,
    optimizer: torch.optim.Optimizer | None = None,
) -> tuple[float, float, float]:
    """Mean loss, accuracy and tokens per second of one pass; trains if there is an optimizer."""
    training = optimizer is not None
    model.train(training)
    totals = torch.zeros(4, dtype=torch.float64, device=processes.device)  # loss, right, reviews, tokens
    on_terminal = sys.stderr.isatty()
    bar = tqdm(batches, desc=name, unit="batch", leave=False, disable=not (processes.first and on_terminal))
    begin = time.perf_counter()
    with torch.set_grad_enabled(training):
        for i, batch in enumerate(bar, 1):
            tokens, labels, weights = (t.to(processes.device, non_blocking=True) for t in (batch.tokens, *batch[2:4]))
            lengths = batch.lengths.to(processes.device, non_blocking=True)
            logits = model(tokens, lengths)
            losses = cross_entropy(logits, labels, reduction="none") * weights
            if training:
                optimizer.zero_grad(set_to_none=True)
                # DistributedDataParallel takes the mean over processes of what should be the mean over reviews.
                (losses.sum() * (processes.count / batch.total)).backward()
                optimizer.step()
            right = (logits.argmax(1) == labels) * weights
            totals += torch.stack([losses.detach().sum(), right.sum(), weights.sum(), (lengths * weights).sum()])
            if processes.first and i % 20 == 0 and (on_terminal or i % 100 == 0):
                loss, right_share, rate = _means(totals.tolist(), time.perf_counter() - begin)
                if on_terminal:
                    bar.set_postfix(loss=f"{loss:.4f}", accuracy=f"{right_share:.4f}", tokens_per_s=f"{rate:,.0f}")
                elif training:
                    print(f"{name}: batch {i}/{len(batches)}, loss {loss:.4f}, {rate:,.0f} tokens/s", flush=True)
    return _means(processes.sum(totals), time.perf_counter() - begin)


def _means(totals: list[float], seconds: float) -> tuple[float, float, float]:
    loss, right, reviews, tokens = totals
    return loss / reviews, right / reviews, tokens / seconds


def train(config: dict, corpus: dict, folder: RunFolder, processes: Processes, resumed: bool) -> None:
    """Trains to the last epoch (or until patience ends), saving after each."""
    seed = config["seed"]
    model = build(config, len(corpus["vocabulary"])).to(processes.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config["learning_rate"], fused=True)
    torch.manual_seed(seed * 1000 + processes.rank)  # dropout masks differ between processes
    metrics: list[dict] = []
    if resumed:
        checkpoint = folder.read_checkpoint()
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        if len(checkpoint["random_states"]) != processes.count:
            raise RunError(
                f"{folder.path} was trained by {len(checkpoint['random_states'])} processes, now {processes.count}"
            )
        processes.set_random_state(checkpoint["random_states"])
        metrics = checkpoint["metrics"]
        if processes.first:
            print(f"resuming {folder.path} after epoch {len(metrics)}", flush=True)
    wrapped = DistributedDataParallel(model) if processes.count > 1 else model

    lengths = [len(row) for row in corpus["train"].tokens]
    order = TrainingBatches(lengths, config["batch_size"], seed, bucketed=config["masked"])
    training = loader(corpus["train"], order, processes.rank, processes.count)
    validation = evaluation_loader(corpus["validation"], config, processes)
    for epoch in range(len(metrics) + 1, config["epochs"] + 1):
        if metrics and config["patience"] is not None:
            best = min(metrics, key=lambda line: line["validation_loss"])["epoch"]
            if epoch - 1 - best >= config["patience"]:
                break
        begin = time.perf_counter()
        order.epoch = epoch
        loss, accuracy, rate = run_epoch(wrapped, training, processes, f"epoch {epoch}", optimizer)
        validation_loss, validation_accuracy, _ = run_epoch(model, validation, processes, f"epoch {epoch} validation")
        line = {"epoch": epoch, "train_loss": loss, "train_accuracy": accuracy, "validation_loss": validation_loss}
        line |= {"validation_accuracy": validation_accuracy, "tokens_per_second": round(rate)}
        line |= {"seconds": round(time.perf_counter() - begin, 2)}
        best_so_far = all(validation_loss < earlier["validation_loss"] for earlier in metrics)
        metrics.append(line)
        random_states = processes.random_states()
        if processes.first:
            print(
                f"epoch {epoch}/{config['epochs']}: train loss {loss:.4f}, validation loss {validation_loss:.4f}, "
                f"validation accuracy {validation_accuracy:.4f}, {line['seconds']} s, {rate:,.0f} tokens/s"
                + (" *" if best_so_far else ""),
                flush=True,
            )
            if best_so_far:
                folder.write_model(model.state_dict())
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            folder.write_checkpoint(state | {"metrics": metrics, "random_states": random_states})
            folder.write_metrics(metrics)
            folder.write("curves.png", lambda path: save_curves(metrics, folder.path.name, path))
        processes.barrier()


def evaluation_loader(encoded, config: dict, processes: Processes) -> DataLoader:
    """All reviews of a part by length."""
    batches = EvaluationBatches([len(row) for row in encoded.tokens], config["batch_size"])
    return loader(encoded, batches, processes.rank, processes.count)


def test(config: dict, corpus: dict, folder: RunFolder, processes: Processes) -> None:
    """Reads the test set once with the best model, and writes the summary."""
    model = build(config, len(corpus["vocabulary"]))
    model.load_state_dict(folder.read_model())
    model.to(processes.device)
    loss, accuracy, _ = run_epoch(model, evaluation_loader(corpus["test"], config, processes), processes, "test")
    if not processes.first:
        return
    metrics = folder.read_checkpoint()["metrics"]
    best = min(metrics, key=lambda line: line["validation_loss"])
    summary = {
        "test_accuracy": accuracy,
        "test_loss": loss,
        "best_epoch": best["epoch"],
        "validation_loss": best["validation_loss"],
        "validation_accuracy": best["validation_accuracy"],
        "epochs": len(metrics),
        "seconds": round(sum(line["seconds"] for line in metrics), 2),
        "tokens_per_second": round(sum(line["tokens_per_second"] for line in metrics) / len(metrics)),
        "parameters": parameter_count(model),
        "processes": processes.count,
        "versions": {"grucore": grucore.__version__} | {name: version(name) for name in ("torch", "numpy", "triton")},
        "python": sys.version.split()[0],
        "device": torch.cuda.get_device_name()
        if processes.device.type == "cuda"
        else f"cpu, {torch.get_num_threads()} threads",
        "commit": COMMIT,
        "command": shlex.join(["python", *sys.argv]),
    }
    folder.write_json("summary.json", summary)
    print(f"test accuracy {accuracy:.4f}, test loss {loss:.4f}, from epoch {best['epoch']}; see {folder.path}")


def version(package: str) -> str | None:
    """A package's version, None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> None:
    """Reads the data, trains, tests."""
    given = options()
    config = configuration(given)
    processes = Processes(given.device)
    config["device"] = processes.device.type
    train_reviews, test_reviews = load(given.data)
    vocabulary = build_vocabulary(train_reviews.texts)  # before the split, as the published pipeline does
    parts = dict(zip(("train", "validation"), split(train_reviews, given.seed), strict=True)) | {"test": test_reviews}
    if given.describe:
        sizes = {name: len(part.texts) for name, part in parts.items()}
        model = build(config, len(vocabulary))
        description = sizes | {"vocabulary": len(vocabulary), "classes": len(set(train_reviews.labels))}
        print(json.dumps(description | {"parameters": parameter_count(model)} | config))
        return

    folder = RunFolder(
        given.output or Path("runs") / f"imdb-{config['preset']}-{config['data']}-{config['gru']}-{given.seed}"
    )
    resumed = (folder / "last.pt").exists()
    if processes.first:
        resumed = folder.start(config, vocabulary, given.resume)
        if given.data == "sample":
            print("--data sample: synthetic reviews from a grammar, not IMDB", flush=True)
    processes.barrier()
    corpus = {name: encode(part, vocabulary) for name, part in parts.items()} | {"vocabulary": vocabulary}
    try:
        train(config, corpus, folder, processes, resumed)
        test(config, corpus, folder, processes)
    except KeyboardInterrupt:
        saved = "all epochs before this one are" if (folder / "last.pt").exists() else "no epoch is"
        sys.stderr.write(
            f"\ninterrupted: {saved} saved in {folder.path}; continue with --resume --output {folder.path}\n"
        )
        sys.exit(130)
    finally:
        if processes.count > 1:
            dist.destroy_process_group()


if __name__ == "__main__":
    try:
        main()
    except (DataError, RunError) as error:
        sys.exit(f"error: {error}")
