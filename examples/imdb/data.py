"""Loads reviews, splits them, and turns them into tokens and batches.

`book` follows torchtext as the published pipeline used it: words between spaces, lower-cased, `<br />` left in; all
words with 5 or more occurrences in the 25,000 training reviews, validation split included; a random fifth validates.
`best` and `semi` split texts into words and punctuation marks, and validate on blocks of consecutive reviews: reviews
are ordered by film, so a random split would validate on films that were trained on.
"""

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import sample
import torch
from config import UserError
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

UNKNOWN, PADDING = 0, 1
SPECIALS = ["<unk>", "<pad>"]
LABELS = ("negative", "positive")
WORD_OR_MARK = r"\w+(?:['\u2019]\w+)*|[^\w\s]"  # "isn't" is one token, "?!" are two


class Reviews(NamedTuple):
    """Texts and their labels: 0 negative, 1 positive, -1 unknown."""

    texts: list[str]
    labels: list[int]

    def part(self, rows: Sequence[int]) -> "Reviews":
        """Selects rows."""
        return Reviews([self.texts[i] for i in rows], [self.labels[i] for i in rows])

    def ordered(self) -> "Reviews":
        """Sorts by label and text, so that the order is the same from every source."""
        return self.part(sorted(range(len(self.texts)), key=lambda i: (self.labels[i], self.texts[i])))

    def digest(self) -> str:
        """A digest that is equal for the same reviews in any order."""
        lines = "\0".join(f"{label} {text}" for text, label in zip(*self.ordered(), strict=True))
        return hashlib.sha256(lines.encode("utf-8", "surrogatepass")).hexdigest()[:16]


class Encoded(NamedTuple):
    """N reviews, encoded for a model."""

    tokens: list[Tensor]  # each (T,) int64
    targets: Tensor  # (N,) float32: the probability that each is positive; 0 or 1 if it is known
    evidence: list[Tensor] | None = None  # each (T, kinds) float32, if it cannot be computed from the tokens
    offsets: Tensor | None = None  # (N,) float32, the n-grams' log-odds, if they cannot be either


class Batch(NamedTuple):
    """B reviews, padded on the right to the longest. `weights` are 0 for a row that only fills up a process's batch."""

    tokens: Tensor  # (B, T) int64
    lengths: Tensor  # (B,) int64
    targets: Tensor  # (B,) float32
    weights: Tensor  # (B,) float32
    evidence: Tensor | None  # (B, T, kinds) float32
    offsets: Tensor | None  # (B,) float32


def load(source: str, part: str) -> Reviews:
    """Loads reviews in their original order.

    Args:
        source: "sample" (synthetic, generated here), "hub" (stanfordnlp/imdb), or the path of a folder that holds
            train.parquet and so on (columns text and label) or the extracted aclImdb.
        part: "train", "test" or "unsupervised".

    Raises:
        UserError: there is nothing that can be read.
    """
    if source == "sample":
        train, test = sample.corpus()
        return Reviews(*{"train": train, "test": test, "unsupervised": sample.generate(2000, seed=2)}[part])
    folder = Path(source)
    if source == "hub":
        reviews = _by_datasets(
            "stanfordnlp/imdb", part, "stanfordnlp/imdb from the hub (--data sample needs no network)"
        )
    elif not folder.is_dir():
        raise UserError(f"--data must be sample, hub or a folder, got {source!r}, which is not a folder")
    elif (file := folder / f"{part}.parquet").exists():
        reviews = _by_datasets("parquet", "train", f"{file}, a parquet file", data_files=str(file))
    elif (folder / part).is_dir() or (folder / "train" / "unsup").is_dir():
        reviews = _tree(folder, part)
    else:
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise UserError(f"{folder} must hold {file.name}, or {part}/pos/*.txt and so on; found {found}")
    expected = {-1} if part == "unsupervised" else {0, 1}
    if set(reviews.labels) != expected or not all(isinstance(text, str) for text in reviews.texts):
        got = f"{len(reviews.texts)} rows with labels {sorted(set(reviews.labels), key=str)[:5]}"
        raise UserError(f"{source}: expected texts with labels {sorted(expected)} in its {part} split, got {got}")
    return reviews


def _by_datasets(path: str, split: str, name: str, **options: str) -> Reviews:
    import datasets

    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(path, split=split, **options).select_columns(["text", "label"])
    except Exception as error:  # the library raises many kinds, its own and those of HTTP clients
        raise UserError(f"could not read {name}: {error.__cause__ or error}") from error
    return Reviews(list(rows["text"]), list(rows["label"]))


def _tree(folder: Path, part: str) -> Reviews:
    names = {"unsup": -1} if part == "unsupervised" else {"neg": 0, "pos": 1}
    texts, labels = [], []
    for name, label in names.items():
        where = folder / ("train" if part == "unsupervised" else part) / name
        paths = sorted(where.glob("*.txt"), key=lambda path: (len(path.name.split("_")[0]), path.name))  # by number
        if not paths:
            raise UserError(f"{where} must hold the reviews as *.txt, found none")
        try:
            texts += [path.read_text(encoding="utf-8") for path in paths]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{where} must hold UTF-8 texts: {error}") from error
        labels += [label] * len(paths)
    return Reviews(texts, labels)


