"""Why a review was judged as it was: against Captum and torch.nn.GRU in float64, and models whose answer is known."""

import base64
import hashlib
import io
import os
import sys
from html.parser import HTMLParser
from types import SimpleNamespace
from unittest import mock

import imdb
import pytest
import torch
from attribution import TOLERANCE, integrated_gradients
from captum.attr import IntegratedGradients
from explain import explain
from explain import main as explain_command
from matplotlib import image
from model import build
from page import LISTED, POLICY, render
from picture import save_picture
from predict import Predictor
from run_folder import RunError
from torch import nn
from vocabularies import Spaces

import grucore

pytestmark = pytest.mark.slow

WORDS = ["<unk>", "<pad>", "good", "bad", "so", "plain", "film", "not"]
REVIEW = "good film not so good so not bad film not plain film so plain"
LAST_STATE = {"seed": 0, "embedding_size": 6, "hidden_size": 5, "dropout": 0.0, "masked": True, "gru": "grucore"}
SEGMENTS = LAST_STATE | {"model": "segments", "bidirectional": True, "segment": 4, "crop": None, "last": False}
SEGMENTS |= {"head_size": 0, "embedding_dropout": 0.0, "word_dropout": 0.0, "ngrams": 0, "ngram_order": 3}
MODELS = {"book": LAST_STATE | {"masked": False}, "book-masked": LAST_STATE, "best": SEGMENTS}
every_model = pytest.mark.parametrize("config", list(MODELS.values()), ids=list(MODELS))
HOSTILE = "<script>alert(1)</script> \"><img/src=x/onerror=y> ' </title> </style> &lt; good {{ 7 * 7 }}"
HOSTILE += " \x00\x1b[31m \u202eabc"


def ids(text):
    return torch.tensor([WORDS.index(word) if word in WORDS else 0 for word in text.split()])


def around(model):
    """What `explain` uses of a Predictor, around a model of WORDS."""
    return SimpleNamespace(model=model.eval(), tokenizer=Spaces(WORDS), vocabulary=WORDS, device=torch.device("cpu"))


def lively(config):
    """A model whose gates and scores vary more than those of fresh weights."""
    model = build(config, len(WORDS))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model.eval()


def on_nn_gru(config):
    """The same model on torch.nn.GRU, in float64."""
    model = lively(config)
    model.gru = model.gru.to_torch()
    return model.double()


def log_odds(logits):
    return logits[:, 1] - logits[:, 0]


class Linear(nn.Module):
    """The log-odds are the sum of the words' values, so that contributions and running prediction are known."""

    masked = True
    values = torch.tensor([0.0, 0.0, 2.0, -3.0, 0.5, 0.0, 0.0, 0.0])

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(len(WORDS), 3)
        self.gru = grucore.GRU(3, 4, batch_first=True)
        with torch.no_grad():
            self.embedding.weight[:, 0] = self.values - self.embedding.weight[:, 1:].sum(1)

    def forward(self, tokens, lengths):
        x = self.embedding(tokens)
        self.gru(x, lengths=lengths)
        half = (x.sum(2) * (torch.arange(tokens.shape[1]) < lengths[:, None])).sum(1) / 2
        return torch.stack([-half, half], 1)


@pytest.mark.parametrize(
    ("preset", "limit"),
    [("book", 1e-5), ("book-masked", 1e-5), ("best", 2e-3)],  # 3e-7 and 7e-4: the largest of states has kinks
)
def test_contributions_equal_captum_on_nn_gru(preset, limit):
    config = MODELS[preset]
    got = explain(around(lively(config)), REVIEW, tolerance=0.002)
    model = on_nn_gru(config)

    def score(x):
        if "model" in config:
            return log_odds(model.read(x, torch.full((len(x),), x.shape[1])))
        return log_odds(model.out(model.gru(x)[0][:, -1]))

    x = model.embedding(ids(REVIEW))[None].detach()
    want = IntegratedGradients(score).attribute(x, method="riemann_middle", n_steps=3000).sum(2)[0]
    error = (got.contributions - want).square().mean().sqrt() / want.square().mean().sqrt()
    assert error < limit
    assert got.score == pytest.approx(score(x).item(), abs=1e-4)
    assert got.baseline == pytest.approx(score(0 * x).item(), abs=1e-4)


