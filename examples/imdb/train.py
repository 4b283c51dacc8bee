"""Trains a sentiment classifier on film reviews, on one CPU or GPU or, started by torchrun, on several.

    python examples/imdb/train.py                                        # synthetic reviews, no network
    python examples/imdb/train.py --preset best --data PATH --output runs/best
    python examples/imdb/train.py --preset best --data PATH --output runs/best --resume
    torchrun --nproc-per-node=2 examples/imdb/train.py --preset book-masked --data PATH

Reads downwards: configuration, a step, epochs, judging, a run, its test, the command line. Results go to a folder, see
run_folder.py. What is trained is chosen on validation data; the test part is read once, at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import data
import numpy as np
import torch
from accelerate import Accelerator
from data import Batch, DataError, Encoded, Reviews
from model import LAYERS, Judge, build_member, parameter_count
from plots import save_curves, save_predictions
from run_folder import RunError, RunFolder, provenance
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchmetrics.functional.classification import binary_accuracy, binary_calibration_error
from tqdm import tqdm

NOTHING = torch.zeros(4, dtype=torch.float64)  # loss, right reviews, reviews, tokens
REPORT = (
    "GRU {gru}/{members} epoch {epoch}/{epochs}: train loss {train_loss:.4f}, validation loss {validation_loss:.4f}, "
    "validation accuracy {validation_accuracy:.4f}, {seconds} s, {tokens_per_second:,} tokens/s"
)

# ---- configuration ----


def flag(
    default: Any, text: str, kind: type | None = None, least: float = 0, most: float = math.inf, choices: Any = None
) -> Any:
    """A field that the command line can set; where a preset has None, the flag means nothing to it."""
    kind = kind or type(default)
    return dataclasses.field(
        default=default, metadata={"help": text, "type": kind, "range": (least, most), "choices": choices}
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """All that decides a run's result, but for its reviews. The values here are those of `book`."""

    preset: str = "book"
    gru: str = "grucore"
    seed: int = 0
    masked: bool = False
    bucketed: bool = False
    schedule: str = "constant"
    epochs: int = flag(40, "passes over the training part", least=1)
    batch_size: int = flag(64, "reviews in a batch, of all processes together", least=1)
    accumulate: int = flag(1, "parts that a batch's gradients are computed in, to save memory", least=1)
    learning_rate: float = flag(1e-3, "Adam's; the highest of the schedule")
    clip: float = flag(0.0, "the gradient's largest norm; 0 for any")
    precision: str = flag("no", "of forward passes: fp16 needs a GPU", choices=["no", "bf16", "fp16"])
    stored: str = flag("float32", "numbers in best.safetensors", choices=["float32", "float16"])
    embedding_size: int = flag(128, "numbers a word", least=1)
    hidden_size: int = flag(256, "units of the GRU, in each direction", least=1)
    dropout: float = flag(0.5, "of the state that is judged", most=1)
    members: int = flag(1, "GRUs, each from its own seed", least=1)
    vocabulary_size: int | None = flag(None, "tokens that are known", int, least=3)
    segment: int | None = flag(None, "tokens that the GRU reads in one go", int, least=1)
    crop: int | None = flag(None, "tokens of a review that a step of training reads", int, least=1)
    embedding_dropout: float | None = flag(None, "of single numbers that the GRU reads", float, most=1)
    word_dropout: float | None = flag(None, "of whole words", float, most=0.99)
    averaging: float | None = flag(None, "decay of the average over steps that is validated", float, most=1)
    ngrams: int | None = flag(None, "n-grams that are known; 0 for the GRUs alone", int)
    ngram_share: float | None = flag(None, "of the n-grams in the prediction", float, most=1)
    plain: int | None = flag(None, "so many GRUs, the first, are not told of n-grams", int)
    soft_weight: float | None = flag(None, "of what the teacher labelled, where n-grams are fitted", float, most=0.99)


BOOK = Config()
BEST = Config(
    **{"preset": "best", "masked": True, "bucketed": True, "schedule": "cosine", "epochs": 2, "learning_rate": 2e-3},
    **{"clip": 1.0, "hidden_size": 128, "members": 3, "vocabulary_size": 30_000, "segment": 64, "crop": 256},
    **{"embedding_dropout": 0.3, "word_dropout": 0.1, "averaging": 0.995, "ngrams": 300_000, "ngram_share": 0.5},
    **{"plain": 0},
)
SEMI = dataclasses.replace(
    BEST,
    **{"preset": "semi", "batch_size": 96, "crop": 224, "learning_rate": 2.5e-3, "dropout": 0.4, "members": 2},
    **{"embedding_dropout": 0.2, "plain": 1, "ngram_share": 1 / 3, "soft_weight": 0.5},
)
PRESETS = {
    "book": BOOK,
    "book-masked": dataclasses.replace(BOOK, preset="book-masked", masked=True, bucketed=True),
    "best": BEST,
    "semi": SEMI,
}


