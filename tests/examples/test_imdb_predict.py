"""Prediction by a trained model: from the command line, of odd reviews, from folders that do not fit."""

import json
import os
import pickle
import shutil

import imdb
import pytest
import torch
from predict import Predictor
from run_folder import RunError
from vocabularies import learn

pytestmark = pytest.mark.slow


def test_predict(best):
    texts = ["i found this film wonderful .", "a", "the novel was dull . i found this film awful ."]
    result = imdb.run("predict.py", "--checkpoint", best, *texts)
    piped = imdb.run("predict.py", "--checkpoint", best, "-", input="\n".join(texts) + "\n")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines == piped.stdout.splitlines() and len(lines) == 3
    for line, text in zip(lines, texts, strict=True):
        label, probability = line.split()
        positive = Predictor(best)([text])[0]
        assert label == ("positive" if positive >= 0.5 else "negative")
        assert float(probability) == pytest.approx(max(positive, 1 - positive), abs=1e-4)


def test_predict_refuses(best, tmp_path):
    for arguments, message in (
        ((tmp_path / "nothing", "good"), "must be the folder of a run"),
        ((tmp_path, "good"), "vocabulary.json must be the vocabulary.json of a run"),
    ):
        result = imdb.run("predict.py", "--checkpoint", *arguments)
        assert result.returncode == 1 and message in result.stderr and "Traceback" not in result.stderr
    shutil.copytree(best, tmp_path / "run")
    (tmp_path / "run" / "vocabulary.json").write_text('["<unk>", "<pad>"]')
    (tmp_path / "run" / "tokenizer.json").unlink()
    result = imdb.run("predict.py", "--checkpoint", tmp_path / "run", "good")
    assert result.returncode == 1 and "was trained with the vocabulary" in result.stderr


ODD = {
    "HTML": "<script>alert('film')</script><br /><b>wonderful</b>",
    "NUL bytes": "a wonderful\x00 film\x00",
    "another script": "電影 film 很好看",
    "100,000 words": "film wonderful " * 50_000,
}


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_odd_reviews_have_a_prediction(best, text):
    (probability,) = Predictor(best)([text])
    assert 0 < probability < 1


@pytest.mark.parametrize(
    "text, message",
    [("", "no words"), (" \n<br />", "no words"), ("電影 xyzzy", "no word of the"), ("film \udcff", "not UTF-8 text")],
)
def test_reviews_that_cannot_be_read_are_named(best, text, message):
    first, wrong, last = Predictor(best)(["film", text, "film"])
    assert message in wrong and 0 < first == last < 1


def test_a_line_in_is_a_line_out(best):
    """Whatever stands on the others."""
    lines = [b"i found this film wonderful .", b"", b"xyzzy", b"\xff film", b"the novel was dull ."]
    alone = [imdb.run("predict.py", "--checkpoint", best, lines[i].decode()).stdout.strip() for i in (0, 4)]
    result = imdb.run("predict.py", "--checkpoint", best, "-", input=b"\n".join(lines), text=False)
    printed = result.stdout.decode().splitlines()
    assert result.returncode == 1 and b"3 of 5 reviews have no prediction" in result.stderr
    assert len(printed) == 5 and [printed[0], printed[4]] == alone
    for line, reason in zip(printed[1:4], ("no words", "no word of the", "not UTF-8 text"), strict=True):
        assert line.startswith(f"error: {reason}")


def test_a_review_in_a_batch_has_the_prediction_that_it_has_alone(best):
    predict = Predictor(best)
    texts = ["i found this film wonderful .", "film " * 300, "the novel was dull . i found this film awful ."]
    assert predict(texts) == pytest.approx([predict([text])[0] for text in texts], abs=1e-6)


def test_files_and_standard_input(best, tmp_path):
    (tmp_path / "review.txt").write_text("i found this film\nwonderful .\n")
    from_file = imdb.run("predict.py", "--checkpoint", best, "--file", tmp_path / "review.txt")
    direct = imdb.run("predict.py", "--checkpoint", best, "i found this film wonderful .")
    assert from_file.returncode == 0 and from_file.stdout == direct.stdout != ""
    (tmp_path / "review.txt").write_bytes(b"\xff\xfe film")
    refused = imdb.run("predict.py", "--checkpoint", best, "--file", tmp_path / "review.txt")
    assert (
        refused.returncode == 1
        and "--file must be a UTF-8 text" in refused.stderr
        and "Traceback" not in refused.stderr
    )


@pytest.fixture
def copy(best, tmp_path):
    shutil.copytree(best, tmp_path / "copy")
    return tmp_path / "copy"


def test_another_vocabulary_is_named(copy):
    for name, contents in learn("words", ["some other film"], 30).files().items():
        (copy / name).write_text(contents)
    with pytest.raises(RunError, match=r"trained with the vocabulary \w+ of \d+ words, but .* is \w+ of \d+ words"):
        Predictor(copy)


def test_another_format_is_named(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"format": 99}))
    with pytest.raises(RunError, match="a run of format 99; this code reads formats 1 and 2"):
        Predictor(copy)


class Trap:
    """A pickle that leaves a mark when it is read."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", ["last.pt", "best.safetensors", "vocabulary.json", "tokenizer.json", "config.json"])
def test_pickles_are_never_read(copy, data, tmp_path, name):
    (copy / name).write_bytes(pickle.dumps(Trap(tmp_path / "mark")))
    with pytest.raises(RunError, match=f"must be the .*|{name}"):
        if name == "last.pt":
            imdb.train_here(copy, "--data", data, *imdb.BEST, "--resume")
        else:
            Predictor(copy)
    assert not (tmp_path / "mark").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_named(best):
    with pytest.raises(RunError, match="--device cuda needs a GPU"):
        Predictor(best, "cuda")
