"""Trains a sentiment classifier on film reviews, on one CPU or GPU or, started by torchrun, on several.

    python examples/imdb/train.py                                        # synthetic reviews, no network
    python examples/imdb/train.py --preset best --data PATH --output runs/best
    python examples/imdb/train.py --preset best --data PATH --output runs/best --resume
    python examples/imdb/train.py --preset best --data PATH --output runs/best --seeds 0-4
    torchrun --nproc-per-node=2 examples/imdb/train.py --preset best --data PATH

Results go to a folder, see run_folder.py. The model is chosen on validation data; the test set is read once, at the
end.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from itertools import repeat
from pathlib import Path
from typing import Any

import cache
import torch
import vocabularies
from batches import EndlessBatches, TrainingBatches, loader
from data import DataError, Encoded, Reviews, load, load_unlabelled, overlap, split, split_stratified
from evaluation import calibration_error, evaluate
from model import build, parameter_count
from options import check_precision, configuration, describe, parse
from plots import save_curves, save_predictions
from pretrain import pretrain
from processes import Processes
from provenance import provenance
from run_folder import RunError, RunFolder
from seeds import run_seeds
from tensorboard_log import TensorBoard
from tqdm import tqdm
from trainer import Trainer
from vocabularies import Vocabulary


def divide(config: dict, reviews: Reviews) -> tuple[Reviews, Reviews]:
    """Training and validation parts."""
    if config["model"] == "segments":
        return split_stratified(reviews, config["seed"], config["train_share"])
    return split(reviews, config["seed"], config["train_share"])


def train(
    config: dict,
    corpus: dict[str, Encoded],
    vocabulary: Vocabulary,
    folder: RunFolder,
    processes: Processes,
    given: argparse.Namespace,
) -> None:
    """Trains to the last epoch (or until patience ends), saving after each and every --checkpoint-every steps."""
    seed = config["seed"]
    model = build(config, len(vocabulary.words))
    if config.get("ngrams"):
        model.ngrams.fit(corpus["train"].tokens, corpus["train"].labels)
    if (folder / "language-model" / "best.safetensors").exists():
        weights = RunFolder(folder / "language-model").read_model(vocabulary)
        model.load_state_dict({k: v for k, v in weights.items() if k.startswith(("embedding.", "gru."))}, strict=False)
    model.to(processes.device)
    workers = 2 if processes.device.type == "cuda" else 0  # a step on a CPU takes a hundred times as long as its batch
    lengths = [len(row) for row in corpus["train"].tokens]
    order = TrainingBatches(lengths, config["batch_size"], seed, config["bucketed"])
    batches = loader(corpus["train"], order, processes.rank, processes.count, workers)
    unlabelled_order, unlabelled = None, None
    if "unlabelled" in corpus:
        lengths = [len(row) for row in corpus["unlabelled"].tokens]
        pool = TrainingBatches(lengths, config["unlabelled_batch_size"], seed + 1, bucketed=True)
        unlabelled_order = EndlessBatches(pool)
        unlabelled = loader(corpus["unlabelled"], unlabelled_order, processes.rank, processes.count, workers)

    trainer = Trainer(model, config, order.count * config["epochs"], processes)
    torch.manual_seed(seed * 1000 + processes.rank)  # dropout masks differ between processes
    metrics: list[dict[str, Any]] = []
    totals = torch.zeros(4, dtype=torch.float64, device=processes.device)  # loss, right, reviews, tokens
    done, spent = 0, 0.0  # steps and seconds of an epoch that was interrupted
    if (folder / "last.pt").exists():
        checkpoint = folder.read_checkpoint()
        trainer.load_state(checkpoint["trainer"])
        random_states = checkpoint["random_states"]
        processes.set_random_state(random_states)
        metrics, done, spent = (checkpoint[name] for name in ("metrics", "done", "spent"))
        if processes.first:
            totals += checkpoint["totals"].to(totals.device)
            print(f"resuming {folder.path} after epoch {len(metrics)}" + (f", step {done}" if done else ""), flush=True)
            save_metrics(metrics, folder)  # a kill may have come between the checkpoint and these

    def save() -> None:
        so_far = torch.tensor(processes.sum(totals.clone()), dtype=torch.float64)
        now = processes.random_states()
        if processes.first:
            state = {"trainer": trainer.state(), "metrics": metrics, "random_states": now}
            seconds = time.perf_counter() - begin
            folder.write_checkpoint(state | {"done": order.begin, "totals": so_far, "spent": seconds})

    board = TensorBoard(folder, given.tensorboard and processes.first, trainer.step_count)
    for epoch in range(len(metrics) + 1, config["epochs"] + 1):
        if patience_ended(metrics, config["patience"]):
            break
        begin = time.perf_counter() - spent
        order.epoch, order.begin = epoch, done
        stream, beside = iter(batches), repeat(None)
        if unlabelled_order is not None:
            unlabelled_order.begin = trainer.step_count
            beside = iter(unlabelled)
        if done:
            processes.set_random_state(random_states)  # making an iterator draws a number, and has drawn it before
        on_terminal = sys.stderr.isatty()
        silent = not (processes.first and on_terminal)
        bar = tqdm(total=order.count, initial=done, desc=f"epoch {epoch}", unit="batch", leave=False, disable=silent)
        for i, batch in enumerate(stream, done + 1):
            totals += trainer.step(batch, next(beside))
            bar.update()
            if processes.first and i % 20 == 0 and (on_terminal or i % 100 == 0):
                loss, accuracy, rate = means(totals.tolist(), time.perf_counter() - begin)
                bar.set_postfix(loss=f"{loss:.4f}", accuracy=f"{accuracy:.4f}", tokens_per_s=f"{rate:,.0f}")
                board.add(
                    {"train/loss": loss, "train/accuracy": accuracy, "tokens_per_second": rate}, trainer.step_count
                )
                if not on_terminal:
                    rates = f"loss {loss:.4f}, {rate:,.0f} tokens/s"
                    print(f"epoch {epoch}: batch {i}/{order.count}, {rates}", flush=True)
            if given.checkpoint_every and i % given.checkpoint_every == 0 and i < order.count:
                order.begin = i
                save()
        bar.close()
        loss, accuracy, rate = means(processes.sum(totals), time.perf_counter() - begin)
        if not math.isfinite(loss):
            raise RunError(f"the loss of epoch {epoch} is {loss}: try a lower --learning-rate. The checkpoint is older")
        found = evaluate(trainer.evaluated, corpus["validation"], config["batch_size"], processes, choose_share=True)
        line = {"epoch": epoch, "train_loss": loss, "train_accuracy": accuracy, "validation_loss": found.loss}
        line |= {"validation_accuracy": found.accuracy}
        line |= {f"validation_accuracy_{path}": value for path, value in found.paths.items()}
        if found.paths:
            line["gru_share"] = round(trainer.evaluated.share.item(), 2)
        line |= {"tokens_per_second": round(rate), "seconds": round(time.perf_counter() - begin, 2)}
        best_so_far = all(found.loss < earlier["validation_loss"] for earlier in metrics)
        metrics.append(line)
        done, spent, order.begin = 0, 0.0, 0
        if processes.first:
            print(report(line, config["epochs"]) + (" *" if best_so_far else ""), flush=True)
            board.add(
                {f"validation/{name}": line[f"validation_{name}"] for name in ("loss", "accuracy")}, trainer.step_count
            )
            if best_so_far:
                folder.write_model(trainer.evaluated.state_dict(), vocabulary)
        totals.zero_()
        begin = time.perf_counter()
        save()
        if processes.first:
            save_metrics(metrics, folder)
        processes.barrier()
    board.close()


def patience_ended(metrics: list[dict[str, Any]], patience: int | None) -> bool:
    """Whether so many epochs have gone by without a lower validation loss."""
    if not metrics or patience is None:
        return False
    return len(metrics) - min(metrics, key=lambda line: line["validation_loss"])["epoch"] >= patience


def means(totals: list[float], seconds: float) -> tuple[float, float, float]:
    """Mean loss, accuracy and tokens per second."""
    loss, right, reviews, tokens = totals
    return loss / reviews, right / reviews, tokens / seconds


def report(line: dict[str, Any], epochs: int) -> str:
    """An epoch in a line for people."""
    return (
        f"epoch {line['epoch']}/{epochs}: train loss {line['train_loss']:.4f}, "
        f"validation loss {line['validation_loss']:.4f}, validation accuracy {line['validation_accuracy']:.4f}, "
        f"{line['seconds']} s, {line['tokens_per_second']:,} tokens/s"
    )


def save_metrics(metrics: list[dict[str, Any]], folder: RunFolder) -> None:
    """The epochs so far as lines and as a picture."""
    if metrics:
        folder.write_metrics(metrics)
        folder.write("curves.png", lambda path: save_curves(metrics, folder.path.name, path))


def test(
    config: dict,
    test_part: Encoded,
    also_in_train: torch.Tensor,
    vocabulary: Vocabulary,
    folder: RunFolder,
    processes: Processes,
) -> None:
    """Reads the test set once with the best model, and writes the summary."""
    model = build(config, len(vocabulary.words))
    model.load_state_dict(folder.read_model(vocabulary))
    model.to(processes.device)
    found = evaluate(model, test_part, config["batch_size"], processes)
    if not processes.first:
        return
    metrics = folder.read_checkpoint()["metrics"]
    best = min(metrics, key=lambda line: line["validation_loss"])
    right = (found.probabilities > 0.5) == test_part.labels.bool()
    summary = {
        "test_accuracy": found.accuracy,
        "test_loss": found.loss,
        **{f"test_accuracy_{path}": value for path, value in found.paths.items()},
        **({"gru_share": best["gru_share"]} if found.paths else {}),
        "test_reviews_also_in_train": int(also_in_train.sum()),
        "test_accuracy_without_those": right[~also_in_train].double().mean().item(),
        "test_calibration_error": calibration_error(found.probabilities, test_part.labels),
        "best_epoch": best["epoch"],
        "validation_loss": best["validation_loss"],
        "validation_accuracy": best["validation_accuracy"],
        "epochs": len(metrics),
        "seconds": round(sum(line["seconds"] for line in metrics), 2),
        "tokens_per_second": round(sum(line["tokens_per_second"] for line in metrics) / len(metrics)),
        "parameters": parameter_count(model),
        "processes": processes.count,
    }
    title = f"{folder.path.name}: test accuracy {found.accuracy:.4f}"
    folder.write("predictions.png", lambda path: save_predictions(found.probabilities, test_part.labels, title, path))
    folder.write_json("summary.json", summary | provenance(processes.device))
    print(
        f"test accuracy {found.accuracy:.4f}, test loss {found.loss:.4f}, from epoch {best['epoch']}; see {folder.path}"
    )


def run(given: argparse.Namespace, processes: Processes, folder: RunFolder) -> None:
    """One run: reads the data, trains, tests."""
    config = configuration(given) | {"device": processes.device.type}
    check_precision(config, processes.device)
    train_reviews, test_reviews = load(given.data)
    train_part, validation_part = divide(config, train_reviews)
    # The published pipeline takes its words from the validation part too.
    known = train_reviews if config["tokens"] == "spaces" else train_part
    vocabulary = vocabularies.learn(config["tokens"], known.texts, config["vocabulary_size"])
    parts = {"train": train_part, "validation": validation_part, "test": test_reviews}
    if given.describe:
        sizes = {name: len(part.texts) for name, part in parts.items()}
        print(describe(config, sizes, len(vocabulary.words), parameter_count(build(config, len(vocabulary.words)))))
        return
    if config["preset"] == "semi":
        texts = load_unlabelled(given.data, without=test_reviews.texts)
        parts["unlabelled"] = Reviews(texts, [0] * len(texts))

    if processes.first:
        folder.start(config, vocabulary, given.resume)
        if given.data == "sample":
            print("--data sample: synthetic reviews from a grammar, not IMDB", flush=True)
    processes.barrier()
    if given.resume and (folder / "summary.json").exists() and given.seeds:
        return
    where = None if given.data == "sample" or given.cache == "none" else Path(given.cache)
    corpus = {name: cache.encoded(part, vocabulary, where) for name, part in parts.items()}
    if "unlabelled" in corpus:
        pretrain(config, corpus, vocabulary, RunFolder(folder / "language-model"), processes, given)
    train(config, corpus, vocabulary, folder, processes, given)
    test(config, corpus["test"], overlap(train_reviews, test_reviews), vocabulary, folder, processes)


def main() -> None:
    """Trains once, or once for each seed."""
    given = parse(__doc__)
    config = configuration(given)
    processes = Processes(given.device)
    names = (config["preset"], config["data"], config["gru"], "seeds" if given.seeds else str(given.seed))
    folder = RunFolder(given.output or Path("runs") / f"imdb-{'-'.join(names)}")
    try:
        if given.seeds and not given.describe:
            run_seeds(given, processes, folder, run)
        else:
            run(given, processes, folder)
    except KeyboardInterrupt:
        sys.stderr.write(
            f"\ninterrupted: what is saved in {folder.path} is whole; continue with --resume --output {folder.path}\n"
        )
        sys.exit(130)
    finally:
        processes.end()


if __name__ == "__main__":
    try:
        main()
    except (DataError, RunError) as error:
        sys.exit(f"error: {error}")
