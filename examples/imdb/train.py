"""Trains a sentiment classifier on film reviews, on one CPU or GPU, or on several with torchrun.

    python examples/imdb/train.py                                        # synthetic reviews, no network
    python examples/imdb/train.py --preset best --data PATH --output runs/best
    python examples/imdb/train.py --preset best --data PATH --output runs/best --resume
    torchrun --nproc-per-node=2 examples/imdb/train.py --preset book-masked --data PATH

Read it from top to bottom: a step, epochs, a run, its test. Options are in config.py; results go to a folder, see
run_folder.py. All choices are made on validation data; the test split is read once, at the end.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import data
import torch
from accelerate import Accelerator
from config import Config, UserError, command, parse
from data import Batch, Encoded, Reviews
from evaluation import judged, margins_of, measured, save_curves, save_predictions, set_sharpness
from model import Judge, build_member, parameter_count
from pretrain import pretrained
from run_folder import RunFolder, provenance
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

NOTHING = torch.zeros(4, dtype=torch.float64)  # loss, right reviews, reviews, tokens


class Trainer:
    """One GRU in training: `step` depends only on its state and the batch, not on global random state."""

    def __init__(self, run: "Run", member: int, steps: int):
        self.config, self.accelerator, self.member, self.steps = run.config, run.accelerator, member, steps
        config, accelerator, self.step_count = self.config, self.accelerator, 0
        model = build_member(config, run.tokenizer.get_vocab_size(), member)
        if run.pretrained:
            model.start_from(run.pretrained)
        model.to(accelerator.device)
        self.average = None
        if config.averaging is not None:
            self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.averaging))
        optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.bare = accelerator.unwrap_model(self.model)
        parts = {"model": self.bare, "average": self.average, "optimizer": self.optimizer}
        parts["scaler"] = accelerator.scaler  # of float16's gradients
        self.parts = {name: part for name, part in parts.items() if part is not None}

    @property
    def evaluated(self) -> nn.Module:
        """The model that is validated and saved: the average over steps, if there is one."""
        return self.bare if self.average is None else self.average.module

    def label(self, epoch: int) -> str:
        """The name of an epoch."""
        name = f"epoch {epoch}/{self.config.epochs}"
        return name if self.config.members == 1 else f"GRU {self.member + 1}/{self.config.members}, {name}"

    def learning_rate(self) -> float:
        """The learning rate of the next step: warm-up over a twentieth of all steps, then half a cosine."""
        if self.config.schedule == "constant":
            return self.config.learning_rate
        rise = min(1.0, (self.step_count + 1) / max(1, round(0.05 * self.steps)))
        return self.config.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * self.step_count / self.steps))

    def step(self, batch: Batch, total: int) -> Tensor:
        """One optimizer step on this process's share of a batch of `total` reviews.

        Returns:
            Sums over the share, (4,) float64 on the device: loss, correct predictions, reviews, tokens.
        """
        config, accelerator = self.config, self.accelerator
        data.seed_torch(config.seed, self.member, self.step_count, accelerator.process_index)  # of dropout and windows
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(4, dtype=torch.float64, device=accelerator.device)
        parts = torch.arange(len(batch.lengths)).chunk(config.accumulate)
        for i, rows in enumerate(parts, 1):
            tokens, lengths, targets, weights, evidence, offsets = (
                None if whole is None else whole[rows].to(accelerator.device) for whole in batch
            )
            with contextlib.nullcontext() if i == len(parts) else accelerator.no_sync(self.model):
                margins = self.model(tokens, lengths, evidence if self.bare.reads_evidence else None)
                if self.bare.reads_evidence:  # it is trained to correct the n-grams
                    margins = margins + offsets
                losses = binary_cross_entropy_with_logits(margins, targets, reduction="none") * weights
                # Gradients are averaged over processes; this turns the average into the mean over the batch's reviews.
                accelerator.backward(losses.sum() * accelerator.num_processes / total)
            right = ((margins > 0) == (targets > 0.5)) * weights
            read = lengths if config.crop is None else lengths.clamp(max=config.crop)
            sums += torch.stack([losses.detach().sum(), right.sum(), weights.sum(), (read * weights).sum()])
        if config.clip:
            accelerator.clip_grad_norm_(self.model.parameters(), config.clip)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.bare)
        self.step_count += 1
        return sums

    def state(self) -> dict[str, Any]:
        """The state that the next step needs."""
        return {name: part.state_dict() for name, part in self.parts.items()} | {"step_count": self.step_count}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continues from a `state`."""
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        self.step_count = state["step_count"]


