"""The native kernels beyond the contract: the step, equal bits, magnitudes, and how the library is loaded."""

import os
import platform
import shutil
import subprocess
import sys

import pytest
import torch
from oracle import assert_near, to_oracle

from grucore import GRU, GRUCell, direct, dispatch, gru_cell
from grucore.kernels.native import library

# Skipped only if the kernels cannot be built here or are turned off; otherwise a missing library is a failure.
IS_KNOWN = platform.machine() in ("x86_64", "aarch64")
EXPECTED = shutil.which("c++") and IS_KNOWN and os.environ.get("GRUCORE_NATIVE") != "0"
pytestmark = pytest.mark.skipif(not EXPECTED, reason="no native kernels here: no C++ compiler, or turned off")


def test_the_library_is_built_and_loaded():
    assert library.UNAVAILABLE is None and library.INSTRUCTION_SET in ("avx2", "avx512", "neon")


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 77, 20), (7, 5, 33), (4, 8, 1)], ids=str)
def test_a_step_equals_nn_gru_cell(shape):
    B, I, H = shape  # noqa: E741
    cell = GRUCell(I, H, backend="native")
    x, hx = torch.randn(B, I), torch.randn(B, H)
    with torch.no_grad():
        assert_near("output", cell(x, hx), cell.to_torch().double()(x.double(), hx.double()))


@torch.no_grad()
def each_number_of_threads():
    before = torch.get_num_threads()
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            yield n
    finally:
        torch.set_num_threads(before)


