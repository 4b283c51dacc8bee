"""Encoded reviews kept between runs, in a folder that several processes may use at once.

A file's name is the digest of all that its contents follow from, so that it never needs to be changed: it appears
whole, by a rename, or not at all, and two processes that make the same file put the same one there.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import torch
from data import Encoded, Reviews
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from vocabularies import Vocabulary

VERSION = "1"  # of the format and of how reviews are encoded


def default_folder() -> Path:
    """Where caches belong on this system."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "grucore-imdb"


def key(reviews: Reviews, vocabulary: Vocabulary) -> str:
    """The digest of texts, labels and vocabulary."""
    digest = hashlib.sha256(f"{VERSION} {vocabulary.fingerprint()}".encode())
    for text, label in zip(reviews.texts, reviews.labels, strict=True):
        data = text.encode("utf-8", "surrogatepass")
        digest.update(f"\0{label} {len(data)} ".encode())
        digest.update(data)
    return digest.hexdigest()[:32]


def encoded(reviews: Reviews, vocabulary: Vocabulary, folder: Path | None) -> Encoded:
    """The reviews' ids: from the folder, or made and put there; None for no cache."""
    if folder is None:
        return Encoded(vocabulary.ids(reviews.texts), torch.tensor(reviews.labels))
    path = folder / f"{key(reviews, vocabulary)}.safetensors"
    try:
        tensors = load_file(path)
        rows = tensors["tokens"].long().split(tensors["lengths"].tolist())
        return Encoded(list(rows), tensors["labels"])
    except (OSError, SafetensorError, KeyError):
        pass  # not there, or damaged: made anew below
    fresh = encoded(reviews, vocabulary, None)
    tensors = {"lengths": torch.tensor([len(row) for row in fresh.tokens]), "labels": fresh.labels}
    _write(path, save(tensors | {"tokens": torch.cat(fresh.tokens).int()}))
    return fresh


def _write(path: Path, contents: bytes) -> None:
    """Puts the file there whole. A cache that cannot be written costs time alone, and is not an error."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".unfinished-", delete=False) as file:
            temporary = file.name
            file.write(contents)
        os.replace(temporary, path)
    except OSError as error:
        print(f"the cache {path.parent} cannot be written ({error}); going on without it", flush=True)
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
