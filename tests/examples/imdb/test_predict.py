"""predict.py: its output, its messages for inputs without a prediction, and the model in the repository."""

import json
import shutil

import imdb
import pytest
from config import UserError
from predict import SHIPPED, Predictor

pytestmark = pytest.mark.slow

TEXTS = ["i found this film superb .", "this film is anything but superb , and the cast is dull ."]


def test_the_command_line(best):
    code, out, errors = imdb.run("predict.py", "--checkpoint", best, *TEXTS)
    assert code == 0 and not errors.strip("0")
    for line, probability in zip(out.splitlines(), map(Predictor(best), TEXTS), strict=True):
        label = "positive" if probability >= 0.5 else "negative"
        assert line == f"{label} {max(probability, 1 - probability):.4f}"


UNREADABLE = {
    b"": "no words",
    b"  \t": "no words",
    b"zelig dogville": "no word of the 137 that the model knows",
    "映画は素晴らしい".encode(): "no word of the 137",
    b"this film\0is dull": "NUL bytes",
    b"this film \xff": "not UTF-8 text",
    b"<br /> <br />": "no words",
}
READABLE = [b"<b>this</b> film is <i>dull</i>", "ﬁlm 映画 this film".encode(), b"this film " * 50_000]


def test_every_line_has_an_answer(best):
    lines = [*UNREADABLE, *READABLE]
    code, out, errors = imdb.run("predict.py", "--checkpoint", best, "-", text=b"\n".join(lines) + b"\n")
    answers = out.splitlines()
    assert code == 1 and len(answers) == len(lines)
    assert f"{len(UNREADABLE)} of {len(lines)} reviews have no prediction" in errors
    for answer, message in zip(answers, UNREADABLE.values(), strict=False):
        assert answer.startswith(f"error: {message}")
    assert all(answer.split()[0] in ("positive", "negative") for answer in answers[len(UNREADABLE) :])


@pytest.mark.parametrize("name", ["config.json", "vocabulary.json", "best.safetensors"])
def test_a_run_that_is_not_whole(best, tmp_path, name):
    run = shutil.copytree(best, tmp_path / "run")
    (run / name).unlink()
    with pytest.raises(UserError, match=f"{run / name} must be"):
        Predictor(run)
    with pytest.raises(UserError, match="must be the folder of a run"):
        Predictor(tmp_path / "nothing")


def test_weights_of_another_shape(best, tmp_path):
    run = shutil.copytree(best, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"hidden_size": 9}))
    with pytest.raises(UserError, match=r"(?s)best.safetensors must be the model of config.json .*: .*size mismatch"):
        Predictor(run)


@pytest.mark.skipif(not SHIPPED.exists(), reason="no model ships yet")
def test_the_shipped_model_reads_english():
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 4_000_000
    texts = ["I would not call this film dull: it is wonderful.", "A tedious, clumsy film. What a waste of time!"]
    assert [Predictor()(text) > 0.5 for text in texts] == [True, False]
    summary = json.loads((SHIPPED / "summary.json").read_text())
    assert summary["commit"] and summary["test_accuracy"] > 0.9
