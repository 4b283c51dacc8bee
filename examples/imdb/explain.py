"""Shows why a review was judged as it was, token by token, as a page and as a picture.

    python examples/imdb/explain.py --checkpoint runs/imdb-sample "this film is anything but dull ." --html why.html
    python examples/imdb/explain.py --checkpoint runs/imdb-sample - --html why.html --png why.png < review.txt

For each token: what it contributed (integrated gradients, attribution.py), how far the reset and the update gate stood
open, and what the prediction would be had the review ended there. The page needs nothing from outside and no scripts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from attribution import TOLERANCE, integrated_gradients
from data import LABELS, UNKNOWN
from page import render
from picture import save_picture
from predict import Predictor
from run_folder import RunError, RunFolder
from torch import Tensor, nn
from torch.nn.functional import pad

from grucore import GRU

MAX_TOKENS = 1000  # the running prediction reads every beginning of the review: time grows with the square


class Explanation(NamedTuple):
    """What a model made of a review of T tokens. Scores are log-odds of positive against negative."""

    words: list[str]
    known: list[bool]  # whether the vocabulary has it
    contributions: Tensor  # (T,); their sum is score - baseline, within `error`
    ngrams: Tensor | None  # (T,), the part of the contributions that the model's n-grams have, if it has any
    reset: Tensor  # (D, T - unread), mean over the units of each of the GRU's D layers and directions
    update: Tensor  # (D, T - unread)
    directions: list[str]  # D names
    running: Tensor  # (T,), probability of positive had the review ended there
    score: float
    baseline: float  # the score of a blank review: all embeddings 0, no n-grams
    error: float
    tolerance: float  # which the error was to keep
    unread: int  # tokens before those that the GRU reads, where it reads the end of a review alone
    left_out: int  # tokens after the first MAX_TOKENS

    @property
    def probability(self) -> float:
        """That the review is positive."""
        return self.running[-1].item()

    @property
    def label(self) -> str:
        """The more probable of `LABELS`."""
        return LABELS[self.probability >= 0.5]

    @property
    def flips(self) -> list[int]:
        """The tokens after which the running prediction is another than before."""
        positive = self.running >= 0.5
        return (1 + (positive[1:] != positive[:-1]).nonzero().flatten()).tolist()


def explain(predictor: Predictor, text: str, tolerance: float = TOLERANCE) -> Explanation:
    """Reads a review as `predictor` does and takes notes.

    Args:
        predictor: whose model. A torch.nn.GRU in it is replaced by its exact copy, which tells its gates.
        text: the review.
        tolerance: how much the contributions' sum may be off, in log-odds.

    Raises:
        ValueError: no words, none that the model knows, or characters that are none.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the review must be text in UTF-8: {error}") from error
    words, tokens = predictor.tokenizer.tokens(text), predictor.tokenizer.ids([text])[0][:MAX_TOKENS]
    if not words:
        raise ValueError("the review has no words: expected the text of a film review")
    if (tokens == UNKNOWN).all():
        raise ValueError(f"the review has no word of the {len(predictor.vocabulary):,} that the model knows")
    tokens = tokens.to(predictor.device)
    model = predictor.model
    if isinstance(model.gru, nn.GRU):
        model.gru = GRU.from_torch(model.gru)
    x, reset, update = _read(model, tokens)
    attribution = integrated_gradients(_score_of_embedded(model, tokens), x, tolerance)
    unread = len(tokens) - len(x)
    contributions, baseline, ngrams = pad(attribution.contributions, (unread, 0)), attribution.baseline, None
    if getattr(model, "ngrams", None) is not None:
        # Linear, so that shares need no integral. The prediction is a weighted mean of both paths.
        evidence = model.ngrams.evidence(tokens[None], torch.tensor([len(tokens)], device=tokens.device))[0]
        ngrams = evidence * (1 - model.share)
        contributions, baseline = contributions + ngrams, baseline - ngrams.sum().item()
    return Explanation(
        words[:MAX_TOKENS],
        (tokens != UNKNOWN).tolist(),
        contributions.cpu(),
        None if ngrams is None else ngrams.cpu(),
        reset.cpu(),
        update.cpu(),
        _directions(model.gru),
        _running(model, tokens).cpu(),
        attribution.score,
        baseline,
        attribution.error,
        tolerance,
        unread,
        max(0, len(words) - MAX_TOKENS),
    )


