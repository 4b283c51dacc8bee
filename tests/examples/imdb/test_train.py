"""Runs on tiny data: their files, interruptions anywhere, precision, several processes, and refused arguments."""

import contextlib
import json
import os
import runpy
import shutil
import signal
import sys
import time
from pathlib import Path

import imdb
import ngrams
import pytest
import run_folder
import torch
import train
from config import UserError
from filelock import FileLock
from run_folder import RunFolder

pytestmark = pytest.mark.slow

NO_DROPOUT = ["--dropout", 0, "--embedding-dropout", 0, "--word-dropout", 0]
FILES = {".lock", "config.json", "vocabulary.json", "metrics.jsonl", "best.safetensors", "last.pt", "curves.png"}
FILES |= {"summary.json", "predictions.png"}


class Killed(Exception):
    """Ends a run in the middle of a step."""


def killed_after(steps, monkeypatch):
    """Ends the run before a GRU takes one more step."""
    left, step = iter(range(steps)), train.Trainer.step

    def counted(self, *arguments):
        if next(left, None) is None:
            raise Killed
        return step(self, *arguments)

    monkeypatch.setattr(train.Trainer, "step", counted)


def assert_same(a, b):
    """The same metrics and, bit for bit, the same models and state."""
    assert imdb.metrics(a) == imdb.metrics(b)
    first, second = imdb.state(a), imdb.state(b)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_a_run_of_best_leaves(best):
    assert {path.name for path in best.iterdir()} == FILES
    found = json.loads((best / "summary.json").read_text())
    assert found["test_reviews_also_in_train"] == 0
    assert found["test_accuracy_without_those"] == found["test_accuracy"]
    assert len(found["test_accuracy_of_each_gru"]) == len(found["best_epoch"]) == 2
    names = {"test_accuracy_gru", "test_accuracy_ngrams", "test_calibration_error", "test_gain_over_ngrams"}
    names |= {"test_gain_standard_error", "test_loss", "validation_accuracy", "seconds", "tokens_per_second"}
    assert names | {"commit", "command", "processor", "device"} <= found.keys()
    assert found["threads"] == torch.get_num_threads() and found["versions"]["tokenizers"]
    assert found["metrics"] == [json.loads(line) for line in (best / "metrics.jsonl").read_text().splitlines()]
    assert found["config"]["hidden_size"] == 8 and len(found["metrics"]) == 4
    assert (best / "predictions.png").read_bytes()[:4] == (best / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_the_test_split_can_be_left_for_later(tree, tmp_path, capsys):
    flags = ["--data", tree, "--epochs", 1]
    summary = imdb.train(tmp_path / "run", *flags, "--no-test") / "summary.json"
    found = json.loads(summary.read_text())
    assert "validation_accuracy" in found and not [name for name in found if name.startswith("test_")]
    imdb.train(tmp_path / "run", *flags, "--no-test", "--resume")
    assert "already ended" in capsys.readouterr().out and json.loads(summary.read_text()) == found
    imdb.train(tmp_path / "run", *flags, "--resume")
    tested = json.loads(summary.read_text())
    assert "test_accuracy" in tested and tested["metrics"] == found["metrics"]


def test_a_run_killed_before_its_second_test_is_tested_when_it_resumes(book, data, tmp_path, monkeypatch):
    run = shutil.copytree(book, tmp_path / "run")
    flags = ["--data", data, *imdb.BOOK, "--epochs", 2, "--resume"]
    with monkeypatch.context() as patch, pytest.raises(TypeError):
        patch.setattr(train, "evaluate", None)
        imdb.train(run, *flags)
    imdb.train(run, *flags)
    assert len(json.loads((run / "summary.json").read_text())["metrics"]) == 2


def test_it_is_tested_later_without_fitting_n_grams_again(best, data, tmp_path, monkeypatch):
    run = imdb.train(tmp_path / "run", "--data", data, *imdb.BEST, "--no-test")
    digest = RunFolder(run).digest()
    with monkeypatch.context() as patch:
        patch.setattr(ngrams.NGrams, "fit", None)
        imdb.train(run, "--data", data, *imdb.BEST, "--resume")
    assert RunFolder(run).digest() == digest  # by which runs that it teaches know it
    assert_same(best, run)
    later, at_once = (json.loads((each / "summary.json").read_text()) for each in (run, best))
    assert later["test_loss"] == at_once["test_loss"]


def test_a_test_split_that_is_all_in_the_training_split(tree, tmp_path):
    shutil.copytree(tree / "train", tmp_path / "data" / "train")
    shutil.copytree(tree / "train", tmp_path / "data" / "test")
    run = imdb.train(tmp_path / "run", "--data", tmp_path / "data", "--epochs", 1)
    found = json.loads((run / "summary.json").read_text())
    assert found["test_reviews_also_in_train"] == 120 and "test_accuracy_without_those" not in found


def test_the_summary_is_right(best, data):
    """Checked against the predictor, which reads the files."""
    import pyarrow.parquet
    from predict import Predictor

    table = pyarrow.parquet.read_table(data / "test.parquet")
    probabilities = torch.tensor([*map(Predictor(best), table["text"].to_pylist())])
    right = (probabilities > 0.5) == torch.tensor(table["label"].to_pylist()).bool()
    summary = json.loads((best / "summary.json").read_text())
    assert summary["test_accuracy"] == pytest.approx(right.double().mean().item(), abs=1e-6)
    gain = summary["test_accuracy"] - summary["test_accuracy_ngrams"]
    assert summary["test_gain_over_ngrams"] == pytest.approx(gain, abs=1e-6)


def test_a_kill_at_any_moment_resumes_with_the_same_bits(tree, tmp_path):
    flags = ["--data", tree, "--epochs", 3, "--batch-size", 8, "--checkpoint-every", 1]
    whole = imdb.train(tmp_path / "whole", *flags)
    process = imdb.start("--output", tmp_path / "killed", *flags)
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "metrics.jsonl").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "killed" / "summary.json").exists()
    assert_same(whole, imdb.train(tmp_path / "killed", *flags, "--resume"))


