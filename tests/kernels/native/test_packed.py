"""Weights that stay packed between calls on request: never outdated after a write that PyTorch counts."""

import copy
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from oracle import assert_near

from grucore import GRU, GRUCell
from grucore.kernels.native import call
from grucore.kernels.native.library import LIBRARY, UNAVAILABLE
from grucore.kernels.native.packed import HELD, packed

pytestmark = pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))
ROOT = Path(__file__).resolve().parents[3]
X, H = torch.randn(5, 9, 7), torch.zeros(1, 9, 20)


@pytest.fixture(autouse=True)
def _nothing_held():
    """Other tests of the process, such as those of the benchmarks, may hold weights to its end."""
    others = dict(HELD)
    HELD.clear()
    yield
    HELD.update(others)


def near(got, layer, x=X):
    """Compares with a float64 copy of torch.nn's layer, which does not use packed weights."""
    assert_near("output", got, layer.to_torch().double()(x.double())[0])


@torch.no_grad()
def test_values_are_those_of_the_weights_as_they_are():
    layer = GRU(7, 20, bidirectional=True, num_layers=2)
    with layer.packed_weights():
        assert len(HELD) == 4
        near(layer(X)[0], layer)
        near(layer(X)[0], layer)  # packed by the call before
        near(layer(X, lengths=torch.full((9,), 5))[0], layer)
    assert not HELD


WRITES = {
    "in place": lambda layer: layer.weight_hh_l0.mul_(-1),
    "a bias": lambda layer: layer.bias_ih_l0.add_(1),
    "load_state_dict": lambda layer: layer.load_state_dict(GRU(7, 20).state_dict()),
    "an optimizer": lambda layer: optimized(layer),
    "a fused optimizer": lambda layer: optimized(layer, fused=True),  # does not raise the versions
    "other memory": lambda layer: setattr(layer.weight_ih_l0, "data", torch.randn(60, 7)),
    "another parameter": lambda layer: setattr(layer, "weight_ih_l0", torch.nn.Parameter(torch.randn(60, 7))),
    "another dtype and back": lambda layer: layer.half().float(),
    "reset_parameters": lambda layer: layer.reset_parameters(),
}


def optimized(layer, **options):
    with torch.enable_grad():
        layer(X)[0].sum().backward()
    torch.optim.Adam(layer.parameters(), lr=0.1, **options).step()


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@torch.no_grad()
def test_a_write_is_seen_at_the_next_call(write):
    layer = GRU(7, 20)
    with layer.packed_weights():
        before = layer(X)[0]
        write(layer)
        after = layer(X)[0]
        assert not torch.equal(before, after)
        near(after, layer)
        near(layer.step(X[0], H)[0][None], layer, X[:1])


@torch.no_grad()
def test_weights_in_shared_memory_are_not_kept():
    """Another process may write them, which raises no version here; nor does this write."""
    layer = GRU(7, 20).share_memory()
    with layer.packed_weights():
        layer(X)
        layer.weight_hh_l0.data.mul_(-1)
        near(layer(X)[0], layer)


@pytest.mark.parametrize("B", [1, 9, 40])
@torch.no_grad()
def test_steps_and_cells(B):
    cell = GRUCell(7, 200)  # with few rows, a step reads the weights as they are
    x, hx = torch.randn(B, 7), torch.randn(B, 200)
    want = cell.to_torch().double()(x.double(), hx.double())
    with cell.packed_weights():
        assert_near("output", cell(x, hx), want)
        cell.weight_hh.mul_(2)
        assert_near("output", cell(x, hx), cell.to_torch().double()(x.double(), hx.double()))


@pytest.mark.parametrize("fused", [False, True])
def test_training_inside_of_it(fused):
    """Gradients come from the current weights; each optimizer step is a write."""
    layer, other = (lambda layer: (layer, copy.deepcopy(layer)))(GRU(7, 20))
    with layer.packed_weights():
        for each in (layer, other):
            optimizer = torch.optim.SGD(each.parameters(), lr=0.5, fused=fused)
            for _ in range(3):
                optimizer.zero_grad()
                each(X)[0].square().sum().backward()
                optimizer.step()
    for (name, a), b in zip(layer.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_thread_never_reads_what_another_has_not_packed_yet(monkeypatch):
    """Both threads find nothing packed; the second packs only after the first has its result."""
    layer, packing, done = GRU(7, 20), threading.Semaphore(0), threading.Event()

    class Library:
        def __getattr__(self, name):
            return getattr(call.LIBRARY, name)

        def gru_pack(self, *arguments):
            packing.release()
            if threading.current_thread() is threading.main_thread():
                assert packing.acquire(timeout=60) and packing.acquire(timeout=60)  # both are here
            else:
                assert done.wait(60)
            return LIBRARY.gru_pack(*arguments)

    monkeypatch.setattr(
        call, "packed", lambda group, given, _, reset_after: packed(group, given, Library(), reset_after)
    )
    with layer.packed_weights(), ThreadPoolExecutor(1) as pool:
        later = pool.submit(layer, X)
        near(layer(X)[0].detach(), layer)
        done.set()
        near(later.result()[0].detach(), layer)


@torch.no_grad()
def test_nested_and_shared():
    """Two contexts with the same weights: they stay packed until both are closed."""
    layer = GRU(7, 20)
    with layer.packed_weights():
        with layer.packed_weights(), pytest.raises(KeyboardInterrupt):
            near(layer(X)[0], layer)
            raise KeyboardInterrupt
        assert len(HELD) == 1
        near(layer(X)[0], layer)
    assert not HELD


@torch.no_grad()
def test_a_view_at_the_same_address_is_another_weight():
    layer, narrow = GRU(7, 20), GRU(7, 10)
    narrow.weight_ih_l0 = torch.nn.Parameter(layer.weight_ih_l0.data[:30])
    with layer.packed_weights():
        near(layer(X)[0], layer)
        near(narrow(X)[0], narrow)


def test_parameters_without_a_version_are_not_held():
    with torch.inference_mode():
        layer = GRU(7, 20)
        with layer.packed_weights():
            assert not HELD
            layer(X)


@torch.no_grad()
def test_a_context_that_nobody_keeps_lasts():
    layer = GRU(7, 20)
    layer.packed_weights().__enter__()
    assert len(HELD) == 1
    near(layer(X)[0], layer)
    HELD.clear()


@torch.no_grad()
def test_a_context_can_be_entered_again():
    layer = GRU(7, 20)
    context = layer.packed_weights()
    with context:
        with context:
            assert len(HELD) == 1
        near(layer(X)[0], layer)
        layer.weight_ih_l0.data = layer.weight_ih_l0.data.clone()
        with context:
            assert len(HELD) == 2
            near(layer(X)[0], layer)
        assert len(HELD) == 1
    assert not HELD


LEFT_OPEN = """
import torch
from grucore import GRU
layer = GRU(7, 20)
context = layer.packed_weights()
context.__enter__()
layer(torch.randn(5, 9, 7))
"""


@pytest.mark.slow
def test_one_left_open_says_nothing_when_the_program_ends():
    result = subprocess.run([sys.executable, "-c", LEFT_OPEN], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_weights_are_packed_once(bias):
    layer = GRU(7, 20, bias=bias)
    with layer.packed_weights():
        layer(X)
        (held,) = HELD.values()
        buffer = held.made[1]
        layer(X)
        assert buffer is not None and held.made[1] is buffer
