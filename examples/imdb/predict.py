"""Predicts whether reviews are positive or negative, with the model next to this file or with your own.

    python examples/imdb/predict.py "I would not call this film dull."
    python examples/imdb/predict.py --checkpoint runs/imdb-sample "i would not call this film dull ."
    python examples/imdb/predict.py - < reviews.txt

Prints one line per review: its label and the probability of that label, or `error:` and the reason, in which case the
final exit status is 1. A checkpoint consists of JSON and safetensors: reading it executes nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from data import LABELS, UNKNOWN, Reviews, encode
from run_folder import RunError, RunFolder

SHIPPED = Path(__file__).parent / "model"  # trained on real reviews; summary.json records how, and its accuracy
LONGEST = 1_000_000  # tokens of a review; the longest of IMDB has 2,900


class Predictor:
    """The best model of a run.

    Args:
        checkpoint: the run's folder.
        device: where to run it.

    Raises:
        RunError: the folder does not contain a complete run, or has another format or vocabulary; or `device` is a GPU
            and there is none.
    """

    def __init__(self, checkpoint: Path = SHIPPED, device: str = "cpu"):
        if device == "cuda" and not torch.cuda.is_available():
            raise RunError("--device cuda needs a GPU that this PyTorch can use, and there is none; --device cpu works")
        if not checkpoint.is_dir():
            raise RunError(f"--checkpoint must be the folder of a run, got {checkpoint}, which is not a folder")
        self.folder, self.device = RunFolder(checkpoint), torch.device(device)
        self.tokenizer = self.folder.read_tokenizer()
        self.judge = self.folder.read_judge(self.tokenizer).to(self.device)

    @torch.inference_mode()
    def __call__(self, text: str) -> float | str:
        """The probability that a review is positive, or a message why there is none."""
        tokens = self.encode(text)
        if isinstance(tokens, str):
            return tokens
        return self.judge(tokens[None], torch.tensor([len(tokens)], device=self.device)).sigmoid().item()

    def encode(self, text: str) -> torch.Tensor | str:
        """A review's token ids (T,), or a message why it cannot be predicted."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return f"not UTF-8 text: {error}"
        if "\0" in text:
            return "NUL bytes: expected the text of a film review"
        if not self.tokenizer.encode(text).ids:
            return "no words: expected the text of a film review"
        (tokens,) = encode(self.tokenizer, Reviews([text], [0])).tokens
        if (tokens == UNKNOWN).all():
            return f"no word of the {self.tokenizer.get_vocab_size():,} that the model knows"
        if len(tokens) > LONGEST:
            return f"{len(tokens):,} tokens: expected {LONGEST:,} at most"
        return tokens.to(self.device)


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
        result = predict(text)
        if isinstance(result, str):
            refused += 1
            print(f"error: {result}", flush=True)
        else:
            print(LABELS[result >= 0.5], f"{max(result, 1 - result):.4f}", flush=True)
    if refused:
        sys.exit(f"error: {refused} of {done} reviews have no prediction")


if __name__ == "__main__":
    try:
        main()
    except RunError as error:
        sys.exit(f"error: {error}")