def test_a_row_is_the_same_in_any_batch_and_with_any_number_of_threads():
    """Bit for bit, for any values in other rows: a NaN stays in its row."""
    layer = GRU(40, 100, bidirectional=True, backend="native")
    x = torch.randn(20, 33, 40)
    y, h_n = layer(x)
    for b in (0, 7, 32):
        y_b, h_b = layer(x[:, b : b + 1])
        assert torch.equal(y_b, y[:, b : b + 1]) and torch.equal(h_b, h_n[:, b : b + 1])
    for n in each_number_of_threads():
        assert torch.equal(layer(x)[0], y), n
    x[:, 5] = float("nan")
    poisoned = layer(x)[0]
    assert poisoned[:, 5].isnan().all()
    assert torch.equal(poisoned[:, :5], y[:, :5]) and torch.equal(poisoned[:, 6:], y[:, 6:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@torch.no_grad()
def test_a_step_is_the_same_in_any_batch_and_with_any_number_of_threads(dtype):
    """With some 5 million multiply-adds a row, so that each of the threads is used, and units that divide unevenly."""
    layer = GRU(700, 531, dtype=dtype, backend="native")
    x, h = torch.randn(9, 700, dtype=dtype), torch.randn(1, 9, 531, dtype=dtype)
    y, _ = layer.step(x, h)
    for n in each_number_of_threads():
        assert torch.equal(layer.step(x, h)[0], y), n
        assert torch.equal(layer.step(x[4:5], h[:, 4:5])[0], y[4:5]), n


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("layer_norm", [False, True], ids=["plain", "layer norm"])
@torch.no_grad()
def test_a_step_of_any_number_of_rows(dtype, layer_norm):
    """Rows are computed several at a time, in blocks, on units that divide unevenly."""
    layer = GRU(21, 37, dtype=dtype, layer_norm=layer_norm, backend="native")
    x, h = torch.randn(53, 21, dtype=dtype), torch.randn(1, 53, 37, dtype=dtype)
    y, _ = layer.step(x, h)
    if not layer_norm:
        assert_near("output", y, to_oracle(layer)(x[None].double(), h.double())[0][0])
    for n in range(1, 53):
        assert torch.equal(layer.step(x[:n], h[:, :n])[0], y[:n]), n


@pytest.mark.parametrize("scale", [1e-8, 1e-4, 1, 1e2])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@torch.no_grad()
def test_inputs_of_every_magnitude(scale, bias):
    layer = GRU(8, 20, bias=bias, backend="native")
    x, hx = torch.randn(5, 7, 8) * scale, torch.randn(1, 7, 20) * min(scale, 1)
    for got, want in zip(layer(x, hx), to_oracle(layer)(x.double(), hx.double()), strict=True):
        assert_near("output", got, want)
    assert_near("output", layer.step(x[0], hx)[0], to_oracle(layer)(x[:1].double(), hx.double())[0][0])


@pytest.mark.parametrize("where", ["x", "hx"])
@pytest.mark.parametrize("reset_after", [True, False], ids=["after", "before"])
@pytest.mark.parametrize("H", [5, 16, 20, 24])
def test_an_infinity_that_saturates_gates_makes_no_nan(H, reset_after, where):
    """The last lanes of a vector that H does not fill have weights of 0, and inf * 0 is a NaN."""
    layer = GRU(3, H, reset_after=reset_after, backend="native")
    reference = GRU(3, H, reset_after=reset_after, backend="reference")
    reference.load_state_dict(layer.state_dict())
    x, hx = torch.randn(4, 2, 3), torch.randn(1, 2, H)
    (x[2] if where == "x" else hx[0])[0, 1] = float("inf")
    found = []
    for each in (layer, reference):
        given = x.clone().requires_grad_(), hx.clone().requires_grad_()
        y, _ = each(*given)
        grads = torch.autograd.grad(y.nan_to_num(0, 0, 0).sum(), [*given, *each.parameters()])
        found.append([each.isnan() for each in (y, *grads)])
    assert all((got <= want).all() for got, want in zip(*found, strict=True))
    assert where == "hx" or not found[0][0].any()


@torch.no_grad()
def test_strides_and_views():
    layer = GRU(6, 5, backend="native")
    x = torch.randn(4, 6, 10).transpose(1, 2)  # (4, 10, 6), features 10 apart
    assert torch.equal(layer(x)[0], layer(x.contiguous())[0])
    wide = torch.randn(4, 10, 12)[..., ::2]
    assert torch.equal(layer(wide)[0], layer(wide.contiguous())[0])


@torch.no_grad()
def test_memory_that_pytorch_reads_in_its_own_way():
    """A negated view, other dtypes under autocast, a wrong batch: the kernels must not read their raw memory."""
    layer, cell = GRU(3, 4), GRUCell(3, 4)
    negated = torch.randn(5, 2, 3, dtype=torch.complex64).conj().imag
    assert negated.is_neg() and torch.equal(layer(negated)[0], layer(negated.clone())[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = cell(X[0])
    assert not torch.equal(rounded, cell(X[0])), "torch.autocast rounds the operands"
    for call in (
        lambda: gru_cell(X[0], torch.zeros(1, 4), *layer.all_weights[0]),
        lambda: gru_cell(X[0].double(), torch.zeros(2, 4).double(), *layer.all_weights[0]),
    ):
        with pytest.raises(RuntimeError):
            call()


X = torch.randn(5, 2, 3)
REFUSED = {
    "complex": (lambda: GRU(3, 4, dtype=torch.cfloat, backend="native")(X.cfloat()), "the dtype is torch.complex64"),
    "meta": (lambda: GRU(3, 4, device="meta", backend="native")(X.to("meta")), "the tensors are on meta"),
}


@pytest.mark.parametrize("call, message", REFUSED.values(), ids=REFUSED)
def test_what_it_does_not_serve_is_named(call, message):
    with pytest.raises(RuntimeError, match=f"backend='native' cannot run: .*{message}"):
        call()


@torch.no_grad()
def test_auto_takes_it_where_it_serves(monkeypatch):
    layer = GRU(3, 4)
    assert layer.explain_backend(X) == ("native", "the implementation for cpu tensors")
    want = layer(X)[0]
    monkeypatch.setattr(dispatch, "NO_NATIVE", "the native kernels are not built")
    monkeypatch.setattr(direct, "LIBRARY", None)
    assert layer.explain_backend(X) == ("eager", "the native kernels are not built")
    assert_near("output", layer(X)[0], want.double())


def test_a_missing_or_foreign_library_is_named(monkeypatch, tmp_path):
    for content, message in ((None, "not built"), (b"no library", "cannot be loaded")):
        path = tmp_path / "libgrucore.so"
        if content is not None:
            path.write_bytes(content)
        monkeypatch.setattr(library, "PATH", path)
        assert library._loaded()[0] is None and message in library._loaded()[1]
    monkeypatch.undo()
    monkeypatch.setenv("GRUCORE_NATIVE", "0")
    assert "turns the native kernels off" in library._loaded()[1]


AFTER_A_FORK = """
import os, torch
from grucore import GRU
torch.set_num_threads(2)
layer, x = GRU(64, 128, backend="native"), torch.randn(50, 64, 64)
with torch.no_grad():
    want = layer(x)[0]
    child = os.fork()
    if child == 0:
        os._exit(0 if (layer(x)[0].numpy() == want.numpy()).all() else 1)  # PyTorch's own threads would hang here
print(os.waitpid(child, 0)[1])
"""


def test_a_child_computes_after_a_fork():
    result = subprocess.run([sys.executable, "-c", AFTER_A_FORK], capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() == "0", result.stderr


@pytest.mark.skipif(library.INSTRUCTION_SET == "neon", reason="the processor has one instruction set")
def test_the_narrower_instruction_set_can_be_forced():
    code = "from grucore.kernels.native import library; print(library.INSTRUCTION_SET)"
    environment = {**os.environ, "GRUCORE_NATIVE_SET": "avx2"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.stdout.strip() == "avx2", result.stderr
