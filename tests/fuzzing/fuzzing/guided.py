"""The files of `files.py`, with changes that follow the branches that the readers take. Needs `pip install atheris`.

    PYTHONPATH=.:tests/fuzzing python -m fuzzing.guided CORPUS [-max_total_time=SECONDS] [other flags of libFuzzer]

Inputs that reach new branches are kept in the folder CORPUS; one that fails is written to crash-*, and given as a FILE
instead of CORPUS it runs again. The HDF5 library (2.0.0) never returns from some damaged files, which no reader can
prevent: such a run has to be killed.
"""

from __future__ import annotations

import random
import sys

import atheris

with atheris.instrument_imports(include=["grucore.convert"]):
    import grucore.convert  # noqa: F401

from . import files


class Given(random.Random):
    """Numbers made of given bytes, and 0 where these end."""

    def __init__(self, data: bytes):
        super().__init__(0)
        self.data, self.at = data, 0

    def getrandbits(self, k: int) -> int:
        size = (k + 7) // 8
        taken = self.data[self.at : self.at + size]
        self.at += size
        return int.from_bytes(taken, "little") & ((1 << k) - 1)

    def random(self) -> float:
        return self.getrandbits(16) / 2**16


def main() -> None:
    """Runs libFuzzer."""
    paths = files.write_all(files.folder())

    def attempt(data: bytes) -> None:
        if found := files.attempt(Given(data), paths, "the input's bytes"):
            raise RuntimeError(found[0])

    atheris.Setup(sys.argv, attempt)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
