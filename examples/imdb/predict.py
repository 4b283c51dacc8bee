"""Says whether reviews are positive or negative, with a model that train.py has trained.

    python examples/imdb/predict.py --checkpoint runs/imdb-sample "i would not call this film dull ."
    python examples/imdb/predict.py --checkpoint runs/imdb-sample - < reviews.txt
    python examples/imdb/predict.py --checkpoint runs/imdb-sample --file review.txt

Prints the label and its probability, a line for each review. A checkpoint is JSON and safetensors: reading it runs
nothing that is in it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
from batches import EvaluationBatches, loader
from data import LABELS, UNKNOWN, Encoded
from model import build
from processes import check_device
from run_folder import RunError, RunFolder

LONGEST = 1_000_000  # tokens of a review; the longest of IMDB has 2,900


class Predictor:
    """The best model of a run.

    Args:
        checkpoint: the run's folder.
        device: where to run it.

    Attributes:
        vocabulary: the words in the order of their ids.
        tokenizer: cuts texts into tokens: a `vocabularies.Vocabulary`.
        model: in evaluation mode.

    Raises:
        RunError: the folder holds no whole run, or one of a format or vocabulary that does not fit; or there is no GPU
            and `device` is one.
    """

    def __init__(self, checkpoint: Path, device: str = "cpu"):
        check_device(device)
        folder = RunFolder(checkpoint)
        if not checkpoint.is_dir():
            raise RunError(f"--checkpoint must be the folder of a run, got {checkpoint}, which is no folder")
        self.tokenizer = folder.read_vocabulary()
        self.vocabulary: list[str] = self.tokenizer.words
        config, state = folder.read_config(), folder.read_model(self.tokenizer)
        try:
            self.model = build(config, len(self.vocabulary))
            self.model.load_state_dict(state)
        except KeyError as error:
            raise RunError(
                f"{checkpoint / 'config.json'} must be the config.json of a run: it has no {error}"
            ) from error
        except RuntimeError as error:
            raise RunError(
                f"{checkpoint / 'best.safetensors'} does not fit config.json and the {len(self.vocabulary)} words of "
                f"vocabulary.json beside it: {error}"
            ) from error
        self.device = torch.device(device)
        self.model.to(self.device).eval()

    @torch.inference_mode()
    def __call__(self, texts: list[str], first: int = 1) -> list[float]:
        """The probability that each review is positive; `first` is the first review's number, for errors.

        Raises:
            ValueError: a review without a word, without one that the model knows, or of more than a million tokens.
        """
        tokens = self.tokenizer.ids(texts)
        for i, row in enumerate(tokens, first):
            if not len(row):
                raise ValueError(f"review {i} has no words: expected the text of a film review")
            if (row == UNKNOWN).all():
                raise ValueError(f"review {i} has no word of the {len(self.vocabulary)} that the model knows")
            if len(row) > LONGEST:
                raise ValueError(f"review {i} has {len(row):,} tokens: expected {LONGEST:,} at most")
        encoded = Encoded(tokens, torch.zeros(len(texts), dtype=torch.long))
        order = EvaluationBatches([len(row) for row in tokens], 64)
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


def texts(given: argparse.Namespace) -> Iterable[str]:
    """The reviews: from the command line, a file (one review, line breaks and all), or standard input, one a line.

    Raises:
        ValueError: a file that is missing or no UTF-8 text.
    """
    if given.file is not None:
        try:
            return [given.file.read_text(encoding="utf-8")]
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--file must be a UTF-8 text: {given.file}: {error}") from error
    return _standard_input() if given.text == ["-"] else given.text


def _standard_input() -> Iterator[str]:
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"line {number} of standard input must be UTF-8: {error}") from error


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="the --output folder of train.py")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--file", type=Path, help="a file that holds one review")
    source.add_argument("text", nargs="*", default=[], help="a review, or - to read one a line from standard input")
    given = parser.parse_args()
    predict = Predictor(given.checkpoint, given.device)
    done = 0
    for group in groups(texts(given)):
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
