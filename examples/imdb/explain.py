"""Explains a prediction token by token, as a self-contained page.

    python examples/imdb/explain.py "This film is anything but dull." --html why.html
    python examples/imdb/explain.py --checkpoint runs/imdb-sample - --html why.html < review.txt

The page shows for each token its contribution, how far the reset and update gates are open, and the prediction had the
review ended there. Contributions are integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365, by captum) of
the GRUs' inputs, relative to a blank review of the same length; those of the n-grams are exact, since they are linear.
"""

import argparse
import sys
from pathlib import Path

import torch
from captum.attr import IntegratedGradients
from config import UserError, command
from data import LABELS, UNKNOWN, pieces
from page import Explanation, render
from predict import SHIPPED, Predictor
from run_folder import RunFolder
from torch import Tensor, nn

from grucore import GRU

MAX_TOKENS = 1000  # the running prediction reads prefixes of the review, so time grows quadratically
BEGINNINGS = 200  # the largest number of prefixes
TOLERANCE = 0.02  # of the sum of the contributions, in log-odds


def explain(predictor: Predictor, text: str) -> Explanation:
    """Explains the prediction of a review.

    Raises:
        UserError: the review cannot be predicted.
    """
    judge, tokens = predictor.judge, predictor.encode(text)[None, :MAX_TOKENS]
    lengths = torch.tensor([tokens.shape[1]], device=predictor.device)
    words = pieces(predictor.tokenizer, text)
    evidence = None if judge.ngrams is None else judge.ngrams.evidence(tokens, lengths)
    with torch.no_grad():
        read = tuple(member.embed(tokens, evidence if member.reads_evidence else None) for member in judge.members)
    weight = judge.sharpness.item() * (1 - judge.share)

    def score(*versions: Tensor) -> Tensor:
        margins = [m.read(x, lengths.expand(len(x))) for m, x in zip(judge.members, versions, strict=True)]
        return weight * torch.stack(margins).mean(0)

    for steps in (32, 128, 512):  # a saturated GRU's score changes within a small part of the path
        by_member, error = IntegratedGradients(score).attribute(
            read, n_steps=steps, internal_batch_size=max(1, 16_384 // tokens.shape[1]), return_convergence_delta=True
        )
        if error.abs() <= TOLERANCE:
            break
    contributions, ngrams = sum(each.sum((0, 2)) for each in by_member).detach().float(), None
    if judge.ngrams is not None:
        ngrams = judge.ngrams.contributions(tokens[0]) * judge.sharpness * judge.weight_of_ngrams
        contributions = contributions + ngrams
    reset, update = _gates(judge.members[0], read[0], lengths)
    places, log_odds = _running(predictor, tokens[0])
    return Explanation(
        words=words[:MAX_TOKENS],
        known=(tokens[0] != UNKNOWN).tolist(),
        contributions=contributions.tolist(),
        ngrams=None if ngrams is None else ngrams.tolist(),
        reset=reset.tolist(),
        update=update.tolist(),
        places=places,
        running=log_odds.sigmoid().tolist(),
        score=log_odds[-1].item(),
        error=error.item(),
        grus=len(judge.members),
        left_out=max(0, len(words) - MAX_TOKENS),
    )


@torch.no_grad()
def _gates(member: nn.Module, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The reset and update gates of a GRU that reads x (1, T, E), mean over units: (directions, T) each."""
    gru = member.gru if isinstance(member.gru, GRU) else GRU.from_torch(member.gru)
    rows, inside = member.cut(x, lengths)
    gates = gru.trace(rows, lengths=inside).gates  # (directions, steps, rows, units), rows in order
    reset, update = (gate.mean(3).transpose(1, 2).flatten(1)[:, : x.shape[1]] for gate in (gates.r, gates.z))
    return reset, update


@torch.no_grad()
def _running(predictor: Predictor, tokens: Tensor) -> tuple[list[int], Tensor]:
    """The lengths of the prefixes that are read, the whole review last, and the log-odds of positive for each."""
    stride = -(-len(tokens) // BEGINNINGS)
    places = torch.arange(len(tokens), 0, -stride, device=tokens.device).flip(0)
    # An unmasked model also reads the padding, so its prefixes are read one by one.
    size = 32 if all(member.masked for member in predictor.judge.members) else 1
    log_odds = [predictor.judge(tokens[: int(some[-1])].expand(len(some), -1), some) for some in places.split(size)]
    return places.tolist(), torch.cat(log_odds).double()


def main() -> None:
    """Explains a review from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED, help="an --output of train.py")
    parser.add_argument("--html", type=Path, required=True, help="the page to write")
    parser.add_argument("--force", action="store_true", help="overwrite it")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("text", help="a review, or - to read it from standard input")
    given = parser.parse_args()
    if not given.html.parent.is_dir() or given.html.is_dir():
        raise UserError(f"--html must be a file in a folder that exists, got {given.html}")
    if given.html.exists() and not given.force:
        raise UserError(f"{given.html} exists: --force overwrites it")
    text = sys.stdin.buffer.read().decode(errors="surrogateescape") if given.text == "-" else given.text
    explanation = explain(Predictor(given.checkpoint, given.device), text)
    if explanation.left_out:
        sys.stderr.write(f"note: read the first {MAX_TOKENS:,} tokens, left out {explanation.left_out:,} more\n")
    RunFolder(given.html.parent).write_text(given.html.name, render(explanation))
    print(LABELS[explanation.positive], f"{max(explanation.running[-1], 1 - explanation.running[-1]):.4f}")


if __name__ == "__main__":
    command(main)
