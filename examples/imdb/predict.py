"""Says whether reviews are positive or negative, with a model that train.py has trained.

    python examples/imdb/predict.py --checkpoint runs/imdb-sample "i would not call this film dull ."
    python examples/imdb/predict.py --checkpoint runs/imdb-sample - < reviews.txt
    python examples/imdb/predict.py --checkpoint runs/imdb-sample --file review.txt

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
    def __call__(self, texts: list[str]) -> list[float | str]:
        """For each review the probability that it is positive, or a sentence that says why there is none."""
        wrong = [_not_text(text) for text in texts]
        tokens = self.tokenizer.ids(["" if problem else text for text, problem in zip(texts, wrong, strict=True)])
        results: list[float | str] = [
            problem or self._unreadable(row) for row, problem in zip(tokens, wrong, strict=True)
        ]
        readable = [i for i, problem in enumerate(results) if not problem]
        encoded = Encoded([tokens[i] for i in readable], torch.zeros(len(readable), dtype=torch.long))
        order = EvaluationBatches([len(row) for row in encoded.tokens], 64)
        for rows, batch in zip(order, loader(encoded, order), strict=True):
            logits = self.model(batch.tokens.to(self.device), batch.lengths.to(self.device))
            for row, probability in zip(rows, logits.softmax(1)[:, 1].tolist(), strict=True):
                results[readable[row]] = probability
        return results

    def _unreadable(self, row: torch.Tensor) -> str:
        """Why these tokens have no prediction; "" where they have one."""
        if not len(row):
            return "no words: expected the text of a film review"
        if (row == UNKNOWN).all():
            return f"no word of the {len(self.vocabulary)} that the model knows"
        return f"{len(row):,} tokens: expected {LONGEST:,} at most" if len(row) > LONGEST else ""


def _not_text(text: str) -> str:
    """Why this is not UTF-8, if bytes that were not were kept in it; "" where it is."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"not UTF-8 text: {error}"
    return ""


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
    if given.text == ["-"]:
        return (line.decode(errors="surrogateescape") for line in sys.stdin.buffer)
    return given.text


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
    done = refused = 0
    for group in groups(texts(given)):
        for result in predict(group):
            done += 1
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
    except (RunError, ValueError) as error:
        sys.exit(f"error: {error}")
