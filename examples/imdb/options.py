"""The command line of train.py, and the configuration that it and the preset make."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cache
import torch
from presets import PRESETS
from run_folder import RunError

LEAST = {"epochs": 1, "batch_size": 1, "embedding_size": 1, "hidden_size": 1, "accumulate": 1, "checkpoint_every": 1}
INTEGERS = {
    "epochs": "passes over the training part",
    "batch_size": "reviews in a batch, of all processes together",
    "embedding_size": None,
    "hidden_size": None,
    "vocabulary_size": "words that best and semi keep",
    "ngrams": "n-grams that the wide path knows; 0 for the GRU alone",
    "crop": "tokens of a review that the GRU sees in a step",
    "accumulate": "parts that a batch's gradients are computed in, to save memory",
    "unlabelled_batch_size": None,
    "lm_epochs": "passes of the language model",
    "lm_streams": None,
    "lm_steps": None,
}
NUMBERS = {
    "dropout": None,
    "embedding_dropout": None,
    "word_dropout": None,
    "learning_rate": None,
    "ngram_learning_rate": None,
    "weight_decay": None,
    "clip": "the gradient's largest norm",
    "averaging": "decay of the average over steps that is evaluated",
    "adversarial": "eps of the perturbation of embedded words, in their standard deviations; 0 for none",
}


def parse(description: str | None) -> argparse.Namespace:
    """The command line; flags that are not given take the preset's values."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=list(PRESETS), default="book-masked")
    parser.add_argument("--data", default="sample", help="sample, hub, or a folder (parquet or aclImdb)")
    parser.add_argument("--gru", choices=["grucore", "torch"], default="grucore", help="whose layer")
    parser.add_argument("--patience", type=int, help="stop after so many epochs without a lower validation loss")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=seeds, help="several runs and their mean: 0-4, or 0,3,7")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], help="of forward passes; fp16 needs a GPU")
    parser.add_argument("--schedule", choices=["constant", "cosine"])
    parser.add_argument("--output", type=Path, help="the run's folder; default runs/imdb-PRESET-DATA-GRU-SEED")
    parser.add_argument("--resume", action="store_true", help="continue the run in --output")
    parser.add_argument("--checkpoint-every", type=int, metavar="N", help="save every N steps, not each epoch alone")
    parser.add_argument("--tensorboard", action="store_true", help="also write what the tensorboard package reads")
    parser.add_argument("--cache", default=str(cache.default_folder()), help="folder of encoded reviews, or none")
    parser.add_argument("--describe", action="store_true", help="print what would be trained as JSON, and stop")
    for kind, names in ((int, INTEGERS), (float, NUMBERS)):
        for name, explanation in names.items():
            parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=explanation)
    return parser.parse_args()


def seeds(text: str) -> list[int]:
    """Seeds as "0-4" or "0,3,7"."""
    try:
        numbers: list[int] = []
        for piece in text.split(","):
            first, dash, last = piece.partition("-")
            numbers += range(int(first), int(last if dash else first) + 1)
    except ValueError:
        numbers = []
    if not numbers or len(set(numbers)) < len(numbers):
        raise argparse.ArgumentTypeError(f"expected different seeds as 0-4 or 0,3,7, got {text!r}")
    return numbers


def configuration(given: argparse.Namespace) -> dict:
    """The preset with the command line's overrides: all that decides a run's result.

    Raises:
        RunError: a flag that the preset has no use for, or a value out of range.
    """
    config = {"preset": given.preset, "gru": given.gru, "seed": given.seed, "patience": given.patience}
    config |= PRESETS[given.preset]
    for name in (*INTEGERS, *NUMBERS, "precision", "schedule"):
        override = getattr(given, name)
        if override is None:
            continue
        if name not in config or (name == "vocabulary_size" and config["tokens"] == "spaces"):
            raise RunError(f"--{name.replace('_', '-')} means nothing to --preset {given.preset}")
        config[name] = override
    for name, least in LEAST.items():
        value = config.get(name, getattr(given, name, None))
        if value is not None and value < least:
            raise RunError(f"--{name.replace('_', '-')} must be {least} or more, got {value}")
    if config["adversarial"] and config["model"] != "segments":
        raise RunError(f"--adversarial means nothing to --preset {given.preset}")
    is_folder = given.data not in ("sample", "hub")
    config["data"] = "folder" if is_folder else given.data
    config["data_path"] = given.data if is_folder else None
    return config


def check_precision(config: dict, device: torch.device) -> None:
    """Refuses what the device cannot do.

    Raises:
        RunError: float16 without a GPU.
    """
    if config["precision"] == "fp16" and device.type != "cuda":
        raise RunError("--precision fp16 needs a GPU; bf16 runs on a CPU too")


def describe(config: dict, sizes: dict[str, int], vocabulary: int, parameters: int) -> str:
    """What would be trained, as one line of JSON."""
    return json.dumps(sizes | {"vocabulary": vocabulary, "classes": 2, "parameters": parameters} | config)
