"""Says whether reviews are positive or negative: by the model that stands beside this file, or by one of your own.

    python examples/imdb/predict.py "I would not call this film dull."
    python examples/imdb/predict.py --checkpoint runs/imdb-sample "i would not call this film dull ."
    python examples/imdb/predict.py - < reviews.txt

Prints a line for each review: its label and the probability of it, or `error:` and why there is none. In that case the
exit status is 1, after all reviews. A checkpoint is JSON and safetensors: reading it runs nothing that is in it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
from data import LABELS, UNKNOWN, Encoded, Reviews, collate, encode, evaluation_batches
from run_folder import RunError, RunFolder

SHIPPED = Path(__file__).parent / "model"  # trained on real reviews; its summary.json says how, and how good it is
LONGEST = 1_000_000  # tokens of a review; the longest of IMDB has 2,900
AT_ONCE = 65_536  # tokens of a batch, padding included


class Predictor:
    """The best model of a run.

    Args:
        checkpoint: the run's folder.
        device: where to run it.

    Raises:
        RunError: the folder holds no whole run, or one of a format or vocabulary that does not fit; or there is no GPU
            and `device` is one.
    """

    def __init__(self, checkpoint: Path = SHIPPED, device: str = "cpu"):
        if device == "cuda" and not torch.cuda.is_available():
            raise RunError("--device cuda needs a GPU that this PyTorch can use, and there is none; --device cpu works")
        if not checkpoint.is_dir():
            raise RunError(f"--checkpoint must be the folder of a run, got {checkpoint}, which is no folder")
        self.folder, self.device = RunFolder(checkpoint), torch.device(device)
        self.tokenizer = self.folder.read_tokenizer()
        self.judge = self.folder.read_judge(self.tokenizer).to(self.device)

    @torch.inference_mode()
    def __call__(self, texts: list[str]) -> list[float | str]:
        """For each review the probability that it is positive, or a sentence that says why there is none."""
        encoded = [self.encode(text) for text in texts]
        results: list[float | str] = [each if isinstance(each, str) else 0.0 for each in encoded]
        readable = [i for i, each in enumerate(encoded) if not isinstance(each, str)]
        some = Encoded([encoded[i] for i in readable], torch.zeros(len(readable)))
        masked = all(member.masked for member in self.judge.members)  # without, neighbours' padding would be read
        for group in evaluation_batches([len(row) for row in some.tokens], 64 if masked else 1):
            size = max(1, AT_ONCE // len(some.tokens[group[0]]))
            for rows in (group[i : i + size] for i in range(0, len(group), size)):
                batch = collate(some, rows)
                probabilities = self.judge(batch.tokens.to(self.device), batch.lengths.to(self.device)).sigmoid()
                for row, probability in zip(rows, probabilities.tolist(), strict=True):
                    results[readable[row]] = probability
        return results

    def encode(self, text: str) -> torch.Tensor | str:
        """A review's token ids (T,), or a sentence that says why it cannot be judged."""
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
        return tokens if len(tokens) <= LONGEST else f"{len(tokens):,} tokens: expected {LONGEST:,} at most"


def lines(given: list[str]) -> Iterator[list[str]]:
    """The reviews, many at a time: of the command line, or for - from standard input, one a line."""
    texts: Iterable[str] = given
    if given == ["-"]:
        texts = (line.decode(errors="surrogateescape") for line in sys.stdin.buffer)
    texts = iter(texts)
    while group := list(islice(texts, 1024)):
        yield group


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED, help="an --output of train.py")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("text", nargs="+", help="a review, or - to read them from standard input, one a line")
    given = parser.parse_args()
    predict = Predictor(given.checkpoint, given.device)
    done = refused = 0
    for group in lines(given.text):
        for result in predict(group):
            done += 1
            refused += isinstance(result, str)
            if isinstance(result, str):
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
