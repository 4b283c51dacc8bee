"""The native library's C interface under AddressSanitizer, as tests/kernels/native/fuzz.py builds it."""

from __future__ import annotations

import fuzz

from .files import folder

SECONDS = 2  # of a call
_built: list[fuzz.Target] = []


def one(seed: int) -> list[str]:
    """The failure in some seconds of inputs; a failing one stays in the folder."""
    if not _built:
        (there := folder() / "library").mkdir(parents=True, exist_ok=True)
        _built.append(fuzz.build(there))
    result = fuzz.run(_built[0], SECONDS, seed % 2**31 + 1)
    if result.returncode == 0:
        return []
    kept = _built[0].program.parent
    return [f"the library ended with {result.returncode}: {result.stderr[-3000:]}\n    its input is in {kept}"]