# ---- a step ----


class Trainer:
    """One GRU in training: `step` is a function of its state and the batch, and of no other random state."""

    def __init__(self, config: Config, member: int, vocabulary_size: int, steps: int, accelerator: Accelerator):
        self.config, self.member, self.steps, self.accelerator = config, member, steps, accelerator
        self.step_count = 0
        model = build_member(config, vocabulary_size, member).to(accelerator.device)
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.averaging or 0.0))
        optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.bare = accelerator.unwrap_model(self.model)

    @property
    def evaluated(self) -> nn.Module:
        """What is validated and saved: the average over steps, where one is kept."""
        return self.bare if self.config.averaging is None else self.average.module

    def learning_rate(self) -> float:
        """Of the next step: after a rise over a twentieth of all steps, half a cosine."""
        if self.config.schedule == "constant":
            return self.config.learning_rate
        rise = min(1.0, (self.step_count + 1) / max(1, round(0.05 * self.steps)))
        return self.config.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * self.step_count / self.steps))

    def step(self, batch: Batch, total: int) -> Tensor:
        """One optimizer step on this process's share of a batch of `total` reviews.

        Returns:
            Sums over the share, (4,) float64 on the device: loss, right ones, reviews, tokens.
        """
        config, accelerator = self.config, self.accelerator
        seed = [config.seed, self.member, self.step_count, accelerator.process_index]
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))  # of dropout and windows
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(4, dtype=torch.float64, device=accelerator.device)
        parts = torch.arange(len(batch.lengths)).chunk(config.accumulate)
        for i, rows in enumerate(parts, 1):
            tokens, lengths, targets, weights, evidence = (
                None if whole is None else whole[rows].to(accelerator.device) for whole in batch
            )
            with contextlib.nullcontext() if i == len(parts) else accelerator.no_sync(self.model):
                logits = self.model(tokens, lengths, evidence if self.bare.reads_evidence else None).float()
                losses = cross_entropy(logits, torch.stack([1 - targets, targets], 1), reduction="none") * weights
                # Gradients are averaged over processes: this makes of that the mean over the batch's reviews.
                accelerator.backward(losses.sum() * accelerator.num_processes / total)
            right = ((logits[:, 1] > logits[:, 0]) == (targets > 0.5)) * weights
            sums += torch.stack([losses.detach().sum(), right.sum(), weights.sum(), (lengths * weights).sum()])
        if config.clip:
            accelerator.clip_grad_norm_(self.model.parameters(), config.clip)
        self.optimizer.step()
        if config.averaging is not None:
            self.average.update_parameters(self.bare)
        self.step_count += 1
        return sums

    def state(self) -> dict[str, Any]:
        """All that the next step needs."""
        scaler = self.accelerator.scaler
        return {
            "model": self.bare.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "step_count": self.step_count,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continues where `state` was taken."""
        self.bare.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step_count = state["step_count"]


# ---- an epoch, and all of them ----


@dataclasses.dataclass
class Run:
    """What the stages of a run share."""

    config: Config
    folder: RunFolder
    accelerator: Accelerator
    tokenizer: Tokenizer
    checkpoint_every: int | None
    metrics: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # a line an epoch

    def save(self, trainer: Trainer, done: int, totals: Tensor, seconds: float) -> None:
        """Writes what the next step needs, after `done` steps of an epoch."""
        now = {"member": trainer.member, "trainer": trainer.state(), "metrics": self.metrics}
        now |= {"done": done, "totals": totals.cpu(), "seconds": seconds}
        if self.accelerator.is_main_process:
            self.folder.write("last.pt", lambda path: torch.save(now, path))

    def save_metrics(self) -> None:
        """The epochs so far as lines and as a picture."""
        if self.accelerator.is_main_process and self.metrics:
            self.folder.write_text("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in self.metrics))
            title = self.folder.path.name
            self.folder.write("curves.png", lambda path: save_curves(self.metrics, title, path))

    def say(self, text: str) -> None:
        """Prints a line, once."""
        if self.accelerator.is_main_process:
            print(text, flush=True)


def train_epoch(run: Run, trainer: Trainer, encoded: Encoded, epoch: int, saved: dict | None) -> dict[str, Any]:
    """One epoch, or what is left of one that was interrupted after the checkpoint `saved`: its line of metrics."""
    config, accelerator = run.config, run.accelerator
    done, seconds, totals = (saved[name] for name in ("done", "seconds", "totals")) if saved else (0, 0.0, NOTHING)
    totals, begin = totals.to(accelerator.device, copy=True), time.perf_counter() - seconds
    lengths = [len(row) for row in encoded.tokens]
    batches = data.training_batches(lengths, config.batch_size, config.seed + trainer.member, epoch, config.bucketed)
    name = f"epoch {epoch}" if config.members == 1 else f"GRU {trainer.member + 1} epoch {epoch}"
    silent = not (sys.stderr.isatty() and accelerator.is_main_process)
    bar = tqdm(total=len(batches), initial=done, desc=name, unit="batch", leave=False, disable=silent)
    for i, rows in enumerate(batches[done:], done + 1):
        batch = data.collate(encoded, rows, accelerator.process_index, accelerator.num_processes)
        totals += accelerator.reduce(trainer.step(batch, len(rows)), "sum")
        bar.update()
        if i % 100 == 0:
            loss, rate = (totals[0] / totals[2]).item(), totals[3].item() / (time.perf_counter() - begin)
            bar.set_postfix_str(f"loss {loss:.4f}, {rate:,.0f} tokens/s")
            if silent:
                run.say(f"{name}: batch {i}/{len(batches)}, loss {loss:.4f}, {rate:,.0f} tokens/s")
        if run.checkpoint_every and i % run.checkpoint_every == 0 and i < len(batches):
            run.save(trainer, i, totals, time.perf_counter() - begin)
    bar.close()
    loss, right, reviews, tokens = totals.tolist()
    if not math.isfinite(loss):
        raise RunError(f"the loss of {name} is {loss}: try a lower --learning-rate. The checkpoint is older")
    line = {"member": trainer.member, "epoch": epoch, "train_loss": loss / reviews, "train_accuracy": right / reviews}
    seconds = time.perf_counter() - begin
    return line | {"tokens_per_second": round(tokens / seconds), "seconds": round(seconds, 2)}


def train(run: Run, judge: Judge, train_part: Encoded, validation: Encoded) -> None:
    """Trains the judge's GRUs one after the other, each to its last epoch, from where the folder's checkpoint ends."""
    config, vocabulary_size = run.config, run.tokenizer.get_vocab_size()
    saved = run.folder.read_checkpoint() if (run.folder / "last.pt").exists() else None
    if saved:
        run.metrics = saved["metrics"]
        run.say(f"resuming {run.folder.path} after {len(run.metrics)} epochs and {saved['done']} steps")
        run.save_metrics()  # a kill may have come between the checkpoint and these
    steps = -(-len(train_part.tokens) // config.batch_size) * config.epochs
    for member in range(len(run.metrics) // config.epochs, config.members):
        trainer = Trainer(config, member, vocabulary_size, steps, run.accelerator)
        while len(judge.members) <= member:
            judge.members.append(build_member(config, vocabulary_size, len(judge.members)))
        if saved and saved["member"] == member:
            trainer.load_state(saved["trainer"])
        for epoch in range(len(run.metrics) % config.epochs + 1, config.epochs + 1):
            line = train_epoch(run, trainer, train_part, epoch, saved if saved and saved["done"] else None)
            saved, begin = None, time.perf_counter()
            evaluated = trainer.evaluated.eval()
            margins = margins_of(partial(judge.margins, members=[evaluated]), validation, run)
            line |= {f"validation_{name}": value for name, value in measured(margins[0], validation.targets).items()}
            line["seconds"] = round(line["seconds"] + time.perf_counter() - begin, 2)
            best = min((each["validation_loss"] for each in run.metrics if each["member"] == member), default=math.inf)
            run.metrics.append(line)
            star = ""
            if line["validation_loss"] < best:
                star = " *"
                judge.members[member].load_state_dict(trainer.evaluated.state_dict())
                if run.accelerator.is_main_process:
                    run.folder.write_judge(judge, run.tokenizer)
            run.save(trainer, 0, NOTHING, 0.0)
            run.save_metrics()
            run.say(REPORT.format(gru=member + 1, members=config.members, epochs=config.epochs, **line) + star)
            run.accelerator.wait_for_everyone()
        run.accelerator.free_memory()


# ---- judging ----


@torch.no_grad()
def margins_of(margins: Callable[[Tensor, Tensor], Tensor], encoded: Encoded, run: Run) -> Tensor:
    """What `margins` makes of all reviews, (parts, N), on the device; the processes share the work."""
    rank, count, device = run.accelerator.process_index, run.accelerator.num_processes, run.accelerator.device
    found = None
    for rows in data.evaluation_batches([len(row) for row in encoded.tokens], run.config.batch_size):
        batch = data.collate(encoded, rows, rank, count)
        of_batch = margins(batch.tokens.to(device), batch.lengths.to(device))
        found = of_batch.new_zeros(len(of_batch), len(encoded.tokens)) if found is None else found
        mine = rows[rank::count]
        found[:, mine] = of_batch[:, : len(mine)]
    return run.accelerator.reduce(found, "sum")


def measured(log_odds: Tensor, targets: Tensor) -> dict[str, float]:
    """Loss and accuracy of log-odds (N,)."""
    targets = targets.to(log_odds.device)
    loss = binary_cross_entropy_with_logits(log_odds.double(), targets.double())
    return {"loss": loss.item(), "accuracy": binary_accuracy(log_odds.sigmoid(), targets.int()).item()}


def judged(judge: Judge, margins: Tensor, targets: Tensor) -> dict[str, Any]:
    """How right the judge is, how right its parts are, and what the GRUs add to the n-grams, paired, with its error."""
    members, targets = len(judge.members), targets.to(margins.device)
    log_odds = judge.combine(margins)
    result: dict[str, Any] = measured(log_odds, targets)
    result["calibration_error"] = binary_calibration_error(log_odds.sigmoid(), targets.int(), n_bins=10).item()
    if members > 1:
        result["accuracy_of_each_gru"] = [measured(each, targets)["accuracy"] for each in margins[:members]]
    if judge.ngrams is not None:
        result["accuracy_gru"] = measured(margins[:members].mean(0), targets)["accuracy"]
        result["accuracy_ngrams"] = measured(margins[members], targets)["accuracy"]
        right, without = (((each > 0) == (targets > 0.5)).double() for each in (log_odds, margins[members]))
        result["gain_over_ngrams"] = (right - without).mean().item()
        result["gain_standard_error"] = (right - without).std().item() / len(targets) ** 0.5
    return result


def set_sharpness(judge: Judge, margins: Tensor, targets: Tensor) -> None:
    """The factor of all log-odds that makes the validation part most probable, in hundredths: temperature scaling."""
    factors = torch.arange(20, 301) / 100
    judge.sharpness.fill_(1.0)
    log_odds = factors[:, None].to(margins.device) * judge.combine(margins)
    targets = targets.to(margins.device).expand_as(log_odds)
    losses = binary_cross_entropy_with_logits(log_odds, targets, reduction="none").mean(1)
    judge.sharpness.fill_(factors[losses.argmin()].item())


# ---- a run ----


def prepare(config: Config, given: argparse.Namespace) -> tuple[dict[str, Reviews], Callable[[], Tokenizer]]:
    """The run's parts, and what learns its vocabulary."""
    train_all, test_part = (data.load(given.data, part) for part in ("train", "test"))
    if config.vocabulary_size is None:
        train_part, validation = data.split_at_random(train_all.ordered(), config.seed)
    else:
        train_part, validation = data.split_by_blocks(train_all)
    parts = {"train": train_part, "validation": validation, "test": test_part.ordered()}
    if config.preset == "semi":
        parts["unlabelled"] = data.without(data.load(given.data, "unsupervised"), test_part, validation)
    # The published pipeline takes its words from the validation part too.
    known = ("train", "validation") if config.vocabulary_size is None else ("train", "unlabelled")
    texts = [text for name in known if name in parts for text in parts[name].texts]
    return parts, lambda: data.learn_vocabulary(texts, config.vocabulary_size)


def soft_labels(run: Run, given: argparse.Namespace, texts: Reviews) -> Tensor:
    """The teacher's probability that each unlabelled review is positive: a run of `best`, in the run's folder."""
    if not (run.folder / "soft-labels.safetensors").exists():
        teacher = RunFolder(given.teacher or run.folder / "teacher")
        if given.teacher is None:
            shared = ("gru", "seed", "embedding_size", "hidden_size", "vocabulary_size", "ngrams", "precision")
            config = dataclasses.replace(BEST, **{name: getattr(run.config, name) for name in shared})
            train_run(config, given, teacher.path, run.accelerator, resume=(teacher / "config.json").exists())
        tokenizer = teacher.read_tokenizer()
        judge = teacher.read_judge(tokenizer).to(run.accelerator.device)
        run.say(f"labelling {len(texts.texts):,} reviews")
        margins = margins_of(judge.margins, data.encode(tokenizer, texts), run)
        probabilities = judge.combine(margins).sigmoid().cpu()
        if run.accelerator.is_main_process:
            run.folder.write("soft-labels.safetensors", lambda path: save_file({"probabilities": probabilities}, path))
        run.accelerator.wait_for_everyone()
    found = load_file(run.folder / "soft-labels.safetensors")["probabilities"]
    if len(found) != len(texts.texts):
        raise RunError(f"{run.folder.path}: {len(found)} soft labels for {len(texts.texts)} reviews: the data changed")
    return found


def train_run(
    config: Config, given: argparse.Namespace, path: Path, accelerator: Accelerator, resume: bool
) -> tuple[Run, Judge, dict[str, Reviews]]:
    """Trains all of a run, or what is left of it, but does not test it."""
    parts, learn = prepare(config, given)
    folder = RunFolder(path)
    described = dataclasses.asdict(config) | {
        "data": given.data if given.data in ("sample", "hub") else "folder",
        "reviews": {name: part.digest() for name, part in parts.items()},
    }
    if accelerator.is_main_process:
        folder.start(described, resume, learn)
    accelerator.wait_for_everyone()
    tokenizer = folder.read_tokenizer()
    run = Run(config, folder, accelerator, tokenizer, given.checkpoint_every)
    train_part, validation = (data.encode(tokenizer, parts[name]) for name in ("train", "validation"))
    importance = torch.ones(len(train_part.tokens))
    if config.preset == "semi":
        unlabelled = data.encode(tokenizer, parts["unlabelled"])
        targets = torch.cat([train_part.targets, soft_labels(run, given, parts["unlabelled"])])
        importance = torch.cat([importance, torch.full((len(unlabelled.tokens),), config.soft_weight)])
        train_part = Encoded(train_part.tokens + unlabelled.tokens, targets)
    judge = Judge(config, tokenizer.get_vocab_size(), members=0)
    if (folder / "last.pt").exists():
        judge = folder.read_judge(tokenizer)
    if judge.ngrams is not None:
        run.say(f"fitting {config.ngrams:,} n-grams")
        evidence = judge.ngrams.fit(train_part.tokens, train_part.targets, importance, config.seed)
        train_part = train_part._replace(evidence=evidence)
    judge.to(accelerator.device)
    train(run, judge, train_part, validation)
    if judge.ngrams is not None:
        set_sharpness(judge, margins_of(judge.eval().margins, validation, run), validation.targets)
        if accelerator.is_main_process:
            folder.write_judge(judge, tokenizer)
    accelerator.wait_for_everyone()
    return run, folder.read_judge(tokenizer).to(accelerator.device), parts


def test(run: Run, judge: Judge, parts: dict[str, Reviews]) -> None:
    """Reads the test part once, with the best model, and writes the summary."""
    summary: dict[str, Any] = {}
    for name in ("validation", "test"):
        encoded = data.encode(run.tokenizer, parts[name])
        margins = margins_of(judge.margins, encoded, run)
        summary |= {f"{name}_{key}": value for key, value in judged(judge, margins, encoded.targets).items()}
    if not run.accelerator.is_main_process:
        return
    log_odds, labels = judge.combine(margins).cpu(), encoded.targets
    copies = data.overlap([*parts["train"].texts, *parts["validation"].texts], parts["test"].texts)
    by_member = [[line for line in run.metrics if line["member"] == k] for k in range(run.config.members)]
    best = [min(lines, key=lambda line: line["validation_loss"])["epoch"] for lines in by_member]
    seconds = sum(line["seconds"] for line in run.metrics)
    summary |= {
        "test_reviews_also_in_train": int(copies.sum()),
        "test_accuracy_without_those": measured(log_odds[~copies], labels[~copies])["accuracy"],
        "best_epoch": best[0] if len(best) == 1 else best,
        "epochs": len(run.metrics) // run.config.members,
        "seconds": round(seconds, 2),
        "tokens_per_second": round(sum(line["tokens_per_second"] for line in run.metrics) / len(run.metrics)),
        "parameters": parameter_count(judge),
        "processes": run.accelerator.num_processes,
    }
    summary |= provenance(run.accelerator.device) | {"config": run.folder.read_config(), "metrics": run.metrics}
    title = f"{run.folder.path.name}: test accuracy {summary['test_accuracy']:.4f}"
    run.folder.write("predictions.png", lambda path: save_predictions(log_odds.sigmoid(), labels.int(), title, path))
    run.folder.write_json("summary.json", summary)
    run.say(
        f"test accuracy {summary['test_accuracy']:.4f}, test loss {summary['test_loss']:.4f}; see {run.folder.path}"
    )


# ---- the command line ----


def parse() -> tuple[argparse.Namespace, Config]:
    """The command line, and what it makes of the preset.

    Raises:
        RunError: a flag that means nothing to the preset, or a value out of range.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=list(PRESETS), default="book-masked")
    parser.add_argument("--data", default="sample", help="sample, hub, or a folder (parquet or aclImdb)")
    parser.add_argument("--gru", choices=list(LAYERS), default="grucore", help="whose layer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--output", type=Path, help="the run's folder; default runs/imdb-PRESET-DATA-GRU-SEED")
    parser.add_argument("--resume", action="store_true", help="continue the run in --output")
    parser.add_argument("--checkpoint-every", type=int, metavar="N", help="save every N steps, not each epoch alone")
    parser.add_argument("--teacher", type=Path, metavar="RUN", help="of semi: a run of best; default: trains one")
    parser.add_argument("--describe", action="store_true", help="print what would be trained as JSON, and stop")
    settings = [field for field in dataclasses.fields(Config) if field.metadata]
    for field in settings:
        values = ", ".join(str(getattr(preset, field.name)) for preset in PRESETS.values())
        options = {name: field.metadata[name] for name in ("type", "choices")}
        parser.add_argument(f"--{field.name.replace('_', '-')}", help=f"{field.metadata['help']} ({values})", **options)
    given = parser.parse_args()
    config = dataclasses.replace(PRESETS[given.preset], gru=given.gru, seed=given.seed)
    for field in settings:
        name, value, (least, most) = field.name, getattr(given, field.name), field.metadata["range"]
        if value is None:
            continue
        if getattr(config, name) is None:
            raise RunError(f"--{name.replace('_', '-')} means nothing to --preset {given.preset}")
        if not isinstance(value, str) and not least <= value <= most:
            raise RunError(f"--{name.replace('_', '-')} must be from {least} to {most}, got {value}")
        config = dataclasses.replace(config, **{name: value})
    return given, config


def main() -> None:
    """Trains and tests."""
    given, config = parse()
    if given.device == "cuda" and not torch.cuda.is_available():
        raise RunError("--device cuda needs a GPU that this PyTorch can use, and there is none; --device cpu works")
    if given.describe:
        parts, learn = prepare(config, given)
        sizes = {name: len(part.texts) for name, part in parts.items()} | {"vocabulary": learn().get_vocab_size()}
        judge = Judge(config, sizes["vocabulary"], config.members)
        described = sizes | {"classes": 2, "parameters": parameter_count(judge)} | dataclasses.asdict(config)
        print(json.dumps(described))
        return
    path = given.output or Path("runs") / f"imdb-{given.preset}-{Path(given.data).name}-{given.gru}-{given.seed}"
    accelerator = Accelerator(cpu=given.device == "cpu", mixed_precision=config.precision)
    if config.precision == "fp16" and accelerator.device.type != "cuda":
        raise RunError("--precision fp16 needs a GPU; bf16 runs on a CPU too")
    if given.data == "sample" and accelerator.is_main_process:
        print("--data sample: synthetic reviews from a grammar, not IMDB", flush=True)
    try:
        test(*train_run(config, given, path, accelerator, given.resume))
    except KeyboardInterrupt:
        sys.stderr.write(f"\ninterrupted: what is saved in {path} is whole; continue with --resume --output {path}\n")
        sys.exit(130)
    finally:
        accelerator.end_training()


if __name__ == "__main__":
    try:
        main()
    except (DataError, RunError) as error:
        sys.exit(f"error: {error}")
