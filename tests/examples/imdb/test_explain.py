"""Explanations, checked against the sums that they must have and torch.nn.GRU; and the page."""

import html
import re

import imdb
import pytest
import torch
from config import UserError
from explain import MAX_TOKENS, TOLERANCE, explain
from page import percent, render, visible
from predict import Predictor
from torch import nn

pytestmark = pytest.mark.slow

TEXT = "my brother called it dull . i found this film wonderful , zelig ."


@pytest.fixture(params=["best", "book"], scope="module")
def predictor(request):
    return Predictor(request.getfixturevalue(request.param))


def test_contributions_add_up_to_the_score_less_that_of_a_blank_review(predictor):
    found, judge = explain(predictor, TEXT), predictor.judge
    assert abs(found.error) <= TOLERANCE
    tokens = predictor.encode(TEXT)[None]
    lengths = torch.tensor([tokens.shape[1]])
    blank = []
    for member in judge.members:
        x = torch.zeros(1, tokens.shape[1], member.gru.input_size)
        blank.append(member.read(x, lengths)[0])
    rest = 0.0 if judge.ngrams is None else judge.weight_of_ngrams * judge.ngrams.bias
    blank = (torch.stack(blank).mean() * (1 - judge.share) + rest) * judge.sharpness
    assert sum(found.contributions) == pytest.approx(found.score - blank.item(), abs=TOLERANCE + 1e-4)
    assert found.running[-1] == pytest.approx(predictor(TEXT), abs=1e-6)


def test_gates_are_those_of_the_equations(best):
    predictor = Predictor(best)
    text = TEXT * 6  # of more than one segment
    found, member = explain(predictor, text), predictor.judge.members[0]
    tokens = predictor.encode(text)[None]
    lengths = torch.tensor([tokens.shape[1]])
    x = member.embed(tokens, predictor.judge.ngrams.evidence(tokens, lengths))[0]
    reference = nn.GRUCell(x.shape[1], 8)
    for direction, suffix in enumerate(("l0", "l0_reverse")):
        weights = {name: getattr(member.gru, f"{name}_{suffix}") for name in reference.state_dict()}
        reference.load_state_dict(weights)
        for begin in range(0, len(x), 64):
            h, steps = torch.zeros(8), range(begin, min(begin + 64, len(x)))
            for t in steps if direction == 0 else reversed(steps):
                gi = reference.weight_ih @ x[t] + reference.bias_ih
                gh = reference.weight_hh @ h + reference.bias_hh
                r, z = (gi + gh)[:8].sigmoid(), (gi + gh)[8:16].sigmoid()
                assert found.reset[direction][t] == pytest.approx(r.mean().item(), abs=1e-5)
                assert found.update[direction][t] == pytest.approx(z.mean().item(), abs=1e-5)
                h = reference(x[t][None], h[None])[0]


def test_the_running_prediction_is_of_the_reviews_beginnings(predictor):
    found = explain(predictor, TEXT)
    words = TEXT.split()
    assert found.places == list(range(1, len(words) + 1))
    readable = [predictor(" ".join(words[:n])) for n in found.places]
    assert found.running == pytest.approx(readable, abs=1e-5)


def test_a_long_review_is_cut_and_the_page_says_so(best):
    found = explain(Predictor(best), "this film is dull " * 25_000)
    assert found.left_out == 100_000 - MAX_TOKENS and len(found.contributions) == MAX_TOKENS
    assert len(found.running) == 200 and found.places[-1] == MAX_TOKENS
    assert "Only the first 1,000 tokens were read: 99,000 more are left out" in render(found)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "no words"), ("zelig", "no word of the"), ("film \0", "NUL bytes"), ("film \udcff", "not UTF-8 text")],
)
def test_what_cannot_be_judged(best, text, message):
    with pytest.raises(UserError, match=message):
        explain(Predictor(best), text)


def test_the_page_escapes_and_loads_nothing(best):
    page = render(explain(Predictor(best), '<script>alert("this film")</script> \u202e film {{ 7 * 7 }}'))
    assert "<script" not in page and "&lt;" in page and "\\u202e" in page and "49" not in page.split("review")[-1]
    assert not re.search(r"(src|href)=|url\(|@import", page)
    words = [html.unescape(word) for word in re.findall(r"<bdi[^>]*>(.*?)</bdi>", page)]
    assert words[:3] == ["<", "script", ">"] and "film" in words


def test_the_command_line(best, tmp_path):
    target = tmp_path / "why.html"
    flags = ["--checkpoint", best, "--html", target]
    code, out, _ = imdb.run("explain.py", *flags, TEXT)
    assert code == 0 and out.split()[0] in ("positive", "negative") and "<html" in target.read_text()
    target.write_text("mine")
    code, _, errors = imdb.run("explain.py", *flags, TEXT)
    assert code == 1 and "exists: --force overwrites it" in errors and target.read_text() == "mine"
    code, _, errors = imdb.run("explain.py", *flags, "--force", "-", text=b"\xff film")
    assert code == 1 and "not UTF-8" in errors and target.read_text() == "mine"
    code, _, errors = imdb.run("explain.py", "--checkpoint", best, "--html", tmp_path / "no" / "f.html", TEXT)
    assert code == 1 and "must be a file in a folder that exists" in errors


def test_words_and_figures_as_they_are_shown():
    assert visible("a\x1b\u202eb") == "a\\u001b\\u202eb" and len(visible("x" * 99)) == 40
    assert [percent(p) for p in (0.0001, 0.5, 0.9999)] == ["under 0.1 %", "50.0 %", "over 99.9 %"]