@pytest.mark.parametrize("steps", [3, 9, 20])  # 6 an epoch; two epochs; two GRUs
def test_best_resumes_from_anywhere(best, data, tmp_path, monkeypatch, steps):
    flags = ["--data", data, *imdb.BEST, "--checkpoint-every", 2]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_after(steps, patch)
        imdb.train(tmp_path / "run", *flags)
    assert_same(best, imdb.train(tmp_path / "run", *flags, "--resume"))


def test_semi_resumes(best, data, tmp_path, monkeypatch):
    flags = ["--data", data, *imdb.SEMI, "--seed", 3, "--pretraining-epochs", 0, "--teacher", best]
    whole = imdb.train(tmp_path / "whole", *flags)
    for steps in (0, 4, 10):  # after the labels; in the first GRU; in the second
        with monkeypatch.context() as patch, pytest.raises(Killed):
            killed_after(steps, patch)
            imdb.train(tmp_path / "run", *flags, "--resume")
    assert (tmp_path / "run" / "soft-labels.safetensors").exists()
    assert_same(whole, imdb.train(tmp_path / "run", *flags, "--resume"))
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["config"]["plain"] == 1 and len(summary["test_accuracy_of_each_gru"]) == 2


def test_a_batch_in_parts_is_the_same_batch(data, tmp_path):
    flags = ["--data", data, *imdb.BEST, *NO_DROPOUT, "--epochs", 1]
    whole, parts = (
        imdb.state(imdb.train(tmp_path / str(n), *flags, "--accumulate", n))["members.0.out.weight"] for n in (1, 3)
    )
    torch.testing.assert_close(whole, parts, atol=1e-5, rtol=1e-3)


def test_grus_alone(data, tmp_path):
    run = imdb.train(tmp_path / "run", "--data", data, *imdb.BEST, "--ngrams", 0, "--epochs", 1)
    summary = json.loads((run / "summary.json").read_text())
    assert len(summary["test_accuracy_of_each_gru"]) == 2 and "test_gain_over_ngrams" not in summary


def test_bfloat16(data, tmp_path):
    run = imdb.train(tmp_path / "run", "--data", data, "--epochs", 1, "--precision", "bf16")
    assert imdb.state(run)["last embedding.weight"].dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_best_on_a_gpu(data, tmp_path):
    run = imdb.train(tmp_path / "run", "--data", data, *imdb.BEST, "--device", "cuda")
    assert json.loads((run / "summary.json").read_text())["device"] != "cpu"


