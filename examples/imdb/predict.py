"""Predicts whether reviews are positive or negative, with the model next to this file or with your own.

    python examples/imdb/predict.py "I would not call this film dull."
    python examples/imdb/predict.py --checkpoint runs/imdb-sample "i would not call this film dull ."
    python examples/imdb/predict.py - < reviews.txt

Prints one line per review: its label and the probability of that label, or `error:` and the reason, in which case the
final exit status is 1. A checkpoint consists of JSON and safetensors: reading it executes nothing.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from config import UserError, command
from data import LABELS, UNKNOWN
from run_folder import RunFolder

SHIPPED = Path(__file__).parent / "model"  # trained on real reviews; summary.json records how, and its accuracy
LONGEST = 1_000_000  # tokens of a review; the longest of IMDB has 2,900


class Predictor:
    """The best model of a run.

    Args:
        checkpoint: the run's folder.
        device: where to run it.

    Raises:
        UserError: the folder does not contain a complete run, or has another format or vocabulary; or `device` is a GPU
            and there is none.
    """

    def __init__(self, checkpoint: Path = SHIPPED, device: str = "cpu"):
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError(
                "--device cuda needs a GPU that this PyTorch can use, and there is none; --device cpu works"
            )
        if not checkpoint.is_dir():
            raise UserError(f"--checkpoint must be the folder of a run, got {checkpoint}, which is not a folder")
        self.folder, self.device = RunFolder(checkpoint), torch.device(device)
        self.tokenizer = self.folder.read_tokenizer()
        self.judge = self.folder.read_judge(self.tokenizer).to(self.device)

    @torch.inference_mode()
    def __call__(self, text: str) -> float:
        """The probability that a review is positive. Raises as `encode`."""
        tokens = self.encode(text)
        return self.judge(tokens[None], torch.tensor([len(tokens)], device=self.device)).sigmoid().item()

    def encode(self, text: str) -> torch.Tensor:
        """A review's token ids (T,).

        Raises:
            UserError: it cannot be predicted.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"not UTF-8 text: {error}") from error
        if "\0" in text:
            raise UserError("NUL bytes: expected the text of a film review")
        tokens = torch.tensor(self.tokenizer.encode(text).ids, device=self.device)
        if not len(tokens):
            raise UserError("no words: expected the text of a film review")
        if (tokens == UNKNOWN).all():
            raise UserError(f"no word of the {self.tokenizer.get_vocab_size():,} that the model knows")
        if len(tokens) > LONGEST:
            raise UserError(f"{len(tokens):,} tokens: expected {LONGEST:,} at most")
        return tokens


def main() -> None:
    """Predicts reviews from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED, help="an --output of train.py")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("text", nargs="+", help="a review, or - to read them from standard input, one per line")
    given = parser.parse_args()
    predict = Predictor(given.checkpoint, given.device)
    texts: Iterable[str] = given.text
    if given.text == ["-"]:
        texts = (line.decode(errors="surrogateescape") for line in sys.stdin.buffer)
    done = refused = 0
    for text in texts:
        done += 1
        try:
            positive = predict(text)
            print(LABELS[positive >= 0.5], f"{max(positive, 1 - positive):.4f}", flush=True)
        except UserError as error:
            refused += 1
            print(f"error: {error}", flush=True)
    if refused:
        raise UserError(f"{refused} of {done} reviews have no prediction")


if __name__ == "__main__":
    command(main)
