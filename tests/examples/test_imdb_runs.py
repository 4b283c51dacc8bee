"""Runs of `--preset best` and `semi` on tiny data: interruption anywhere, precision, accumulation, processes, seeds."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import imdb
import pytest
import torch
from collect import collect
from data import DataError
from pretrain import LanguageModel
from run_folder import RunError, RunFolder
from safetensors.torch import load_file
from seeds import combined
from trainer import Trainer

pytestmark = pytest.mark.slow

SEMI = ["--preset", "semi", "--batch-size", 40, "--unlabelled-batch-size", 400, "--epochs", 1]
SEMI += ["--lm-epochs", 2, "--lm-streams", 20, "--lm-steps", 60]
NO_DROPOUT = ["--dropout", 0, "--embedding-dropout", 0, "--word-dropout", 0]


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "tokens_per_second")} for line in lines]


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def assert_same(a, b):
    """The same metrics and, bit for bit, the same models and state."""
    assert metrics(a) == metrics(b)
    models = [load_file(folder / "best.safetensors") for folder in (a, b)]
    assert models[0].keys() == models[1].keys()
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    states = [torch.load(folder / "last.pt", weights_only=True)["random_states"] for folder in (a, b)]
    assert torch.equal(states[0][0], states[1][0])


def test_what_a_run_of_best_leaves(best):
    assert {path.name for path in best.iterdir()} == {
        *("config.json", "vocabulary.json", "tokenizer.json", "metrics.jsonl", "best.safetensors", "last.pt"),
        *("curves.png", "predictions.png", "summary.json"),
    }
    found = summary(best)
    assert found["test_reviews_also_in_train"] == 0
    assert found["test_accuracy_without_those"] == found["test_accuracy"]
    assert {"test_accuracy_gru", "test_accuracy_ngrams", "test_calibration_error"} <= found.keys()
    assert found["versions"]["tokenizers"]
    assert (best / "predictions.png").read_bytes()[:4] == b"\x89PNG"


def test_test_reviews_that_were_trained_on_are_told_apart(tmp_path):
    import pyarrow
    import pyarrow.parquet

    imdb.write_parquet(tmp_path / "data", train=60, test=20)
    train, test = (
        pyarrow.parquet.read_table(tmp_path / "data" / f"{part}.parquet").to_pydict() for part in ("train", "test")
    )
    test = {"text": test["text"] + [train["text"][0].upper()], "label": test["label"] + [1 - train["label"][0]]}
    pyarrow.parquet.write_table(pyarrow.table(test), tmp_path / "data" / "test.parquet")
    found = summary(imdb.train_here(tmp_path / "run", "--data", tmp_path / "data", *imdb.BEST, "--epochs", 1))
    assert found["test_reviews_also_in_train"] == 1
    right, right_without = round(found["test_accuracy"] * 21), round(found["test_accuracy_without_those"] * 20)
    assert found["test_accuracy"] == pytest.approx(right / 21) and right - right_without in (0, 1)
    assert found["test_accuracy_without_those"] == pytest.approx(right_without / 20)


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


@pytest.mark.parametrize("at", ["step 4", "step 8", "write 2", "write 5", "write 8"])
def test_killed_anywhere_the_resumed_run_ends_the_same(best, data, tmp_path, monkeypatch, at):
    """`write n` stops in the middle of the n-th file written: half of it is on disk, as a killed process leaves it."""
    kind, number = at.split()
    left = int(number)
    original = Trainer.step if kind == "step" else RunFolder.write

    def step(self, *arguments):
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed
        return original(self, *arguments)

    def write(self, name, write_to):
        nonlocal left
        left -= 1
        if left == 0:
            write_to(str(self / f".unfinished-{name}"))
            half = (self / f".unfinished-{name}").read_bytes()
            (self / f".unfinished-{name}").write_bytes(half[: len(half) // 2])
            raise Killed
        return original(self, name, write_to)

    flags = ["--data", data, *imdb.BEST, "--checkpoint-every", 2]
    with monkeypatch.context() as patch:
        patch.setattr(*((Trainer, "step", step) if kind == "step" else (RunFolder, "write", write)))
        with pytest.raises(Killed):
            imdb.train_here(tmp_path / "run", *flags)
    imdb.train_here(tmp_path / "run", *flags, "--resume")
    assert_same(tmp_path / "run", best)
    assert summary(tmp_path / "run")["test_loss"] == summary(best)["test_loss"]


def test_kill_9_while_checkpoints_are_written(data, tmp_path):
    """A real process, saving at every step, killed at a moment of the clock's choice, twice."""
    torch.use_deterministic_algorithms(False)  # as in the process; results are repeatable all the same
    whole = imdb.train_here(tmp_path / "whole", "--data", data, *imdb.BEST)
    flags = ["--data", data, *imdb.BEST, "--checkpoint-every", 1, "--resume"]
    command = [sys.executable, imdb.EXAMPLE / "train.py", "--output", tmp_path / "run", *imdb.TINY, *flags]
    for wait in (0.05, 0.17):
        process = subprocess.Popen(
            [str(c) for c in command], env=imdb.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        while not (tmp_path / "run" / "last.pt").exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(wait)
        process.kill()
        _, errors = process.communicate()
        assert process.returncode in (-signal.SIGKILL, 0), errors
    assert_same(imdb.train_here(tmp_path / "run", *flags), whole)


def test_another_number_of_epochs_is_another_schedule(best, data):
    with pytest.raises(RunError, match="epochs: 2 there, 3 now"):
        imdb.train_here(best, "--data", data, *imdb.BEST, "--epochs", 3, "--resume")


def test_gradients_of_a_batch_in_parts_are_those_of_the_whole(data, tmp_path):
    flags = ["--data", data, *imdb.BEST, *NO_DROPOUT]
    one = imdb.train_here(tmp_path / "one", *flags)
    parts = imdb.train_here(tmp_path / "parts", *flags, "--accumulate", 3)
    for a, b in zip(metrics(one), metrics(parts), strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)
        assert a["validation_loss"] == pytest.approx(b["validation_loss"], rel=1e-4)


def test_bfloat16_trains_nearly_the_same(data, tmp_path):
    flags = ["--data", data, *imdb.BEST, *NO_DROPOUT]
    exact = imdb.train_here(tmp_path / "fp32", *flags)
    rounded = imdb.train_here(tmp_path / "bf16", *flags, "--precision", "bf16")
    losses = [[line["train_loss"] for line in metrics(folder)] for folder in (exact, rounded)]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.02)


