"""Says whether reviews are positive or negative, with a model that train.py has trained.

    python examples/imdb/predict.py --checkpoint runs/imdb-sample "i would not call this film dull ."
    python examples/imdb/predict.py --checkpoint runs/imdb-sample - < reviews.txt

Prints the label and its probability, a line for each review.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
from batches import EvaluationBatches, loader
from data import Reviews, encode, tokenize
from model import Classifier, build
from run_folder import RunError, RunFolder

LABELS = ("negative", "positive")


class Predictor:
    """The best model of a run.

    Args:
        checkpoint: the run's folder.
        device: where to run it.

    Raises:
        RunError: the folder holds no whole run.
    """

    def __init__(self, checkpoint: Path, device: str = "cpu"):
        folder = RunFolder(checkpoint)
        if not checkpoint.is_dir():
            raise RunError(f"--checkpoint must be the folder of a run, got {checkpoint}, which is no folder")
        self.vocabulary: list[str] = folder.read_json("vocabulary.json")
        self.model: Classifier = build(folder.read_json("config.json"), len(self.vocabulary))
        try:
            self.model.load_state_dict(folder.read_model())
        except RuntimeError as error:
            raise RunError(f"{checkpoint / 'best.safetensors'} does not fit config.json beside it: {error}") from error
        self.device = torch.device(device)
        self.model.to(self.device).eval()

    @torch.inference_mode()
    def __call__(self, texts: list[str], first: int = 1) -> list[float]:
        """The probability that each review is positive; `first` is the first review's number, for errors.

        Raises:
            ValueError: a review without a word.
        """
        for i, text in enumerate(texts, first):
            if not tokenize(text):
                raise ValueError(f"review {i} has no words: expected the text of a film review")
        encoded = encode(Reviews(texts, [0] * len(texts)), self.vocabulary)
        order = EvaluationBatches([len(row) for row in encoded.tokens], 64)
        probabilities = torch.zeros(len(texts))
        for rows, batch in zip(order, loader(encoded, order), strict=True):
            logits = self.model(batch.tokens.to(self.device), batch.lengths.to(self.device))
            probabilities[rows] = logits.softmax(1)[:, 1].cpu()
        return probabilities.tolist()


def groups(lines: Iterable[str], size: int = 1024) -> Iterator[list[str]]:
    """The lines, `size` at a time."""
    lines = iter(lines)
    while group := list(islice(lines, size)):
        yield group


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="the --output folder of train.py")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("text", nargs="+", help="a review, or - to read one a line from standard input")
    given = parser.parse_args()
    predict = Predictor(given.checkpoint, given.device)
    done = 0
    for group in groups(sys.stdin if given.text == ["-"] else given.text):
        probabilities = predict(group, done + 1)
        done += len(group)
        for probability in probabilities:
            positive = probability >= 0.5
            print(LABELS[positive], f"{probability if positive else 1 - probability:.4f}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except (RunError, ValueError) as error:
        sys.exit(f"error: {error}")
