"""Loads the shared library that was built from this folder on installation, or says why it cannot be used."""

from __future__ import annotations

import ctypes
import os
import warnings
from pathlib import Path

from .sources import digest

PATH = Path(__file__).parent / "libgrucore.so"

_AGAIN = "`pip install --force-reinstall --no-deps -e .` in the checkout"
STALE = f"the native kernels were built from other sources than those beside them: {_AGAIN} builds them again"


def _loaded() -> tuple[ctypes.CDLL | None, str]:
    """The library and its instruction set, or None and the reason."""
    if os.environ.get("GRUCORE_NATIVE") == "0":
        return None, "GRUCORE_NATIVE=0 turns the native kernels off"
    if not PATH.exists():
        return None, (
            "the native kernels are not built: they need x86-64 or 64-bit ARM and a C++ compiler when grucore is "
            f"installed, and then {_AGAIN} builds them"
        )
    try:
        library = ctypes.CDLL(os.fspath(PATH))
        if _sources_of(library) != digest(Path(__file__).parent):
            warnings.warn(STALE, RuntimeWarning, stacklevel=2)
            return None, STALE
        library.gru_instruction_set.restype = ctypes.c_char_p
        two = library.gru_forward, library.gru_backward, library.gru_forward_int8, library.gru_forward_bf16
        for function in two:
            function.argtypes, function.restype = (ctypes.c_char_p, ctypes.c_int64), ctypes.c_int64
        one = library.gru_step, library.gru_packed_bytes, library.gru_segments, library.gru_quantised_bytes
        for function in one:
            function.argtypes, function.restype = (ctypes.c_char_p,), ctypes.c_int64
        for function in (library.gru_pack, library.gru_quantised_pack):
            function.argtypes = ctypes.c_char_p, ctypes.c_void_p
    except (OSError, AttributeError) as error:
        return None, f"the native kernels cannot be loaded: {error}"
    if (name := library.gru_instruction_set()) is None:
        return None, "the native kernels need AVX2 and FMA, which this processor lacks"
    return library, name.decode()


def _sources_of(library: ctypes.CDLL) -> str:
    """The digest that it was built with, "" of one that has none."""
    if not hasattr(library, "gru_sources"):
        return ""
    library.gru_sources.restype = ctypes.c_char_p
    return library.gru_sources().decode()


# Loaded once, after torch, whose OpenMP runtime the library then finds.
LIBRARY, _said = _loaded()
INSTRUCTION_SET = None if LIBRARY is None else _said
UNAVAILABLE = _said if LIBRARY is None else None
