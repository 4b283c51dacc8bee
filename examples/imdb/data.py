"""Reviews and their encoding: where they come from, tokens, vocabulary, the split.

Tokens, vocabulary and split are those of torchtext's Field, as the published pipeline used it (`--preset book`):
words between spaces, each lower-cased, punctuation and `<br />` left in; all words seen 5 times or more in the 25,000
training reviews, validation part included; 20 % of those set apart for validation by chance.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import sample
import torch
from torch import Tensor

UNKNOWN, PADDING = 0, 1
SPECIALS = ("<unk>", "<pad>")
LABELS = ("negative", "positive")


class Reviews(NamedTuple):
    """Texts and their labels, 0 negative and 1 positive."""

    texts: list[str]
    labels: list[int]


class Encoded(NamedTuple):
    """Token ids of each review, each of shape (T,), int64, and labels, shape (N,), int64."""

    tokens: list[Tensor]
    labels: Tensor


class DataError(Exception):
    """Data that is missing or is not what was expected."""


def load(source: str) -> tuple[Reviews, Reviews]:
    """The training and the test reviews, in an order that does not depend on where they come from.

    Args:
        source: "sample" (synthetic, generated here), "hub" (stanfordnlp/imdb, by the `datasets` library), or the path
            of a folder that holds train.parquet and test.parquet (columns text and label) or the extracted aclImdb.

    Raises:
        DataError: nothing readable is there.
    """
    if source == "sample":
        train, test = (Reviews(*part) for part in sample.corpus())
        return train, test
    if source == "hub":
        return _hub()
    folder = Path(source)
    if not folder.is_dir():
        raise DataError(f"--data must be 'sample', 'hub' or a folder, got {source!r}, which is no folder")
    if (folder / "train.parquet").exists() or (folder / "test.parquet").exists():
        read = _parquet
    elif (folder / "train" / "pos").is_dir() or (folder / "test" / "pos").is_dir():
        read = _tree
    else:
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise DataError(
            f"{folder} must hold train.parquet and test.parquet, or train/pos/*.txt and so on; found {found}"
        )
    train, test = (_sorted(*read(folder, part)) for part in ("train", "test"))
    return train, test


def load_unlabelled(source: str, without: Sequence[str]) -> list[str]:
    """The reviews without labels, sorted, each text once.

    Args:
        source: as for `load`; a folder holds unsupervised.parquet, or train/unsup/*.txt.
        without: texts to leave out: those of the test part, some of which occur here too.

    Raises:
        DataError: nothing readable is there.
    """
    if source == "sample":
        texts = sample.generate(2000, seed=2)[0]
    elif source == "hub":
        texts = list(_hub_parts()["unsupervised"]["text"])
    elif (Path(source) / "unsupervised.parquet").exists():
        texts, _ = _parquet(Path(source), "unsupervised")
    elif (Path(source) / "train" / "unsup").is_dir():
        texts = [_read_text(path) for path in sorted((Path(source) / "train" / "unsup").glob("*.txt"))]
    else:
        raise DataError(f"{source} must hold unsupervised.parquet or train/unsup/*.txt for a preset that reads them")
    return sorted(set(texts) - set(without))


def overlap(train: Reviews, test: Reviews) -> Tensor:
    """Which test reviews also occur in the training part, white space and case aside: shape (N,), bool."""
    seen = {" ".join(tokenize(text)) for text in train.texts}
    return torch.tensor([" ".join(tokenize(text)) in seen for text in test.texts])


def _hub_parts() -> Any:
    import datasets

    try:
        return datasets.load_dataset("stanfordnlp/imdb")
    except Exception as error:  # the library raises many kinds, from its own to those of HTTP clients
        raise DataError(
            f"could not get stanfordnlp/imdb from the hub: {error}\n--data sample needs no network"
        ) from error


def _hub() -> tuple[Reviews, Reviews]:
    parts = _hub_parts()
    train, test = (_sorted(list(parts[part]["text"]), list(parts[part]["label"])) for part in ("train", "test"))
    return train, test


def _parquet(folder: Path, part: str) -> tuple[list[str], list[int]]:
    import pyarrow
    import pyarrow.parquet

    path = folder / f"{part}.parquet"
    try:
        table = pyarrow.parquet.read_table(path, columns=["text", "label"])
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} must be a parquet file with columns text and label: {error}") from error
    missing = {"text", "label"} - set(table.column_names)
    if missing:
        raise DataError(f"{path} must have columns text and label, got {pyarrow.parquet.read_schema(path).names}")
    return table["text"].to_pylist(), table["label"].to_pylist()


def _tree(folder: Path, part: str) -> tuple[list[str], list[int]]:
    texts, labels = [], []
    for label, name in enumerate(("neg", "pos")):
        paths = sorted((folder / part / name).glob("*.txt"))
        if not paths:
            raise DataError(f"{folder / part / name} must hold the reviews as *.txt, found none")
        for path in paths:
            texts.append(_read_text(path))
            labels.append(label)
    return texts, labels


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} must be a UTF-8 text: {error}") from error


def _sorted(texts: Sequence[str], labels: Sequence[int]) -> Reviews:
    """Reviews by label and text, so that every source of the same reviews gives the same run."""
    strange = set(labels) - {0, 1}
    if strange or not texts:
        raise DataError(
            f"expected reviews with labels 0 and 1, got {len(texts)} reviews with labels {sorted(set(labels))}"
        )
    pairs = sorted(zip(labels, texts, strict=True))
    return Reviews([text for _, text in pairs], [label for label, _ in pairs])


def tokenize(text: str) -> list[str]:
    """Words between white space, each lower-cased."""
    return [token.lower() for token in text.rstrip("\n").split()]


def build_vocabulary(texts: Iterable[str], min_frequency: int = 5) -> list[str]:
    """The words of at least that frequency after the specials, most frequent first, ties in alphabetical order."""
    counts = Counter(token for text in texts for token in tokenize(text))
    words = [token for token, count in counts.items() if count >= min_frequency]
    return [*SPECIALS, *sorted(words, key=lambda token: (-counts[token], token))]


def encode(reviews: Reviews, vocabulary: Sequence[str]) -> Encoded:
    """Ids of the reviews' tokens; a word outside the vocabulary is <unk>."""
    ids = {token: i for i, token in enumerate(vocabulary)}
    tokens = [torch.tensor([ids.get(t, UNKNOWN) for t in tokenize(text)], dtype=torch.long) for text in reviews.texts]
    return Encoded(tokens, torch.tensor(reviews.labels))


def split(reviews: Reviews, seed: int, fraction: float = 0.8) -> tuple[Reviews, Reviews]:
    """Training and validation parts: a random permutation, cut at round(fraction * N), not stratified."""
    order = list(range(len(reviews.texts)))
    random.Random(seed).shuffle(order)
    cut = round(fraction * len(order))
    first, second = (
        Reviews([reviews.texts[i] for i in part], [reviews.labels[i] for i in part])
        for part in (order[:cut], order[cut:])
    )
    return first, second


def split_stratified(reviews: Reviews, seed: int, fraction: float) -> tuple[Reviews, Reviews]:
    """Training and validation parts: of each label a random `fraction` to train, the rest to validate.

    A text that occurs more than once goes to one part whole, so that validation is never of what was trained on.
    """
    rng, chosen = random.Random(seed), ([], [])
    copies: dict[str, list[int]] = {}
    for i, text in enumerate(reviews.texts):
        copies.setdefault(text, []).append(i)
    for label in (0, 1):
        groups = [group for group in copies.values() if reviews.labels[group[0]] == label]
        rng.shuffle(groups)
        order = [i for group in groups for i in group]
        cut = round(fraction * len(order))
        while 0 < cut < len(order) and reviews.texts[order[cut]] == reviews.texts[order[cut - 1]]:
            cut += 1
        for part, rows in zip(chosen, (order[:cut], order[cut:]), strict=True):
            part.extend(rows)
    first, second = (Reviews([reviews.texts[i] for i in p], [reviews.labels[i] for i in p]) for p in chosen)
    return first, second