STEP = """
import sys
import torch
from batches import TrainingBatches, loader
from data import Encoded
from model import build
from options import configuration, parse
from processes import Processes
from trainer import Trainer

sys.argv.append(sys.argv.pop(1))  # the file, after --output
given = parse(None)
config, processes = configuration(given), Processes("cpu")
generator = torch.Generator().manual_seed(0)
rows = [torch.randint(2, 50, (size,), generator=generator) for size in range(1, 26)]
encoded = Encoded(rows, torch.arange(25) % 2)
model = build(config, 50)
model.ngrams.fit(encoded.tokens, encoded.labels)
order = TrainingBatches([len(row) for row in rows], 25, 0, bucketed=True)
trainer = Trainer(model, config, 10, processes)
(batch,) = loader(encoded, order, processes.rank, processes.count)
totals = processes.sum(trainer.step(batch))
if processes.first:
    torch.save([totals, {name: p.grad for name, p in model.named_parameters()}], given.output)
processes.end()
"""


def test_gradients_of_two_processes_are_those_of_one(tmp_path):
    """An uneven batch in parts, n-grams and perturbed words included; DistributedDataParallel over gloo."""
    (tmp_path / "step.py").write_text(STEP)
    flags = [*imdb.BEST, *NO_DROPOUT, "--accumulate", 3, "--clip", 1e9, "--adversarial", 0.5, *imdb.TINY, "--output"]
    environment = imdb.environment()
    environment["PYTHONPATH"] += os.pathsep + str(imdb.EXAMPLE)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    for count in (1, 2):
        start = [*launch, count] if count > 1 else [sys.executable]
        command = [*start, tmp_path / "step.py", tmp_path / f"{count}.pt", *flags]
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=environment, timeout=240)
        assert done.returncode == 0, done.stderr
    (one_totals, one), (two_totals, two) = (torch.load(tmp_path / f"{count}.pt", weights_only=True) for count in (1, 2))
    assert one_totals == pytest.approx(two_totals, rel=1e-5) and one_totals[2] == 25
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-6, msg=name)