def test_float16_is_half_the_file_and_what_is_tested(best, data, tmp_path):
    run = imdb.train(tmp_path / "run", "--data", data, *imdb.BEST, "--stored", "float16")
    tensors = imdb.state(run)
    assert tensors["members.0.embedding.weight"].dtype == torch.float16 and tensors["ngrams.keys"].dtype == torch.int64
    assert (run / "best.safetensors").stat().st_size < 0.75 * (best / "best.safetensors").stat().st_size
    assert imdb.metrics(run) == imdb.metrics(best)


TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--standalone"]


def test_two_processes_train_what_one_does(tree, tmp_path):
    flags = ["--data", tree, *NO_DROPOUT[:2], "--batch-size", 7]
    one = imdb.train(tmp_path / "one", *flags, "--epochs", 1)
    process = imdb.start("--output", tmp_path / "two", *flags, "--epochs", 1, before=TORCHRUN)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    first, second = imdb.metrics(one)[0], imdb.metrics(tmp_path / "two")[0]
    assert first.keys() == second.keys()
    assert all(first[name] == pytest.approx(second[name], rel=1e-4) for name in first)
    first, second = imdb.state(one), imdb.state(tmp_path / "two")
    for name in ("0 exp_avg", "members.0.out.weight"):  # Adam's first moment: the gradients up to a factor
        torch.testing.assert_close(first[name], second[name], atol=1e-5, rtol=1e-3)
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["processes"] == 2


def rank_of(launcher, rank):
    """The process of a rank that torchrun has started."""
    for process in Path(f"/proc/{launcher.pid}/task").glob("*/children"):
        for child in process.read_text().split():
            if f"RANK={rank}" in Path(f"/proc/{child}/environ").read_text().split("\0"):
                return int(child)
    raise AssertionError(f"rank {rank} does not run")


def kill_a_rank(launcher, rank, folder):
    """Kills a rank after some more steps, each of which replaces the checkpoint; torchrun must end with an error."""
    seen, deadline = set(), time.monotonic() + 120
    while len(seen) < 4:
        assert launcher.poll() is None and time.monotonic() < deadline, launcher.communicate()
        with contextlib.suppress(FileNotFoundError):
            seen.add((folder / "last.pt").stat().st_mtime_ns)
    os.kill(rank_of(launcher, rank), signal.SIGKILL)
    output, _ = launcher.communicate(timeout=60)  # the other rank gets 30 s to end
    assert launcher.returncode != 0 and "Signal 9 (SIGKILL)" in output, output


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_rank_that_dies_ends_the_run_which_resumes_with_the_same_bits(tree, tmp_path):
    flags = ["--data", tree, "--epochs", 3, "--batch-size", 8, "--checkpoint-every", 1]
    launcher = imdb.start("--output", tmp_path / "whole", *flags, before=TORCHRUN)
    output, _ = launcher.communicate(timeout=240)
    assert launcher.returncode == 0, output
    run = RunFolder(tmp_path / "killed")
    for rank in (1, 0):  # 0 is the one that writes
        launcher = imdb.start("--output", run.path, *flags, "--resume", before=TORCHRUN)
        kill_a_rank(launcher, rank, run.path)
        assert run.read_checkpoint()["trainer"]["step_count"] and not (run / "summary.json").exists()
    launcher = imdb.start("--output", run.path, *flags, "--resume", before=TORCHRUN)
    output, _ = launcher.communicate(timeout=240)
    assert launcher.returncode == 0, output
    assert {path.name for path in run.path.iterdir()} == FILES
    assert_same(tmp_path / "whole", run.path)


def test_describe_prints_json_and_makes_nothing(data, tmp_path):
    code, out, _ = imdb.run("train.py", "--preset", "book", "--data", data, "--describe", "--output", tmp_path / "run")
    described = json.loads(out)
    sizes = {"train": 96, "validation": 24, "test": 40, "classes": 2, "epochs": 40}
    assert code == 0 and described.items() >= sizes.items() and described["vocabulary"] > 50
    assert not (tmp_path / "run").exists()


