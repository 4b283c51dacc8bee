"""The IMDB example run as a person runs it: outputs, resume, interruption, refusals, several processes, prediction."""

import json
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version

import imdb
import pytest
import torch
from run_folder import RunError, RunFolder
from safetensors.torch import load_file
from vocabularies import Spaces

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    imdb.write_parquet(folder, train=200, test=40)
    return folder


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A run of two epochs, and what it printed."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    result = imdb.train(output, "--data", data, "--epochs", 2)
    assert result.returncode == 0, result.stderr
    return output, result.stdout


def metrics(output):
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "tokens_per_second")} for line in lines]


def same_model(a, b, tolerance=0.0):
    a, b = load_file(a / "best.safetensors"), load_file(b / "best.safetensors")
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance)


def test_outputs(finished):
    output, printed = finished
    names = {
        "config.json",
        "vocabulary.json",
        "metrics.jsonl",
        "best.safetensors",
        "last.pt",
        "curves.png",
        "predictions.png",
        "summary.json",
    }
    assert {path.name for path in output.iterdir()} == names
    summary = json.loads((output / "summary.json").read_text())
    needed = {
        "test_accuracy",
        "test_loss",
        "best_epoch",
        "seconds",
        "tokens_per_second",
        "versions",
        "device",
        "commit",
    }
    assert needed <= summary.keys()
    assert 0 <= summary["test_accuracy"] <= 1 and summary["versions"]["torch"] == version("torch")
    assert len(metrics(output)) == 2
    assert (output / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert "epoch 2/2" in printed and "test accuracy" in printed


@pytest.mark.parametrize("preset", ["book", "book-masked"])
def test_describe(data, preset):
    result = imdb.run("train.py", "--preset", preset, "--data", data, "--describe")
    described = json.loads(result.stdout)
    vocabulary = described.pop("vocabulary")
    assert vocabulary > 50 and described["masked"] == (preset == "book-masked")
    assert {k: described[k] for k in ("train", "validation", "test", "classes")} == {
        "train": 160,
        "validation": 40,
        "test": 40,
        "classes": 2,
    }


def test_resume_equals_the_uninterrupted_run(finished, data, tmp_path):
    output, _ = finished
    half = tmp_path / "half"
    assert imdb.train(half, "--data", data, "--epochs", 1).returncode == 0
    result = imdb.train(half, "--data", data, "--epochs", 2, "--resume")
    assert result.returncode == 0, result.stderr
    assert "resuming" in result.stdout and "after epoch 1" in result.stdout
    assert metrics(half) == metrics(output)
    same_model(half, output)
    states = [torch.load(folder / "last.pt", weights_only=True)["trainer"]["model"] for folder in (half, output)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_seed_decides(finished, data, tmp_path):
    again, other = tmp_path / "again", tmp_path / "other"
    imdb.train(again, "--data", data, "--epochs", 2)
    imdb.train(other, "--data", data, "--epochs", 2, "--seed", 1)
    assert metrics(again) == metrics(finished[0]) != metrics(other)


@pytest.mark.parametrize("preset", ["book", "book-masked"])
def test_nn_gru_trains_the_same_model(data, tmp_path, preset):
    for gru in ("grucore", "torch"):
        result = imdb.train(tmp_path / gru, "--preset", preset, "--data", data, "--epochs", 2, "--gru", gru)
        assert result.returncode == 0, result.stderr
    ours, theirs = (metrics(tmp_path / gru) for gru in ("grucore", "torch"))
    for a, b in zip(ours, theirs, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)  # 1e-6 measured
        assert a["validation_loss"] == pytest.approx(b["validation_loss"], rel=1e-4)


def test_two_processes_equal_one(data, tmp_path):
    """DistributedDataParallel over gloo: the same global batches, the last one uneven."""
    options = ["--data", data, "--epochs", 2, "--dropout", 0, "--batch-size", 33]
    one = imdb.train(tmp_path / "one", *options)
    assert one.returncode == 0, one.stderr
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [imdb.EXAMPLE / "train.py", "--output", tmp_path / "two", *imdb.TINY, *options]
    two = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=imdb.environment(), timeout=240)
    assert two.returncode == 0, two.stderr
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["processes"] == 2
    for a, b in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)
        assert a["validation_accuracy"] == b["validation_accuracy"]
    same_model(tmp_path / "one", tmp_path / "two", tolerance=1e-4)


