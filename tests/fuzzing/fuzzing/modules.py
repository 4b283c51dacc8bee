"""Programs of `programs.py`, compared by `compare.py`."""

from __future__ import annotations

import random

from . import compare, programs


def one(seed: int, backend: str = "auto") -> list[str]:
    """The failure with a seed, as a script."""
    program = programs.program(random.Random(seed))
    found = compare.failure(program, backend)
    if found is None:
        return []
    program, found = compare.smaller(program, found, backend)
    return [f"{found.what}\n    modules.one({seed}, {backend!r})\n{compare.snippet(program, found, backend)}"]
