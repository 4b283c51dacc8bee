"""Settings of all tests."""

import os
import signal

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported: kernels then run on CPU tensors
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS is not repeatable, and is refused

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell leaves it in the background; programs inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

import oracle
import pytest


@pytest.fixture(autouse=True)
def _poisoned_memory_and_fixed_seed():
    """Fresh memory holds NaN, so that an element nobody wrote shows; operators that are not repeatable are refused."""
    torch.use_deterministic_algorithms(True)
    products = torch.backends.cuda.matmul  # limits are those of sums in float32
    products.allow_fp16_reduced_precision_reduction = products.allow_bf16_reduced_precision_reduction = False
    torch.manual_seed(0)
    yield
    torch.use_deterministic_algorithms(False)


def pytest_terminal_summary(terminalreporter):
    """The worst error of each row of the table of limits, to be written next to the limit (run with -p no:xdist)."""
    for key, (error, limit) in sorted(oracle.worst.items()):
        terminalreporter.write_line(f"worst RMS error  {key:28} {error:.1e}  (limit {limit:.0e})")