REFUSED = {
    "a run without --resume": ([], "already contains a run: continue it with --resume"),
    "another run": (["--hidden-size", 9, "--resume"], "contains another run (hidden_size: 8 there, 9 now)"),
    "another seed": (["--seed", 1, "--resume"], "seed: 0 there, 1 now"),
    "no preset's flag": (["--ngrams", 5], "--ngrams is not used by --preset book-masked"),
    "out of range": (["--epochs", 0], "--epochs must be from 1 to inf, got 0"),
    "no probability": (["--dropout", 1.5], "--dropout must be from 0 to 1, got 1.5"),
    "fp16 on a CPU": (["--precision", "fp16"], "--precision fp16 needs a GPU"),
    "a seed below 0": (["--seed", -1], "--seed must be from 0 to 4294967295, got -1"),
    "no GPU": (["--device", "cuda"], "--device cuda needs a GPU"),
}


@pytest.mark.parametrize(("flags", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(book, data, flags, message):
    if "cuda" in flags and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    before = {path.name: path.read_bytes() for path in book.iterdir()}
    with pytest.raises(UserError) as caught:
        imdb.train(book, "--data", data, *imdb.BOOK, "--epochs", 1, *flags)
    assert message in str(caught.value)
    assert {path.name: path.read_bytes() for path in book.iterdir()} == before


def test_a_run_in_use_is_refused(book, data, tmp_path):
    run = shutil.copytree(book, tmp_path / "run")
    with FileLock(run / ".lock"), pytest.raises(UserError, match="contains a run that another process is training"):
        imdb.train(run, "--data", data, *imdb.BOOK, "--epochs", 2, "--resume")
    imdb.train(run, "--data", data, *imdb.BOOK, "--epochs", 2, "--resume")


def test_a_lock_that_cannot_be_written_is_named(book, data, tmp_path):
    run = shutil.copytree(book, tmp_path / "run", ignore=shutil.ignore_patterns(".lock"))
    (run / ".lock").mkdir()
    with pytest.raises(UserError, match=r"could not write .*lock"):
        imdb.train(run, "--data", data, *imdb.BOOK, "--epochs", 2, "--resume")


def test_data_that_changed_underneath_are_refused(tmp_path):
    folder = imdb.write_parquet(tmp_path / "data")
    run = imdb.train(tmp_path / "run", "--data", folder, "--epochs", 1)
    imdb.write_parquet(folder, train=44)
    with pytest.raises(UserError, match=r"contains another run \(reviews: .* there, .* now\)"):
        imdb.train(run, "--data", folder, "--epochs", 2, "--resume")


def test_a_folder_of_other_files_is_refused(data, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="contains files but not a run"):
        imdb.train(tmp_path, "--data", data)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_place_of_the_folder_is_named(data, tmp_path):
    (tmp_path / "file").touch()
    for output in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=r"could not write .*lock: .*(File exists|Not a directory)"):
            imdb.train(output, "--data", data)


def test_epochs_may_change_for_one_gru_only_and_are_recorded(book, data, tmp_path):
    run = shutil.copytree(book, tmp_path / "run")
    imdb.train(run, "--data", data, *imdb.BOOK, "--epochs", 2, "--resume")
    assert json.loads((run / "config.json").read_text())["epochs"] == 2
    two = imdb.train(tmp_path / "two", "--data", data, *imdb.BOOK, "--epochs", 1, "--members", 2)
    with pytest.raises(UserError, match=r"epochs: 1 there, 2 now"):
        imdb.train(two, "--data", data, *imdb.BOOK, "--epochs", 2, "--members", 2, "--resume")


def test_a_teacher_has_ended_and_stays(data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_after(9, patch)
        imdb.train(tmp_path / "best", "--data", data, *imdb.BEST)
    ended = [imdb.train(tmp_path / str(seed), "--data", data, *imdb.BEST, "--seed", seed) for seed in (1, 2)]
    run = imdb.train(tmp_path / "semi", "--data", data, *imdb.SEMI, "--teacher", ended[0])
    with pytest.raises(UserError, match=r"contains another run \(teacher: '\w+' there, '\w+' now\)"):
        imdb.train(run, "--data", data, *imdb.SEMI, "--teacher", ended[1], "--resume")
    for teacher in ("best", "nowhere"):
        with pytest.raises(UserError, match=f"must be a run that has ended, and .*{teacher} has no summary.json"):
            imdb.train(tmp_path / "run", "--data", data, *imdb.SEMI, "--teacher", tmp_path / teacher)
    for preset in (imdb.SEMI, [*imdb.BEST, "--teacher", ended[0]]):
        with pytest.raises(UserError, match=r"--teacher RUN, .* is needed for semi, and only for it"):
            imdb.train(tmp_path / "run", "--data", data, *preset)
    assert not (tmp_path / "run").exists()


def test_too_few_reviews_are_named(tmp_path):
    folder = imdb.write_parquet(tmp_path / "data", train=6)
    with pytest.raises(UserError, match="too few reviews of either label are left for training"):
        imdb.train(tmp_path / "run", "--data", folder, *imdb.BEST)


def test_missing_data_are_named_and_nothing_is_made(tmp_path):
    with pytest.raises(UserError, match="which is not a folder"):
        imdb.train(tmp_path / "run", "--data", tmp_path / "nothing")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["last.pt", "best.safetensors", "config.json", "vocabulary.json"])
def test_truncated_files_are_named(book, data, tmp_path, name):
    run = shutil.copytree(book, tmp_path / "run")
    (run / name).write_bytes((run / name).read_bytes()[:100])
    with pytest.raises(UserError, match=f"{run / name} must be"):
        imdb.train(run, "--data", data, *imdb.BOOK, "--epochs", 2, "--resume")


def test_other_formats_and_vocabularies_are_named(book, best, tmp_path):
    run = shutil.copytree(book, tmp_path / "run")
    shutil.copy(best / "vocabulary.json", run)
    with pytest.raises(
        UserError, match=r"with vocabulary \w+ of \d+ words, but the folder has vocabulary \w+ of \d+ words"
    ):
        RunFolder(run).read_judge(RunFolder(run).read_tokenizer())
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"format": 2}))
    with pytest.raises(UserError, match="contains a run of format 2; this code reads format 4"):
        RunFolder(run).read_config()