def _score(model: nn.Module, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Log-odds (B,) of tokens (B, T)."""
    logits = model(tokens, lengths)
    return logits[:, 1] - logits[:, 0]


@torch.no_grad()
def _read(model: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the GRU reads, (T - unread, E), and its reset and update gates then, mean over units, (D, T - unread)."""
    seen: dict[str, Any] = {}

    def keep_embedded(embedding: nn.Module, inputs: tuple, output: Tensor) -> None:
        seen["x"] = output[0]

    def keep_call(gru: GRU, inputs: tuple, options: dict) -> None:
        seen["call"] = inputs, options

    with (
        model.embedding.register_forward_hook(keep_embedded),
        model.gru.register_forward_pre_hook(keep_call, with_kwargs=True),
    ):
        _score(model, tokens[None], torch.tensor([len(tokens)], device=tokens.device))
    # The model may have cut the review into rows that follow one another: (D, T, rows) -> (D, rows, T) -> real steps.
    inputs, options = seen["call"]
    gates = model.gru.trace(*inputs, **options).gates
    reset, update = (gate.mean(3).transpose(1, 2) for gate in (gates.r, gates.z))
    rows, steps = reset.shape[1:]
    lengths = torch.full((rows,), steps) if options.get("lengths") is None else options["lengths"]
    real = torch.arange(steps, device=tokens.device) < lengths.to(tokens.device)[:, None]
    return seen["x"], reset[:, real], update[:, real]


def _score_of_embedded(model: nn.Module, tokens: Tensor) -> Callable[[Tensor], Tensor]:
    """The score as a function of N versions (N, T, E) of the embedded review: whatever the model does with them."""

    def score(x: Tensor) -> Tensor:
        with model.embedding.register_forward_hook(lambda *_: x):
            lengths = torch.full((len(x),), len(tokens), device=x.device)
            return _score(model, tokens.expand(len(x), -1), lengths)

    return score


def _directions(gru: GRU) -> list[str]:
    """A name for each row of the gates."""
    arrows = ["→", "←"] if gru.bidirectional else [""]
    layers = [f"layer {layer}" for layer in range(1, gru.num_layers + 1)] if gru.num_layers > 1 else [""]
    return [f"{layer} {arrow}".strip() for layer in layers for arrow in arrows]


@torch.no_grad()
def _running(model: nn.Module, tokens: Tensor) -> Tensor:
    """Probability of positive after each token (T,)."""
    # A model that is not masked reads what stands behind the end: its beginnings go one by one.
    size = 64 if model.masked else 1
    scores = []
    for lengths in torch.arange(1, len(tokens) + 1, device=tokens.device).split(size):
        beginnings = tokens[: int(lengths[-1])].expand(len(lengths), -1)
        scores.append(_score(model, beginnings, lengths))
    return torch.cat(scores).sigmoid()


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"the review must be text in UTF-8: {error}") from error


def _target(path: Path, flag: str, force: bool) -> RunFolder:
    """The folder of a file that is to be written.

    Raises:
        RunError: it cannot be, or must not be.
    """
    if not path.parent.is_dir():
        raise RunError(f"{flag} must be a file in a folder that exists, got {path}")
    if path.is_dir() or (path.exists() and not force):
        raise RunError(f"{path} exists: " + ("it is a folder" if path.is_dir() else "--force overwrites it"))
    return RunFolder(path.parent)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="the --output folder of train.py")
    parser.add_argument("--html", type=Path, required=True, help="the page to write")
    parser.add_argument("--png", type=Path, help="a picture of the same, to write beside it")
    parser.add_argument("--force", action="store_true", help="overwrite these files")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("text", help="a review, or - to read it from standard input")
    given = parser.parse_args()

    if given.png and given.png.absolute() == given.html.absolute():
        raise RunError(f"--html and --png must be two files, got {given.html} twice")
    html = _target(given.html, "--html", given.force)
    png = _target(given.png, "--png", given.force) if given.png else None
    predictor = Predictor(given.checkpoint, given.device)
    explanation = explain(predictor, _standard_input() if given.text == "-" else given.text)
    if explanation.left_out:
        sys.stderr.write(f"note: read the first {MAX_TOKENS:,} tokens, left out {explanation.left_out:,} more\n")

    page = render(explanation)
    html.write(given.html.name, lambda path: Path(path).write_text(page, encoding="utf-8"))
    if png:
        png.write(given.png.name, lambda path: save_picture(explanation, path))
    print(explanation.label, f"{max(explanation.probability, 1 - explanation.probability):.4f}")


if __name__ == "__main__":
    try:
        main()
    except (RunError, ValueError) as error:
        sys.exit(f"error: {error}")