def test_seeds(data, tmp_path, capsys, monkeypatch):
    flags = ["--data", data, *imdb.BEST, "--epochs", 1, "--seeds", "3-4"]
    ended = []
    original = RunFolder.write_json

    def write_json(self, name, value):
        if name == "summary.json" and self.path.name == "seed-4" and not ended:
            ended.append(self.path)
            raise Killed
        return original(self, name, value)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RunFolder, "write_json", write_json)
        imdb.train_here(tmp_path / "runs", *flags)
    with pytest.raises(RunError, match="holds runs already: continue them with --resume"):
        imdb.train_here(tmp_path / "runs", *flags)
    before = (tmp_path / "runs" / "seed-3" / "summary.json").stat().st_mtime_ns
    imdb.train_here(tmp_path / "runs", *flags, "--resume")
    assert (tmp_path / "runs" / "seed-3" / "summary.json").stat().st_mtime_ns == before
    together, runs = summary(tmp_path / "runs"), [summary(tmp_path / "runs" / f"seed-{seed}") for seed in (3, 4)]
    a, b = (run["test_accuracy"] for run in runs)
    assert together["seeds"] == [3, 4] and together["test_accuracy"] == pytest.approx((a + b) / 2)
    assert together["deviation"]["test_accuracy"] == pytest.approx(abs(a - b) / 2**0.5)
    assert f"mean {(a + b) / 2:.4f}, standard deviation" in capsys.readouterr().out

    collect(tmp_path / "runs", tmp_path / "result.json")
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["summary"] == together and [run["summary"] for run in result["runs"]] == runs
    assert result["config"]["preset"] == "best" and "seed" not in result["config"]


def test_one_seed_has_no_deviation(best):
    assert combined([summary(best)])["deviation"]["test_accuracy"] is None


@pytest.mark.parametrize("text", ["", "3-1", "a", "1,1", "0-"])
def test_strange_seeds(text):
    result = imdb.run("train.py", "--seeds", text) if text == "a" else None
    if result is not None:
        assert result.returncode == 2 and "expected different seeds as 0-4 or 0,3,7, got 'a'" in result.stderr
    from argparse import ArgumentTypeError

    from options import seeds

    with pytest.raises(ArgumentTypeError):
        seeds(text)
    assert seeds("0-2,7") == [0, 1, 2, 7]


REFUSED = {
    "fp16 without a GPU": (["--precision", "fp16"], "--precision fp16 needs a GPU"),
    "n-grams for book": (["--preset", "book", "--ngrams", 5], "--ngrams means nothing to --preset book"),
    "perturbation for book": (["--preset", "book", "--adversarial", 1], "--adversarial means nothing to --preset book"),
    "no parts": ([*imdb.BEST, "--accumulate", 0], "--accumulate must be 1 or more, got 0"),
    "never": ([*imdb.BEST, "--checkpoint-every", 0], "--checkpoint-every must be 1 or more, got 0"),
}


@pytest.mark.parametrize("arguments, message", REFUSED.values(), ids=REFUSED)
def test_refused(data, tmp_path, arguments, message):
    with pytest.raises(RunError, match=message):
        imdb.train_here(tmp_path / "run", "--data", data, *arguments)
    assert not (tmp_path / "run").exists()


