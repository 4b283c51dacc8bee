"""Fixtures for the tests of the IMDB example: a small corpus, and runs on it."""

import os

import imdb
import pytest


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory):
    """Keeps the cache of `datasets` out of the user's folder."""
    os.environ["HF_HOME"] = str(tmp_path_factory.mktemp("huggingface"))
    os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """The folder of a small IMDB."""
    return imdb.write_parquet(tmp_path_factory.mktemp("data"), train=120, test=40, unlabelled=60)


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """The same as text files, which are read without `datasets`, whose import takes seconds per process."""
    return imdb.write_tree(tmp_path_factory.mktemp("tree"), train=120, test=40)


@pytest.fixture(scope="session")
def best(data, tmp_path_factory):
    """The folder of a complete run of `best`; a test that changes it copies it first."""
    return imdb.train(tmp_path_factory.mktemp("runs") / "best", "--data", data, *imdb.BEST, pictures=True)


@pytest.fixture(scope="session")
def book(data, tmp_path_factory):
    """The folder of a complete run of `book-masked` with torch.nn.GRU, of one epoch."""
    return imdb.train(tmp_path_factory.mktemp("runs") / "book", "--data", data, *imdb.BOOK, "--epochs", 1)