@pytest.mark.parametrize("name", ["last.pt", "best.safetensors", "metrics.jsonl", "curves.png"])
def test_a_full_disk_leaves_the_files_before_and_the_run_resumes(book, data, tmp_path, monkeypatch, name):
    """/dev/full acts as the disk: every write to it fails with "no space left on device"."""
    run = shutil.copytree(book, tmp_path / "run")
    (run / f".unfinished-{name}").symlink_to("/dev/full")
    before = (run / name).read_bytes()
    flags = ["--data", data, *imdb.BOOK, "--epochs", 2, "--resume"]
    with pytest.raises(UserError, match=f"could not write .*{name}: .*is intact"):
        imdb.train(run, *flags)
    assert (run / name).read_bytes() == before and not (run / f".unfinished-{name}").exists()
    imdb.train(run, *flags)
    assert len(imdb.metrics(run)) == 2


def test_a_loss_that_is_not_finite_ends_the_run(data, tmp_path):
    with pytest.raises(UserError, match="epoch 1/40 ended with a non-finite loss: try a lower --learning-rate"):
        imdb.train(tmp_path / "run", "--data", data, "--learning-rate", 1e30)


def test_a_pickle_in_a_checkpoint_is_not_run(book, data, tmp_path):
    run = shutil.copytree(book, tmp_path / "run")
    torch.save({"trainer": run_folder.provenance}, run / "last.pt")
    with pytest.raises(UserError, match="must be the checkpoint of a run"):
        imdb.train(run, "--data", data, *imdb.BOOK, "--epochs", 2, "--resume")


def test_errors_end_the_script_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "sys.argv", ["train.py", "--output", str(tmp_path / "run"), "--data", str(tmp_path / "nothing")]
    )
    with pytest.raises(SystemExit, match=r"^error: --data must be .*, which is not a folder$"):
        runpy.run_path(str(imdb.EXAMPLE / "train.py"), run_name="__main__")


def test_the_sample_is_learned(tmp_path):
    """Runs `make imdb` with a smaller layer and a higher learning rate, in a quarter of the time."""
    flags = ["--data", "sample", "--dropout", 0.2, "--epochs", 5, "--learning-rate", 4e-3]
    run = imdb.train(tmp_path / "run", *flags, "--embedding-size", 64, "--hidden-size", 64)
    assert json.loads((run / "summary.json").read_text())["test_accuracy"] > 0.95