def test_interrupted_in_an_epoch_says_how_to_continue(data, tmp_path):
    output = tmp_path / "run"
    command = [sys.executable, str(imdb.EXAMPLE / "train.py"), "--output", str(output), *imdb.TINY, "--epochs", "500"]
    process = subprocess.Popen(
        [*command, "--data", str(data)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=imdb.environment(),
    )
    for line in process.stdout:
        if line.startswith("epoch 2/"):
            break
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    try:
        _, errors = process.communicate(timeout=20)
    except subprocess.TimeoutExpired:  # Python drops an interrupt that comes within a weak reference's callback
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 130, errors
    assert errors.endswith(f"continue with --resume --output {output}\n")
    assert "Traceback" not in errors or "Exception ignored" in errors
    assert not [path.name for path in output.iterdir() if path.name.startswith(".")]
    done = len(metrics(output))
    result = imdb.train(output, "--data", data, "--epochs", done + 1, "--resume")
    assert result.returncode == 0 and f"after epoch {done}" in result.stdout, result.stderr


def test_a_killed_write_leaves_no_trace(finished, data, tmp_path):
    """Metrics ahead of the checkpoint, as a kill between the two writes would leave them, are put right on resume."""
    output = tmp_path / "run"
    shutil.copytree(finished[0], output)
    with (output / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "half a li')
    result = imdb.train(output, "--data", data, "--epochs", 3, "--resume")
    assert result.returncode == 0, result.stderr
    assert [line["epoch"] for line in metrics(output)] == [1, 2, 3]


REFUSED = {
    "another run": (["--epochs", 2], "holds a run already: continue it with --resume"),
    "another seed": (["--epochs", 2, "--resume", "--seed", 9], "holds another run (seed: 0 there, 9 now)"),
    "another preset": (["--preset", "book", "--resume"], "masked: True there, False now"),
    "no epochs": (["--epochs", 0], "--epochs must be 1 or more, got 0"),
    "no GPU": (["--device", "cuda"], "--device cuda needs a GPU"),
}


@pytest.mark.parametrize("arguments, message", REFUSED.values(), ids=REFUSED)
def test_refused(finished, data, arguments, message):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    before = {path.name: path.read_bytes() for path in finished[0].iterdir()}
    result = imdb.train(finished[0], "--data", data, *arguments)
    assert result.returncode == 1 and message in result.stderr and "Traceback" not in result.stderr
    assert {path.name: path.read_bytes() for path in finished[0].iterdir()} == before


def test_a_folder_of_other_files_is_refused(data, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    result = imdb.train(tmp_path, "--data", data)
    assert "holds files and no run" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_missing_data_is_named_and_nothing_is_made(tmp_path):
    result = imdb.run("train.py", "--output", tmp_path / "run", "--data", tmp_path / "nothing")
    assert result.returncode == 1 and "which is no folder" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["last.pt", "best.safetensors", "config.json"])
def test_corrupt_checkpoints_are_named(finished, data, tmp_path, name):
    output = tmp_path / "run"
    shutil.copytree(finished[0], output)
    (output / name).write_bytes((output / name).read_bytes()[:100])
    result = imdb.train(output, "--data", data, "--epochs", 2, "--resume")
    assert result.returncode == 1 and f"{output / name} must be" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("name", ["last.pt", "best.safetensors", "metrics.jsonl", "summary.json"])
def test_a_full_disk_leaves_the_file_before(finished, tmp_path, name):
    """/dev/full stands for the disk: every write to it ends in "no space left on device"."""
    shutil.copytree(finished[0], tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    before = {path.name: path.read_bytes() for path in folder.path.iterdir()}
    writers = {
        "last.pt": lambda: folder.write_checkpoint({"model": {"w": torch.zeros(100_000)}}),
        "best.safetensors": lambda: folder.write_model({"w": torch.zeros(100_000)}, Spaces(["<unk>", "<pad>"])),
        "metrics.jsonl": lambda: folder.write_metrics([{"epoch": 1}]),
        "summary.json": lambda: folder.write_json("summary.json", {}),
    }

    (folder / f".unfinished-{name}").symlink_to("/dev/full")
    with pytest.raises(RunError, match=f"could not write .*{name}: .*is whole"):
        writers[name]()
    assert {path.name: path.read_bytes() for path in folder.path.iterdir()} == before


def test_patience_stops_early(data, tmp_path):
    imdb.train(tmp_path / "run", "--data", data, "--epochs", 40, "--patience", 1, "--learning-rate", 0.3)
    lines = metrics(tmp_path / "run")
    assert len(lines) < 40
    losses = [line["validation_loss"] for line in lines]
    assert losses.index(min(losses)) == len(losses) - 2


def test_the_sample_is_learned(tmp_path):
    """The whole road that `make imdb` goes, with a smaller layer and larger steps: a quarter of the time."""
    flags = ["--data", "sample", "--dropout", 0.2, "--epochs", 5, "--device", "cpu"]
    flags += ["--embedding-size", 64, "--hidden-size", 64, "--learning-rate", 4e-3]
    result = imdb.run("train.py", *flags, "--output", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert "synthetic" in result.stdout
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["test_accuracy"] > 0.95