def test_a_diverged_run_keeps_its_last_checkpoint(data, tmp_path):
    with pytest.raises(RunError, match="the loss of epoch 1 is nan"):
        imdb.train_here(tmp_path / "run", "--data", data, *imdb.BEST, "--learning-rate", 1e38, "--clip", 1e38)
    assert not (tmp_path / "run" / "last.pt").exists()


def test_tensorboard(data, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output = imdb.train_here(tmp_path / "run", "--data", data, *imdb.BEST, "--tensorboard")
    events = EventAccumulator(str(output / "tensorboard"))
    events.Reload()
    got = [event.value for event in events.Scalars("validation/loss")]
    assert got == pytest.approx([line["validation_loss"] for line in metrics(output)])
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(RunError, match="--tensorboard needs the package: pip install tensorboard"):
        imdb.train_here(tmp_path / "other", "--data", data, *imdb.BEST, "--tensorboard")


@pytest.fixture(scope="module")
def semi(tmp_path_factory):
    return imdb.train_here(tmp_path_factory.mktemp("runs") / "semi", *SEMI, "--data", unlabelled(tmp_path_factory))


def unlabelled(tmp_path_factory):
    """A folder with unlabelled reviews, two of which also occur in the test part."""
    import pyarrow
    import pyarrow.parquet
    import sample

    folder = tmp_path_factory.getbasetemp() / "unlabelled"
    if not folder.exists():
        imdb.write_parquet(folder, train=120, test=40)
        texts = sample.generate(200, seed=9)[0] + sample.corpus(120, 40)[1][0][:2]
        pyarrow.parquet.write_table(
            pyarrow.table({"text": texts, "label": [-1] * len(texts)}), folder / "unsupervised.parquet"
        )
    return folder


def test_semi_starts_from_its_language_model(semi, tmp_path, tmp_path_factory, monkeypatch):
    stage = semi / "language-model"
    lines = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and lines[1]["validation_loss"] < lines[0]["validation_loss"]
    assert summary(semi)["epochs"] == 1 and len(metrics(semi)) == 1
    run = tmp_path / "run"
    shutil.copytree(stage, run / "language-model")
    for name in ("config.json", "vocabulary.json", "tokenizer.json"):
        shutil.copy(semi / name, run / name)
    started = {}

    def step(self, *arguments):
        started.update({name: p.detach().clone() for name, p in self.model.named_parameters()})
        raise Killed

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(Killed):
        imdb.train_here(run, *SEMI, "--data", unlabelled(tmp_path_factory), "--resume")
    words = load_file(stage / "best.safetensors")
    shared = [name for name in words if name.startswith(("embedding.", "gru."))]
    assert len(shared) == 5 and all(torch.equal(started[name], words[name]) for name in shared)


@pytest.mark.parametrize("stage", ["language model", "classifier"])
def test_semi_resumes_in_either_stage(semi, tmp_path, tmp_path_factory, monkeypatch, stage):
    left = 13 if stage == "language model" else 2
    owner, name = (LanguageModel, "forward") if stage == "language model" else (Trainer, "step")
    original = getattr(owner, name)

    def stopped(self, *arguments):
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed
        return original(self, *arguments)

    flags = [*SEMI, "--data", unlabelled(tmp_path_factory), "--checkpoint-every", 1]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stopped)
        with pytest.raises(Killed):
            imdb.train_here(tmp_path / "run", *flags)
    imdb.train_here(tmp_path / "run", *flags, "--resume")
    assert_same(tmp_path / "run", semi)
    assert_same(tmp_path / "run" / "language-model", semi / "language-model")


def test_semi_needs_unlabelled_reviews(data, tmp_path):
    with pytest.raises(DataError, match=r"must hold unsupervised.parquet or train/unsup"):
        imdb.train_here(tmp_path / "run", *SEMI, "--data", data)
    with pytest.raises(RunError, match="--lm-streams 90000 is too many for"):
        imdb.train_here(tmp_path / "run", *SEMI, "--lm-streams", 90_000)
