"""The configuration that determines a run's result: four presets, and the command line that overrides them."""

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from model import LAYERS


class UserError(Exception):
    """Input that cannot be used; the message names what was expected and what was found."""


class Option(NamedTuple):
    """A value that the command line can set, and each preset's; with None it is not used, and its flag is refused."""

    kind: type
    book: Any
    best: Any
    semi: Any
    help: str
    least: float = 0
    most: float = math.inf
    choices: Sequence[str] | None = None


OPTIONS = {
    "gru": Option(str, *["grucore"] * 3, "whose layer", choices=list(LAYERS)),
    "seed": Option(int, 0, 0, 0, "of weights, dropout, batches and folds", most=2**32 - 1),
    "epochs": Option(int, 40, 2, 2, "passes over the training data", least=1),
    "batch_size": Option(int, 64, 64, 96, "reviews in a batch, of all processes together", least=1),
    "accumulate": Option(int, 1, 1, 1, "parts that a batch's gradients are computed in, to save memory", least=1),
    "learning_rate": Option(float, 1e-3, 2e-3, 4e-3, "Adam's; the highest of the schedule"),
    "clip": Option(float, 0.0, 1.0, 1.0, "the gradient's largest norm; 0 for any"),
    "precision": Option(str, *["no"] * 3, "of forward passes: fp16 needs a GPU", choices=["no", "bf16", "fp16"]),
    "stored": Option(str, *["float32"] * 3, "numbers in best.safetensors", choices=["float32", "float16"]),
    "embedding_size": Option(int, 128, 128, 128, "numbers a word", least=1),
    "hidden_size": Option(int, 256, 128, 192, "units of the GRU, in each direction", least=1),
    "dropout": Option(float, 0.5, 0.5, 0.4, "of the state that is judged", most=1),
    "members": Option(int, 1, 3, 3, "GRUs, each from its own seed", least=1),
    "vocabulary_size": Option(int, None, 30_000, 30_000, "tokens that are known", least=3, most=55_000),
    "segment": Option(int, None, 64, 64, "tokens that the GRU reads in one go", least=1),
    "crop": Option(int, None, 256, 224, "tokens of a review that a step of training reads", least=1),
    "embedding_dropout": Option(float, None, 0.3, 0.2, "of single numbers that the GRU reads", most=1),
    "word_dropout": Option(float, None, 0.1, 0.1, "of whole words", most=0.99),
    "averaging": Option(float, None, 0.995, 0.995, "decay of the average over steps that is validated", most=1),
    "ngrams": Option(int, None, 600_000, 600_000, "n-grams that are known; 0: only GRUs"),
    "ngram_share": Option(float, None, 0.25, 0.25, "of the n-grams by themselves in the prediction", most=1),
    "plain": Option(int, None, 1, 2, "so many GRUs, the first, are not told of n-grams"),
    "pretraining_epochs": Option(int, None, 8, 4, "passes over all texts, without labels, before the GRUs' first"),
    "soft_weight": Option(float, None, None, 0.5, "of what the teacher labelled, where n-grams are fitted", most=0.99),
}


Config = SimpleNamespace  # everything that determines a run's result, except its reviews


def parse(description: str | None) -> tuple[argparse.Namespace, Config]:
    """Reads the command line; returns it and the configuration that it makes of the preset.

    Raises:
        UserError: a flag that the preset does not use, or a value out of range.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=["book", "book-masked", "best", "semi"], default="book-masked")
    parser.add_argument("--data", default="sample", help="sample, hub, or a folder (parquet or aclImdb)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--output", type=Path, help="the run's folder; default runs/imdb-PRESET-DATA-GRU-SEED")
    parser.add_argument("--resume", action="store_true", help="continue the run in --output")
    parser.add_argument("--checkpoint-every", type=int, metavar="N", help="also save every N steps")
    parser.add_argument("--teacher", type=Path, metavar="RUN", help="of semi: a run of best, or of semi again")
    parser.add_argument("--no-test", action="store_true", help="leave the test split for later, with --resume")
    parser.add_argument("--describe", action="store_true", help="print what would be trained as JSON, and stop")
    for name, option in OPTIONS.items():
        text = f"{option.help} (book {option.book}, best {option.best}, semi {option.semi})"
        parser.add_argument(f"--{name.replace('_', '-')}", type=option.kind, choices=option.choices, help=text)
    given = parser.parse_args()
    column = given.preset.removesuffix("-masked")  # it has the options of book
    schedule = "constant" if column == "book" else "cosine"
    config = Config(preset=given.preset, masked=given.preset != "book", schedule=schedule)
    for name, option in OPTIONS.items():
        flag, value, default = f"--{name.replace('_', '-')}", getattr(given, name), getattr(option, column)
        if value is not None and default is None:
            raise UserError(f"{flag} is not used by --preset {given.preset}")
        if isinstance(value, (int, float)) and not option.least <= value <= option.most:
            raise UserError(f"{flag} must be from {option.least} to {option.most}, got {value}")
        setattr(config, name, default if value is None else value)
    return given, config


def command(main: Callable[[], None]) -> None:
    """Runs a script, which a `UserError` ends with one line."""
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:  # as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python says so once more at its end
        sys.exit(1)
