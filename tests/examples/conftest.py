"""What the tests of the IMDB example share: a small corpus, and a run on it."""

import imdb
import pytest


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """The folder of a small IMDB."""
    folder = tmp_path_factory.mktemp("data")
    imdb.write_parquet(folder, train=120, test=40)
    return folder


@pytest.fixture(scope="session")
def best(data, tmp_path_factory):
    """The folder of a whole run of `best` on it; a test that changes it copies it first."""
    return imdb.train_here(tmp_path_factory.mktemp("runs") / "best", "--data", data, *imdb.BEST)