@dataclasses.dataclass
class Run:
    """The data that the stages of a run share."""

    config: Config
    folder: RunFolder
    accelerator: Accelerator
    tokenizer: Tokenizer
    checkpoint_every: int | None
    metrics: list[dict[str, Any]]  # one per epoch
    pretrained: dict[str, Tensor] | None = None  # where GRUs start

    def save(self, trainer: Trainer, done: int = 0, totals: Tensor = NOTHING, seconds: float = 0.0) -> None:
        """Writes a checkpoint, by default at the end of an epoch, otherwise after `done` steps of one."""
        now = {"member": trainer.member, "trainer": trainer.state(), "metrics": self.metrics}
        now |= {"done": done, "totals": totals.cpu(), "seconds": seconds}
        self.folder.write("last.pt", lambda path: torch.save(now, path))

    def save_metrics(self) -> None:
        """Writes the metrics of all epochs so far, and their plot."""
        if self.metrics:
            self.folder.write_text("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in self.metrics))
            title = self.folder.path.name
            self.folder.write("curves.png", lambda path: save_curves(self.metrics, title, path))

    def margins(self, margins: Callable[[Tensor, Tensor], Tensor], encoded: Encoded) -> Tensor:
        """Computes `margins` of all reviews, (parts, N)."""
        return margins_of(margins, encoded, self.config.batch_size, self.accelerator)

    @property
    def without_bar(self) -> bool | None:
        """tqdm's `disable`: None shows a bar only on a terminal; other processes than the main one show none."""
        return None if self.accelerator.is_main_process else True

    def say(self, text: str) -> None:
        """Prints a line, in one process only."""
        self.accelerator.print(text, flush=True)


def train_epoch(run: Run, trainer: Trainer, encoded: Encoded, epoch: int, saved: dict | None) -> dict[str, Any]:
    """Trains one epoch, or the remainder after the checkpoint `saved`; returns its metrics."""
    config, accelerator = run.config, run.accelerator
    done, seconds, totals = (saved[name] for name in ("done", "seconds", "totals")) if saved else (0, 0.0, NOTHING)
    totals, begin = totals.to(accelerator.device, copy=True), time.perf_counter() - seconds
    lengths = [len(row) for row in encoded.tokens]
    batches = data.training_batches(lengths, config.batch_size, config.seed + trainer.member, epoch, config.masked)
    name = trainer.label(epoch)
    bar = tqdm(batches[done:], name, len(batches), leave=False, unit="batch", initial=done, disable=run.without_bar)
    for i, rows in enumerate(bar, done + 1):
        batch = data.collate(encoded, rows, accelerator.process_index, accelerator.num_processes)
        totals += accelerator.reduce(trainer.step(batch, len(rows)), "sum")
        if i % 100 == 0:
            loss, rate = (totals[0] / totals[2]).item(), totals[3].item() / (time.perf_counter() - begin)
            bar.set_postfix_str(f"loss {loss:.4f}, {rate:,.0f} tokens/s")
            if bar.disable:
                run.say(f"{name}: batch {i}/{len(batches)}, loss {loss:.4f}, {rate:,.0f} tokens/s")
        if run.checkpoint_every and i % run.checkpoint_every == 0 and i < len(batches):
            run.save(trainer, i, totals, time.perf_counter() - begin)
    loss, right, reviews, tokens = totals.tolist()
    line = {"member": trainer.member, "epoch": epoch, "train_loss": loss / reviews, "train_accuracy": right / reviews}
    seconds = time.perf_counter() - begin
    return line | {"tokens_per_second": round(tokens / seconds), "seconds": round(seconds, 2)}


def train(run: Run, judge: Judge, train_part: Encoded, validation: Encoded, saved: dict | None) -> None:
    """Trains the GRUs one after the other, each to its last epoch, starting from the checkpoint `saved`."""
    config, vocabulary_size = run.config, run.tokenizer.get_vocab_size()
    if saved:
        run.say(f"resuming {run.folder.path} after {len(run.metrics)} epochs and {saved['done']} steps")
        run.save_metrics()  # the run may have been killed between the checkpoint and these
    steps = -(-len(train_part.tokens) // config.batch_size) * config.epochs
    for member in range(len(run.metrics) // config.epochs, config.members):
        trainer = Trainer(run, member, steps)
        if len(judge.members) == member:
            judge.members.append(build_member(config, vocabulary_size, member).to(run.accelerator.device))
        if saved and saved["member"] == member:
            trainer.load_state(saved["trainer"])
        for epoch in range(len(run.metrics) % config.epochs + 1, config.epochs + 1):
            line = train_epoch(run, trainer, train_part, epoch, saved)
            saved, begin = None, time.perf_counter()
            evaluated = trainer.evaluated.eval()
            margins = run.margins(partial(judge.margins, members=[evaluated]), validation)
            line |= {f"validation_{name}": value for name, value in measured(margins[0], validation.targets).items()}
            if not math.isfinite(line["train_loss"] + line["validation_loss"]):
                raise UserError(f"{trainer.label(epoch)} ended with a non-finite loss: try a lower --learning-rate")
            line["seconds"] = round(line["seconds"] + time.perf_counter() - begin, 2)
            earlier = [each["validation_loss"] for each in run.metrics if each["member"] == member]
            is_best = all(line["validation_loss"] < loss for loss in earlier)
            run.metrics.append(line)
            if is_best:
                judge.members[member].load_state_dict(evaluated.state_dict())
                run.folder.write_judge(judge, run.tokenizer)
            run.save(trainer)
            run.save_metrics()
            run.say(
                f"{trainer.label(epoch)}: train loss {line['train_loss']:.4f}, validation loss "
                f"{line['validation_loss']:.4f}, validation accuracy {line['validation_accuracy']:.4f}, "
                f"{line['seconds']} s, {line['tokens_per_second']:,} tokens/s" + " *" * is_best
            )
            run.accelerator.wait_for_everyone()
        run.accelerator.free_memory()


def prepare(config: Config, given: argparse.Namespace) -> tuple[dict[str, Reviews], Callable[[], Tokenizer]]:
    """The run's splits, and the function that fits its vocabulary."""
    train_all, test_part = (data.load(given.data, part) for part in ("train", "test"))
    if config.vocabulary_size is None:
        train_part, validation = data.split_at_random(train_all.ordered(), config.seed)
    else:
        train_part, validation = data.split_by_blocks(train_all)
    if not any(text.split() for text in train_part.texts) or set(train_part.labels) != {0, 1}:
        raise UserError(
            f"{given.data}: too few reviews of either label are left for training after those for validation"
        )
    parts = {"train": train_part, "validation": validation, "test": test_part.ordered()}
    if config.preset == "semi":
        parts["unlabelled"] = data.without(data.load(given.data, "unsupervised"), test_part, validation)
    # The published pipeline takes its vocabulary from the validation split too.
    known = ("train", "validation") if config.vocabulary_size is None else ("train", "unlabelled")
    texts = [text for name in known if name in parts for text in parts[name].texts]
    return parts, lambda: data.learn_vocabulary(texts, config.vocabulary_size)


def soft_labels(run: Run, teacher: RunFolder, texts: Reviews) -> Tensor:
    """The probability that each unlabelled review is positive, by the teacher."""
    if not (run.folder / "soft-labels.safetensors").exists():
        if teacher.read_config()["reviews"]["validation"] != run.folder.read_config()["reviews"]["validation"]:
            raise UserError(f"{teacher.path} was trained on {run.folder.path}'s validation data, so cannot teach it")
        tokenizer = teacher.read_tokenizer()
        judge = teacher.read_judge(tokenizer).to(run.accelerator.device)
        run.say(f"labelling {len(texts.texts):,} reviews")
        margins = run.margins(judge.margins, data.encode(tokenizer, texts))
        probabilities = judge.combine(margins).sigmoid().cpu()
        run.folder.write_tensors("soft-labels.safetensors", {"probabilities": probabilities})
        run.accelerator.wait_for_everyone()
    return run.folder.read_tensors("soft-labels.safetensors")["probabilities"]


def train_run(
    config: Config, given: argparse.Namespace, path: Path, accelerator: Accelerator
) -> tuple[Run, Judge, dict[str, Reviews]]:
    """Trains a run, or the remainder of it, without testing."""
    teacher = RunFolder(given.teacher) if given.teacher else None
    if (teacher is None) == (config.preset == "semi"):
        raise UserError("--teacher RUN, which labels the unlabelled reviews, is needed for semi, and only for it")
    if teacher and not (teacher / "summary.json").exists():
        raise UserError(f"--teacher must be a run that has ended, and {teacher.path} has no summary.json")
    parts, learn = prepare(config, given)
    folder = RunFolder(path, accelerator.is_main_process)
    described = vars(config) | {
        "data": given.data if given.data in ("sample", "hub") else "folder",
        "reviews": {name: part.digest() for name, part in parts.items()},
        "teacher": teacher and teacher.digest(),
    }
    if accelerator.is_main_process:
        folder.start(described, given.resume, learn)
    accelerator.wait_for_everyone()
    tokenizer = folder.read_tokenizer()
    saved = folder.read_checkpoint() if (folder / "last.pt").exists() else None
    run = Run(config, folder, accelerator, tokenizer, given.checkpoint_every, saved["metrics"] if saved else [])
    train_part, validation = (data.encode(tokenizer, parts[name]) for name in ("train", "validation"))
    importance = torch.ones(len(train_part.tokens))
    if teacher:
        unlabelled = data.encode(tokenizer, parts["unlabelled"])
        targets = torch.cat([train_part.targets, soft_labels(run, teacher, parts["unlabelled"])])
        importance = torch.cat([importance, torch.full((len(unlabelled.tokens),), config.soft_weight)])
        train_part = Encoded(train_part.tokens + unlabelled.tokens, targets)
    if config.pretraining_epochs:
        run.pretrained = pretrained(run, train_part.tokens, teacher)
    judge = folder.read_judge(tokenizer) if run.metrics else Judge(config, tokenizer.get_vocab_size(), members=0)
    if judge.ngrams is not None and len(run.metrics) < config.members * config.epochs:
        run.say(f"fitting {config.ngrams:,} n-grams")
        evidence, offsets = judge.ngrams.fit(train_part.tokens, train_part.targets, importance, config.seed)
        train_part = train_part._replace(evidence=evidence, offsets=offsets)
    judge.to(accelerator.device)
    train(run, judge, train_part, validation, saved)
    if judge.ngrams is not None and judge.sharpness == 1:  # else it is fitted, and the file may be a teacher's
        set_sharpness(judge, run.margins(judge.eval().margins, validation), validation.targets)
        folder.write_judge(judge, tokenizer)
    accelerator.wait_for_everyone()
    return run, folder.read_judge(tokenizer).to(accelerator.device), parts


def evaluate(run: Run, judge: Judge, parts: dict[str, Reviews], splits: Sequence[str]) -> None:
    """Evaluates the best model on splits, the test split once, and writes the summary."""
    path, summary = run.folder / "summary.json", {}
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if f"{splits[-1]}_accuracy" in before and before.get("metrics") == run.metrics:
        return run.say(f"{run.folder.path} has already ended: see its summary.json")
    for name in splits:
        encoded = data.encode(run.tokenizer, parts[name])
        margins = run.margins(judge.margins, encoded)
        summary |= {f"{name}_{key}": value for key, value in judged(judge, margins, encoded.targets).items()}
    log_odds, labels = judge.combine(margins).cpu(), encoded.targets
    if name == "test":
        copies = data.overlap([*parts["train"].texts, *parts["validation"].texts], parts["test"].texts)
        summary["test_reviews_also_in_train"] = int(copies.sum())
        if not copies.all():
            summary["test_accuracy_without_those"] = measured(log_odds[~copies], labels[~copies])["accuracy"]
    by_member = [[line for line in run.metrics if line["member"] == k] for k in range(run.config.members)]
    best = [min(lines, key=lambda line: line["validation_loss"])["epoch"] for lines in by_member]
    summary |= {
        "best_epoch": best[0] if len(best) == 1 else best,
        "epochs": len(run.metrics) // run.config.members,
        "seconds": round(sum(line["seconds"] for line in run.metrics), 2),
        "tokens_per_second": round(sum(line["tokens_per_second"] for line in run.metrics) / len(run.metrics)),
        "parameters": parameter_count(judge),
        "processes": run.accelerator.num_processes,
    }
    if run.pretrained:
        summary["pretraining_seconds"] = round(run.pretrained["seconds"].item(), 2)
    summary |= provenance(run.accelerator.device) | {"config": run.folder.read_config(), "metrics": run.metrics}
    title = f"{run.folder.path.name}: {name} accuracy {summary[f'{name}_accuracy']:.4f}"
    run.folder.write("predictions.png", lambda path: save_predictions(log_odds.sigmoid(), labels.int(), title, path))
    run.folder.write_text("summary.json", json.dumps(summary, indent=1) + "\n")
    run.say(
        f"{name} accuracy {summary[f'{name}_accuracy']:.4f}, loss {summary[f'{name}_loss']:.4f}; see {run.folder.path}"
    )


def main() -> None:
    """Trains and tests."""
    given, config = parse(__doc__)
    if given.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda needs a GPU that this PyTorch can use, and there is none; --device cpu works")
    if given.describe:
        parts, learn = prepare(config, given)
        sizes = {name: len(part.texts) for name, part in parts.items()} | {"vocabulary": learn().get_vocab_size()}
        judge = Judge(config, sizes["vocabulary"], config.members)
        described = sizes | {"classes": 2, "parameters": parameter_count(judge)} | vars(config)
        print(json.dumps(described))
        return
    path = given.output or Path("runs") / f"imdb-{given.preset}-{Path(given.data).name}-{config.gru}-{config.seed}"
    accelerator = Accelerator(cpu=given.device == "cpu", mixed_precision=config.precision)
    if config.precision == "fp16" and accelerator.device.type != "cuda":
        raise UserError("--precision fp16 needs a GPU; bf16 runs on a CPU too")
    if given.data == "sample" and accelerator.is_main_process:
        print("--data sample: synthetic reviews from a grammar, not IMDB", flush=True)
    try:
        splits = ("validation",) if given.no_test else ("validation", "test")
        evaluate(*train_run(config, given, path, accelerator), splits)
        accelerator.wait_for_everyone()  # one that ends while others still talk to it may abort
    except KeyboardInterrupt:
        sys.stderr.write(f"\ninterrupted: the files in {path} are complete; continue with --resume --output {path}\n")
        sys.exit(130)
    finally:
        accelerator.end_training()


if __name__ == "__main__":
    command(main)
