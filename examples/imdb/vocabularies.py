"""What a token is: the two vocabularies of the presets, and how a run's folder keeps them.

`Spaces` is torchtext's as the published pipeline used it (`book`, `book-masked`). `Words` is made with the
`tokenizers` library (`best`, `semi`): words, with what follows an apostrophe, and single punctuation marks;
lower-cased, `<br />` taken out; learned from the training part alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from data import SPECIALS, UNKNOWN, build_vocabulary, tokenize
from torch import Tensor

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WORD_OR_MARK = r"\w+(?:['\u2019]\w+)*|[^\w\s]"  # "isn't" is one token, "?!" are two


class Vocabulary(Protocol):
    """Texts to token ids. `words` are the tokens in the order of their ids."""

    words: list[str]

    def tokens(self, text: str) -> list[str]:
        """The tokens of a text, those outside the vocabulary included."""

    def ids(self, texts: Sequence[str]) -> list[Tensor]:
        """The ids of each text's tokens, each of shape (T,), int64; a token outside the vocabulary is <unk>."""

    def files(self) -> dict[str, str]:
        """What a run's folder keeps of it: contents by name."""

    def fingerprint(self) -> str:
        """Equal for vocabularies that give the same ids."""


class Spaces:
    """Words between white space, lower-cased.

    Args:
        words: in the order of their ids, <unk> and <pad> first.
    """

    def __init__(self, words: list[str]):
        self.words = words
        self._ids = {word: i for i, word in enumerate(words)}

    def tokens(self, text: str) -> list[str]:
        """As `data.tokenize`."""
        return tokenize(text)

    def ids(self, texts: Sequence[str]) -> list[Tensor]:
        """As `data.encode`."""
        return [torch.tensor([self._ids.get(t, UNKNOWN) for t in tokenize(text)], dtype=torch.long) for text in texts]

    def files(self) -> dict[str, str]:
        """vocabulary.json."""
        return {"vocabulary.json": json.dumps(self.words, indent=1, ensure_ascii=False) + "\n"}

    def fingerprint(self) -> str:
        """A digest of the words."""
        return _digest(self.files().values())


class Words:
    """Words and punctuation marks by the `tokenizers` library.

    Args:
        tokenizer: a trained one.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        ids = tokenizer.get_vocab()
        self.words = sorted(ids, key=ids.__getitem__)

    def tokens(self, text: str) -> list[str]:
        """The normalised pieces of the text."""
        normalized = self.tokenizer.normalizer.normalize_str(text)
        return [piece for piece, _ in self.tokenizer.pre_tokenizer.pre_tokenize_str(normalized)]

    def ids(self, texts: Sequence[str]) -> list[Tensor]:
        """Ids by the library, in parallel."""
        encodings = self.tokenizer.encode_batch_fast(list(texts))
        return [torch.tensor(encoding.ids, dtype=torch.long) for encoding in encodings]

    def files(self) -> dict[str, str]:
        """vocabulary.json, for people, and tokenizer.json, in the library's own format."""
        return Spaces(self.words).files() | {"tokenizer.json": self.tokenizer.to_str(pretty=True) + "\n"}

    def fingerprint(self) -> str:
        """A digest of the words and of how a text is cut into them."""
        return _digest(self.files().values())


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def learn(kind: str, texts: Sequence[str], size: int | None) -> Vocabulary:
    """The vocabulary of some texts.

    Args:
        kind: "spaces" (words seen 5 times or more) or "words" (the most frequent).
        texts: what it is learned from.
        size: how many tokens "words" keeps, <unk> and <pad> included.
    """
    if kind == "spaces":
        return Spaces(build_vocabulary(texts))
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordLevel(unk_token=SPECIALS[0]))
    line_break = normalizers.Replace(Regex(r"<br\s*/?>"), " ")
    tokenizer.normalizer = normalizers.Sequence([line_break, normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD_OR_MARK), behavior="removed", invert=True)
    trainer = trainers.WordLevelTrainer(vocab_size=size, special_tokens=list(SPECIALS), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return Words(tokenizer)


def read(folder: Path) -> Vocabulary:
    """The vocabulary that a run's folder keeps.

    Raises:
        ValueError: a file that holds none.
        OSError: a file that cannot be read.
    """
    words = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
    if not (isinstance(words, list) and all(isinstance(word, str) for word in words)):
        raise ValueError(f"expected a list of words, got {type(words).__name__}")
    if not (folder / "tokenizer.json").exists():
        return Spaces(words)
    from tokenizers import Tokenizer

    try:
        found = Words(Tokenizer.from_str((folder / "tokenizer.json").read_text(encoding="utf-8")))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"tokenizer.json beside it is no tokenizer: {error}") from error
    if found.words != words:
        raise ValueError(f"{len(words)} words, but tokenizer.json beside it has {len(found.words)} others")
    return found