def split_at_random(reviews: Reviews, seed: int) -> tuple[Reviews, Reviews]:
    """Training and validation splits: a random permutation, divided at four fifths, not stratified."""
    order = list(range(len(reviews.texts)))
    random.Random(seed).shuffle(order)
    cut = round(0.8 * len(order))
    return reviews.part(order[:cut]), reviews.part(order[cut:])


def split_by_blocks(reviews: Reviews) -> tuple[Reviews, Reviews]:
    """Training and validation splits: for each label, five blocks of consecutive reviews, a tenth in all, validate.

    A text that is in both is removed from the training split.
    """
    validation: list[int] = []
    for label in (0, 1):
        rows = [i for i, each in enumerate(reviews.labels) if each == label]
        size = max(1, round(len(rows) / 50))
        for block in range(5):
            begin = round((block + 0.5) * len(rows) / 5 - size / 2)
            validation += rows[max(0, begin) : begin + size]
    held_out = {reviews.texts[i] for i in validation}
    return reviews.part([i for i, text in enumerate(reviews.texts) if text not in held_out]), reviews.part(validation)


def without(reviews: Reviews, *others: Reviews) -> Reviews:
    """Removes duplicates, and texts that any of the others contains."""
    seen = {text for other in others for text in other.texts}
    first = {text: i for i, text in reversed(list(enumerate(reviews.texts))) if text not in seen}
    return reviews.part(sorted(first.values()))


def overlap(train: Sequence[str], test: Sequence[str]) -> Tensor:
    """Finds the test texts that also occur in the training data, ignoring white space and case: shape (N,), bool."""
    seen = {" ".join(text.lower().split()) for text in train}
    return torch.tensor([" ".join(text.lower().split()) in seen for text in test])


def learn_vocabulary(texts: Sequence[str], size: int | None) -> Tokenizer:
    """Fits a tokenizer: `size` words and marks, or if None, all words between spaces that occur 5 times or more.

    Ids are ordered by frequency, ties alphabetically; <unk> is 0 and <pad> 1.
    """
    tokenizer = Tokenizer(models.WordLevel(unk_token=SPECIALS[UNKNOWN]))
    options = {"special_tokens": SPECIALS, "show_progress": False}
    if size is None:
        tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer = trainers.WordLevelTrainer(vocab_size=10**7, min_frequency=5, **options)
    else:
        line_break = normalizers.Replace(Regex(r"<br\s*/?>"), " ")
        tokenizer.normalizer = normalizers.Sequence([line_break, normalizers.NFKC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD_OR_MARK), behavior="removed", invert=True)
        trainer = trainers.WordLevelTrainer(vocab_size=size, **options)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    """A text's tokens as written, including those outside the vocabulary."""
    normalized = tokenizer.normalizer.normalize_str(text)
    return [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normalized)]


def encode(tokenizer: Tokenizer, reviews: Reviews) -> Encoded:
    """The ids of the reviews' tokens. A review without tokens becomes one <pad>, so that every row has a step."""
    ids = [encoding.ids or [PADDING] for encoding in tokenizer.encode_batch_fast(reviews.texts)]
    return Encoded([torch.tensor(row) for row in ids], torch.tensor(reviews.labels, dtype=torch.float32))


def training_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int, bucketed: bool) -> list[list[int]]:
    """The rows of an epoch's batches, as torchtext's BucketIterator made them; determined by seed and epoch.

    A permutation is divided into chunks of 100 batches, whose batches come in random order. The published pipeline left
    `sort_within_batch` at its default, so nothing was bucketed and three quarters of each batch were padding. With
    `bucketed`, reviews are sorted within their chunk, and a batch contains reviews of similar length.
    """
    rng = np.random.default_rng([seed, epoch])
    order, batches = rng.permutation(len(lengths)).tolist(), []
    for begin in range(0, len(order), 100 * batch_size):
        chunk = order[begin : begin + 100 * batch_size]
        if bucketed:
            chunk.sort(key=lengths.__getitem__)
        chunk = [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
        batches += [chunk[i] for i in rng.permutation(len(chunk))]
    return batches


def seed_torch(*numbers: int) -> None:
    """Seeds PyTorch's random numbers by all the numbers."""
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


def collate(encoded: Encoded, rows: list[int], rank: int = 0, processes: int = 1) -> Batch:
    """A process's share of a batch; an empty share gets one review with weight 0."""
    share = rows[rank::processes]
    weights = torch.ones(len(share)) if share else torch.zeros(1)
    share = share or rows[:1]
    tokens = [encoded.tokens[i] for i in share]
    evidence = encoded.evidence and pad_sequence([encoded.evidence[i] for i in share], batch_first=True)
    return Batch(
        pad_sequence(tokens, batch_first=True, padding_value=PADDING),
        torch.tensor([len(row) for row in tokens]),
        encoded.targets[share],
        weights,
        evidence,
        None if encoded.offsets is None else encoded.offsets[share],
    )