def test_a_linear_model_is_explained_exactly():
    got = explain(around(Linear()), "good bad so plain good bad bad")
    values = torch.tensor([2, -3, 0.5, 0, 2, -3, -3])
    torch.testing.assert_close(got.contributions, values, atol=1e-5, rtol=0)
    torch.testing.assert_close(got.running, values.cumsum(0).sigmoid(), atol=1e-5, rtol=0)
    assert got.flips == [1, 4, 5] and got.label == "negative"  # sums: 2, -1, -0.5, -0.5, 1.5, -1.5, -4.5
    assert got.known == [True] * 7 and got.words[:2] == ["good", "bad"]


def test_a_cliff_on_the_path_is_found():
    """A function of the sum alone: each token's share of the rise is its share of the sum, however steep the rise."""
    x = torch.tensor([[1.0, 0.5], [-0.25, 0.0], [2.0, 1.0]])

    def score(batch):
        return 10 * torch.sigmoid(2000 * (batch.sum((1, 2)) / x.sum() - 0.3712))

    got = integrated_gradients(score, x)
    assert got.error <= TOLERANCE
    torch.testing.assert_close(got.contributions, 10 * x.sum(1) / x.sum(), atol=TOLERANCE, rtol=0)

    early = integrated_gradients(score, x, max_points=45)
    assert early.error > TOLERANCE  # which the page then says
    assert early.error >= abs(early.contributions.sum().item() - (early.score - early.baseline)) - 1e-5


@every_model
def test_contributions_add_up(config):
    got = explain(around(lively(config)), REVIEW)
    assert got.error <= TOLERANCE
    assert got.contributions.sum().item() == pytest.approx(got.score - got.baseline, abs=TOLERANCE)
    assert got.contributions.abs().max() > 0.1


