"""Teams of threads: their number, several callers at once, after a fork and at the end of a program."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from grucore import GRU
from grucore.kernels.native import call, library

pytestmark = pytest.mark.skipif(library.UNAVAILABLE is not None, reason=str(library.UNAVAILABLE))


def results(layer, x):
    """y and all gradients, the step's output last."""
    y, h_n = layer(x)
    gradients = torch.autograd.grad(y.sum() + h_n.sum(), list(layer.parameters()))
    return [y.detach(), *gradients, layer.step(x[0])[0].detach()]


def test_callers_at_once():
    """Eight threads, each with its own layer and sizes."""
    layers = [GRU(8 + i, 48 + 10 * i, backend="native") for i in range(8)]
    inputs = [torch.randn(12, 5 + 3 * i, 8 + i) for i in range(8)]
    want = [results(*pair) for pair in zip(layers, inputs, strict=True)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            for got, expected in zip(pool.map(results, layers, inputs), want, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


class Watched:
    """The library, and the largest number of threads of each call."""

    def __init__(self):
        self.threads = []

    def __getattr__(self, name):
        def function(calls, *directions):
            self.threads.append(int.from_bytes(calls[16:24], sys.byteorder))
            return getattr(library.LIBRARY, name)(calls, *directions)

        return function


def test_the_threads_are_those_of_pytorch(monkeypatch):
    watched, layer, before = Watched(), GRU(3, 4, bidirectional=True, backend="native"), torch.get_num_threads()
    monkeypatch.setattr(call, "LIBRARY", watched)
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            layer(torch.randn(5, 2, 3))[0].sum().backward()
    finally:
        torch.set_num_threads(before)
    assert watched.threads == [1, 1, 3, 3]


BEGIN = """
import os, sys, threading, torch
from grucore import GRU
from grucore.kernels import Form, State, Steps, Weights
from grucore.kernels.native import layer as native
layer, x = GRU(64, 128, backend="native").requires_grad_(False), torch.randn(50, 64, 64)
def run():
    values = State(torch.zeros(1, 64, 128)), Weights(*(w.unsqueeze(0) for w in layer.parameters())), Steps(), Form()
    y, h_n = native.gru_forward(x, *values)
    return y, native.gru_backward(y, h_n, y, x, *values, True).w_hh
threads_of = lambda: len(os.listdir("/proc/self/task"))
"""
PROGRAMS = {
    "no more threads than allowed": """
torch.set_num_threads(1)
before = threads_of()
run()
assert threads_of() == before
torch.set_num_threads(3)
run()
assert threads_of() <= before + 2
""",
    "a child after a fork, without PyTorch's threads": """
torch.set_num_threads(2)
want = [t.numpy() for t in run()]
child = os.fork()
if child == 0:
    os._exit(0 if all((a.numpy() == b).all() for a, b in zip(run(), want)) else 1)
assert os.waitpid(child, 0)[1] == 0
""",
    "the end of a program with a team alive": """
torch.set_num_threads(4)
run()
""",
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and forks")
@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_programs(program):
    result = subprocess.run([sys.executable, "-c", BEGIN + program], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (0, "")
