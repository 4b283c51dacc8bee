"""The configuration that determines a run's result, its presets, and the command line that overrides them."""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path
from typing import Any

from model import LAYERS
from run_folder import RunError


def flag(
    default: Any, text: str, kind: type | None = None, least: float = 0, most: float = math.inf, choices: Any = None
) -> Any:
    """A field that the command line can set; a preset with None does not use it and refuses the flag."""
    kind = kind or type(default)
    return dataclasses.field(
        default=default, metadata={"help": text, "type": kind, "range": (least, most), "choices": choices}
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that determines a run's result, except its reviews. The defaults are those of `book`."""

    preset: str = "book"
    gru: str = "grucore"
    seed: int = 0
    masked: bool = False
    bucketed: bool = False
    schedule: str = "constant"
    epochs: int = flag(40, "passes over the training data", least=1)
    batch_size: int = flag(64, "reviews in a batch, of all processes together", least=1)
    accumulate: int = flag(1, "parts that a batch's gradients are computed in, to save memory", least=1)
    learning_rate: float = flag(1e-3, "Adam's; the highest of the schedule")
    clip: float = flag(0.0, "the gradient's largest norm; 0 for any")
    precision: str = flag("no", "of forward passes: fp16 needs a GPU", choices=["no", "bf16", "fp16"])
    stored: str = flag("float32", "numbers in best.safetensors", choices=["float32", "float16"])
    embedding_size: int = flag(128, "numbers a word", least=1)
    hidden_size: int = flag(256, "units of the GRU, in each direction", least=1)
    dropout: float = flag(0.5, "of the state that is judged", most=1)
    members: int = flag(1, "GRUs, each from its own seed", least=1)
    vocabulary_size: int | None = flag(None, "tokens that are known", int, least=3)
    segment: int | None = flag(None, "tokens that the GRU reads in one go", int, least=1)
    crop: int | None = flag(None, "tokens of a review that a step of training reads", int, least=1)
    embedding_dropout: float | None = flag(None, "of single numbers that the GRU reads", float, most=1)
    word_dropout: float | None = flag(None, "of whole words", float, most=0.99)
    averaging: float | None = flag(None, "decay of the average over steps that is validated", float, most=1)
    ngrams: int | None = flag(None, "n-grams that are known; 0: only GRUs", int)
    ngram_share: float | None = flag(None, "of the n-grams by themselves in the prediction", float, most=1)
    plain: int | None = flag(None, "so many GRUs, the first, are not told of n-grams", int)
    pretraining_epochs: int | None = flag(None, "passes over all texts, without labels, before the GRUs' first", int)
    rounds: int | None = flag(None, "of training on soft labels by the previous round, or by best", int, least=1)
    soft_weight: float | None = flag(None, "of what the teacher labelled, where n-grams are fitted", float, most=0.99)


BOOK = Config()
BEST = Config(
    **{"preset": "best", "masked": True, "bucketed": True, "schedule": "cosine", "epochs": 1, "learning_rate": 2e-3},
    **{"clip": 1.0, "hidden_size": 128, "members": 3, "vocabulary_size": 30_000, "segment": 64, "crop": 256},
    **{"embedding_dropout": 0.3, "word_dropout": 0.1, "averaging": 0.995, "ngrams": 600_000, "ngram_share": 0.0},
    **{"plain": 0},
)
SEMI = dataclasses.replace(
    BEST,
    **{"preset": "semi", "epochs": 2, "batch_size": 96, "crop": 224, "learning_rate": 4e-3, "dropout": 0.4},
    **{"hidden_size": 192, "embedding_dropout": 0.2, "members": 3, "plain": 2, "ngram_share": 0.25},
    **{"soft_weight": 0.5, "pretraining_epochs": 4, "rounds": 2},
)
PRESETS = {
    "book": BOOK,
    "book-masked": dataclasses.replace(BOOK, preset="book-masked", masked=True, bucketed=True),
    "best": BEST,
    "semi": SEMI,
}


def parse(description: str | None) -> tuple[argparse.Namespace, Config]:
    """Reads the command line; returns it and the configuration that it makes of the preset.

    Raises:
        RunError: a flag that the preset does not use, or a value out of range.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=list(PRESETS), default="book-masked")
    parser.add_argument("--data", default="sample", help="sample, hub, or a folder (parquet or aclImdb)")
    parser.add_argument("--gru", choices=list(LAYERS), default="grucore", help="whose layer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--output", type=Path, help="the run's folder; default runs/imdb-PRESET-DATA-GRU-SEED")
    parser.add_argument("--resume", action="store_true", help="continue the run in --output")
    parser.add_argument("--checkpoint-every", type=int, metavar="N", help="also save every N steps")
    parser.add_argument("--teacher", type=Path, metavar="RUN", help="of semi: a run of best; default: trains one")
    parser.add_argument("--no-test", action="store_true", help="leave the test split for later, with --resume")
    parser.add_argument("--describe", action="store_true", help="print what would be trained as JSON, and stop")
    settings = [field for field in dataclasses.fields(Config) if field.metadata]
    for field in settings:
        values = ", ".join(str(getattr(preset, field.name)) for preset in PRESETS.values())
        options = {name: field.metadata[name] for name in ("type", "choices")}
        parser.add_argument(f"--{field.name.replace('_', '-')}", help=f"{field.metadata['help']} ({values})", **options)
    given = parser.parse_args()
    config = dataclasses.replace(PRESETS[given.preset], gru=given.gru, seed=given.seed)
    for field in settings:
        name, value, (least, most) = field.name, getattr(given, field.name), field.metadata["range"]
        if value is None:
            continue
        if getattr(config, name) is None:
            raise RunError(f"--{name.replace('_', '-')} is not used by --preset {given.preset}")
        if not isinstance(value, str) and not least <= value <= most:
            raise RunError(f"--{name.replace('_', '-')} must be from {least} to {most}, got {value}")
        config = dataclasses.replace(config, **{name: value})
    return given, config