def gates_of_nn_gru(gru, x, suffix=""):
    """Mean reset and update gate of each step of x (T, I), from nn.GRU's own states and the documented equations."""
    w_ih, w_hh, b_ih, b_hh = (
        getattr(gru, f"{name}_l0{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    one_way = nn.GRU(gru.input_size, gru.hidden_size, batch_first=True).double()
    one_way.load_state_dict({"weight_ih_l0": w_ih, "weight_hh_l0": w_hh, "bias_ih_l0": b_ih, "bias_hh_l0": b_hh})
    x = x.flip(0) if suffix else x
    h = torch.cat([x.new_zeros(1, gru.hidden_size), one_way(x)[0][:-1]])
    r, z, _ = (x @ w_ih.T + b_ih + h @ w_hh.T + b_hh).sigmoid().chunk(3, 1)
    return [gate.mean(1).flip(0) if suffix else gate.mean(1) for gate in (r, z)]


@every_model
def test_gates_equal_those_of_nn_gru(config):
    got = explain(around(lively(config)), REVIEW)
    model = on_nn_gru(config)
    rows = model.embedding(ids(REVIEW)).split(config.get("segment", 1000))
    suffixes = ["", "_reverse"] if config.get("bidirectional") else [""]
    assert got.directions == (["→", "←"] if config.get("bidirectional") else [""])
    for i, suffix in enumerate(suffixes):
        reset, update = zip(*(gates_of_nn_gru(model.gru, row, suffix) for row in rows), strict=True)
        torch.testing.assert_close(got.reset[i].double(), torch.cat(reset), atol=1e-6, rtol=0)
        torch.testing.assert_close(got.update[i].double(), torch.cat(update), atol=1e-6, rtol=0)


@every_model
def test_the_running_prediction_is_that_of_each_beginning(config, monkeypatch):
    got = explain(around(lively(config)), REVIEW)
    model, tokens = on_nn_gru(config), ids(REVIEW)
    want = [model(tokens[None, :t], torch.tensor([t])).softmax(1)[0, 1] for t in range(1, len(tokens) + 1)]
    torch.testing.assert_close(got.running.double(), torch.stack(want), atol=1e-6, rtol=0)


@every_model
def test_a_run_on_nn_gru_is_explained_alike(config):
    one, other = (explain(around(lively(config | {"gru": gru})), REVIEW) for gru in ("grucore", "torch"))
    for name in ("contributions", "reset", "update", "running"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=1e-5, rtol=0)


def test_ngrams_have_their_share():
    config = SEGMENTS | {"ngrams": 12}
    model = lively(config)
    model.ngrams.fit([ids(REVIEW), ids("bad film"), ids("so bad")], torch.tensor([1, 0, 0]))
    model.share.fill_(0.25)
    got = explain(around(model), REVIEW)
    tokens, length = ids(REVIEW)[None], torch.tensor([len(ids(REVIEW))])
    bias = model.ngrams.bias.item()
    assert got.ngrams.sum().item() == pytest.approx(0.75 * (model.ngrams(tokens, length).item() - bias), abs=1e-4)
    assert got.ngrams.abs().max() > 0.01
    blank = log_odds(model.read(torch.zeros(1, tokens.shape[1], 6), length)).item()
    assert got.baseline == pytest.approx(0.25 * blank + 0.75 * bias, abs=1e-4)
    assert got.contributions.sum().item() == pytest.approx(got.score - got.baseline, abs=TOLERANCE)
    without = lively(SEGMENTS)
    without.load_state_dict({k: v for k, v in model.state_dict().items() if k.startswith(("embedding", "gru", "out"))})
    quarter = explain(around(without), REVIEW).contributions / 4
    torch.testing.assert_close(got.contributions - got.ngrams, quarter, atol=TOLERANCE, rtol=0)
    assert "n-grams of it" in render(got)


def test_what_the_gru_does_not_read_has_no_gates():
    got = explain(around(lively(SEGMENTS | {"last": True, "crop": 5, "segment": 5, "bidirectional": False})), REVIEW)
    unread = len(REVIEW.split()) - 5
    assert got.unread == unread and got.reset.shape == got.update.shape == (1, 5)
    assert (got.contributions[:unread] == 0).all() and (got.contributions[unread:] != 0).all()
    page = Page(render(got))
    assert [len(token["strips"]) for token in page.tokens] == [0] * unread + [2] * 5
    assert f"the first {unread} tokens have no gates" in page.text


def test_a_long_review_is_cut_and_says_so(monkeypatch):
    monkeypatch.setattr("explain.MAX_TOKENS", 5)
    model = lively(LAST_STATE)
    got, five = explain(around(model), REVIEW), explain(around(model), " ".join(REVIEW.split()[:5]))
    assert got.left_out == len(REVIEW.split()) - 5 and five.left_out == 0
    torch.testing.assert_close(got.contributions, five.contributions)
    assert "Only the first 5 tokens were read. 9 more are left out" in Page(render(got)).text


class Page(HTMLParser):
    """What a browser would find: the tokens, the text, and every tag with its attributes."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.tokens, self.text = [], [], ""
        self._token = None
        self.feed(page)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        classes = (attributes.get("class") or "").split()
        self.tags.append((tag, attributes))
        if tag == "span" and "token" in classes:
            self._token = {"title": attributes["title"], "strips": [], "word": ""}
            self.tokens.append(self._token)
        elif tag == "bdi" and self._token is not None:
            self._token["classes"] = classes
        elif tag == "i":
            self._token["strips"].append(classes)

    def handle_endtag(self, tag):
        self._token = None if tag == "span" else self._token

    def handle_data(self, data):
        self.text += data
        if self._token is not None and not self._token["strips"]:
            self._token["word"] += data


def test_the_page_shows_what_was_found():
    explanation = explain(around(Linear()), "good bad so plain good zelig bad bad")
    page = Page(render(explanation))
    classes = [token["classes"] for token in page.tokens]
    assert [int(shade[1:]) for _, shade, *_ in classes] == [5, 8, 1, 0, 5, 0, 8, 8]
    assert [classes[i][0] for i in (0, 1, 2, 4, 6)] == ["positive", "negative", "positive", "positive", "negative"]
    assert [i for i in range(8) if "flip" in classes[i]] == [1, 4, 6]
    assert [i for i in range(8) if "unknown" in classes[i]] == [5]
    for gate, row in (("reset", explanation.reset[0]), ("update", explanation.update[0])):
        levels = [int(token["strips"][gate == "update"][1][1:]) for token in page.tokens]
        assert levels[row.argmax()] == 10 and levels[row.argmin()] == 0
    assert "bad: \u22123.00. 26.9 % positive so far." in page.tokens[1]["title"]
    assert "1 of 8 words is not in the model's vocabulary" in page.text
    assert "88.1 % → 26.9 % positive" in page.text and "This review scores \u22124.50, the blank one +0.00" in page.text
    assert "within the 0.02 that is asked for" in page.text


def test_next_to_nothing_is_pale():
    """Contributions are scaled to the largest, but those within the tolerance are no evidence."""
    explanation = explain(around(Linear()), "good bad")
    page = Page(render(explanation._replace(contributions=explanation.contributions / 1000)))
    assert all(token["classes"][1] == "s0" for token in page.tokens)


def test_the_page_says_where_it_does_not_add_up():
    explanation = explain(around(Linear()), "good bad")._replace(error=0.5)
    assert "above the 0.02 that is asked for: take single contributions with care" in Page(render(explanation)).text


def test_many_flips_are_cut_to_the_largest():
    text = "good " + "bad good so so " * 15
    explanation = explain(around(Linear()), text)
    page = Page(render(explanation))
    assert len(explanation.flips) > LISTED
    assert sum("flip" in token["classes"] for token in page.tokens) == LISTED
    assert f"The {LISTED} largest of {len(explanation.flips)}" in page.text


def test_a_review_that_never_flips():
    page = Page(render(explain(around(Linear()), "good")))
    assert "None: after the first word the running prediction stays positive" in page.text


def test_the_page_needs_nothing_and_escapes_everything():
    page = render(explain(around(lively(LAST_STATE)), HOSTILE))
    found = Page(page)
    assert "\0" not in page and "\x1b" not in page
    assert [token["word"] for token in found.tokens] == [
        word.replace("\0", "\u2400").replace("\x1b", "\u241b") for word in HOSTILE.lower().split()
    ]
    tags = {tag for tag, _ in found.tags}
    assert not tags & {"script", "img", "link", "iframe", "object", "base", "form"}
    names = {name for _, attributes in found.tags for name in attributes}
    assert not {name for name in names if name.startswith("on")} | names & {"src", "style", "action", "srcset"}
    assert all(
        value.startswith("#") for _, attributes in found.tags for name, value in attributes.items() if name == "href"
    )
    assert "url(" not in page and "@import" not in page and "http:" not in page and "https:" not in page
    style = page.split("<style>")[1].split("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policies = [a["content"] for tag, a in found.tags if tag == "meta" and "http-equiv" in a]
    assert policies == [POLICY] and f"style-src 'sha256-{digest}'" in POLICY and "default-src 'none'" in POLICY


@pytest.mark.parametrize(
    "text",
    [
        HOSTILE,
        "good",
        "good " + "x" * 100_000,
        "good 電影 עברית ไทย 🎬 e\u0301 $\\frac$ _a^b",
        "good\u2028bad",
        REVIEW * 20,
    ],
    ids=["hostile", "one word", "endless word", "scripts", "separator", "long"],
)
def test_any_text_makes_a_page_and_a_picture(text, tmp_path):
    explanation = explain(around(lively(SEGMENTS)), text)
    assert len(render(explanation)) < 20_000 + 1_000 * len(explanation.words)
    save_picture(explanation, str(tmp_path / "why.png"))
    assert (tmp_path / "why.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_picture_has_the_colours(tmp_path):
    save_picture(explain(around(Linear()), "bad good"), str(tmp_path / "why.png"))
    pixels = image.imread(tmp_path / "why.png")
    (red, _, blue), (second_red, _, second_blue), white = (pixels[99, x, :3] for x in (72, 112, 200))
    assert red > blue + 0.3 and second_blue > second_red + 0.3 and (white == 1).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "has no words"), (" \n\t ", "has no words"), ("zelig dogville", "no word of the 8 that the model knows"),
     ("good \ud800", "must be text in UTF-8")],
    ids=["empty", "blank", "unknown", "surrogate"],
)  # fmt: skip
def test_refusals(text, message):
    with pytest.raises(ValueError, match=message):
        explain(around(lively(LAST_STATE)), text)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    imdb.write_parquet(folder / "data")
    return imdb.train_here(folder / "run", "--data", folder / "data", "--epochs", 1)


def command(run, *arguments, text=""):
    """What explain.py does when a person calls it, in this process."""
    typed = ["explain.py", "--checkpoint", str(run), *map(str, arguments)]
    standard_input = io.TextIOWrapper(io.BytesIO(text if isinstance(text, bytes) else text.encode()))
    with mock.patch.object(sys, "argv", typed), mock.patch.object(sys, "stdin", standard_input):
        explain_command()


def test_the_command(run, tmp_path, capsys):
    html, png = tmp_path / "why.html", tmp_path / "why.png"
    text = "the novel was dull .\ni found this film wonderful . \0 <b>"
    command(run, "-", "--html", html, "--png", png, text=text)
    label, probability = capsys.readouterr().out.split()
    positive = Predictor(run)([text])[0]
    assert label == ("positive" if positive >= 0.5 else "negative")
    assert float(probability) == pytest.approx(max(positive, 1 - positive), abs=1e-4)
    assert [token["word"] for token in Page(html.read_text("utf-8")).tokens] == text.replace("\0", "\u2400").split()
    assert png.read_bytes()[:4] == b"\x89PNG"

    before = {path: path.read_bytes() for path in (html, png)}
    with pytest.raises(RunError, match=r"why\.html exists: --force overwrites it"):
        command(run, "this film is dull .", "--html", html, "--png", tmp_path / "other.png")
    with pytest.raises(RunError, match=r"why\.png exists: --force overwrites it"):
        command(run, "this film is dull .", "--html", tmp_path / "other.html", "--png", png)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    command(run, "this film is dull .", "--html", html, "--png", png, "--force")
    assert html.read_bytes() != before[html] and png.read_bytes() != before[png]


def test_a_hundred_thousand_words(run, tmp_path, capsys):
    command(run, "-", "--html", tmp_path / "why.html", text="this film is dull . " * 20_000)
    assert capsys.readouterr().err == "note: read the first 1,000 tokens, left out 99,000 more\n"
    assert len(Page((tmp_path / "why.html").read_text("utf-8")).tokens) == 1000


def test_the_command_refuses(run, tmp_path):
    (tmp_path / "folder").mkdir()
    new = tmp_path / "why.html"
    for arguments, message in (
        ((tmp_path / "none", "good", "--html", new), "must be the folder of a run"),
        ((run, "film", "--html", new, "--png", new), "must be two files"),
        ((run, "film", "--html", tmp_path / "nowhere" / "why.html"), "--html must be a file in a folder that exists"),
        ((run, "film", "--html", tmp_path / "folder", "--force"), "it is a folder"),
        ((run, os.fsdecode(b"film \xff"), "--html", new), "must be text in UTF-8"),
    ):
        with pytest.raises((RunError, ValueError), match=message):
            command(*arguments)
    with pytest.raises(ValueError, match="must be text in UTF-8"):
        command(run, "-", "--html", new, text=b"film \xff")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_refusal_is_a_line(run, tmp_path):
    result = imdb.run("explain.py", "--checkpoint", run, " ", "--html", tmp_path / "why.html")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "error: the review has no words: expected the text of a film review\n"
    assert not any(tmp_path.iterdir())


def test_a_full_disk_leaves_the_page_before(run, tmp_path):
    """/dev/full stands for the disk: every write to it ends in "no space left on device"."""
    (tmp_path / "why.html").write_text("before")
    (tmp_path / ".unfinished-why.html").symlink_to("/dev/full")
    with pytest.raises(RunError, match="could not write"):
        command(run, "this film is dull .", "--html", tmp_path / "why.html", "--force")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("why.html", "before")]
