"""A library that cannot be used, and the reason that is reported."""

import contextlib
import os
import shutil
import subprocess
import sys

import pytest

from grucore.kernels.native import library
from grucore.kernels.native.sources import digest

FUNCTIONS = ("gru_packed_bytes", "gru_pack", "gru_forward", "gru_backward", "gru_step", "gru_segments")
FUNCTIONS += ("gru_quantised_bytes", "gru_quantised_pack", "gru_forward_int8", "gru_forward_bf16")
THESE = digest(library.PATH.parent)
SOURCES = {
    "of other sources": ('const char *gru_sources() { return "0"; }', "built from other sources than those beside"),
    "of before it knew its sources": ("long gru_abi() { return 6; }", "built from other sources than those beside"),
    "half a library": (f'const char *gru_sources() {{ return "{THESE}"; }}', "cannot be loaded: "),
    "no instruction set that the processor has": (
        f'const char *gru_sources() {{ return "{THESE}"; }} const char *gru_instruction_set() {{ return 0; }}'
        + " ".join(f"void {name}() {{}}" for name in FUNCTIONS),
        "need AVX2 and FMA, which this processor lacks",
    ),
}


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
@pytest.mark.parametrize("source, reason", SOURCES.values(), ids=SOURCES)
def test_a_library_that_cannot_be_used(source, reason, monkeypatch, tmp_path):
    path = tmp_path / "libgrucore.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", path], input=source, text=True, check=True)
    monkeypatch.setattr(library, "PATH", path)
    monkeypatch.delenv("GRUCORE_NATIVE", raising=False)
    is_stale = reason in library.STALE
    with pytest.warns(RuntimeWarning, match="other sources") if is_stale else contextlib.nullcontext():
        loaded, said = library._loaded()
    assert loaded is None and reason in said


WITHOUT = """
import torch
from grucore import GRU
layer, x = GRU(3, 4), torch.randn(5, 2, 3, requires_grad=True)
y = layer(x)[0]
y.sum().backward()
layer.step(x[0].detach())
print(layer.explain_backend(x))
try:
    GRU(3, 4, backend="native")(x)
except RuntimeError as error:
    print(error)
"""


@pytest.mark.slow
def test_calls_without_it_run_and_say_why():
    environment = {**os.environ, "GRUCORE_NATIVE": "0"}
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True, env=environment
    )
    reason = "GRUCORE_NATIVE=0 turns the native kernels off"
    explained, error = result.stdout.splitlines()
    assert explained == f"Choice(name='eager', reason='{reason}')"
    assert error.startswith(f"backend='native' cannot run: {reason}")
