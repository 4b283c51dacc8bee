"""Fused kernels under load, delays and other processes; `benchmarks/tuning/on_device.sh OUT checks` runs it.

    python stress.py layers       every regime once, small: for compute-sanitizer
    python stress.py exchange     launches whose programs wait for one another, with delays and work on other streams
    python stress.py processes    that in two processes at once
    python stress.py graph        a CUDA graph of a training step, replayed on other inputs

Results must equal the first launch bit for bit; the first launch is checked against torch.nn.GRU in float64.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from grucore import GRU

# (T, B, I, H), dtype: one program, a group, a group of several tiles, streamed weights.
REGIMES = [
    ((5, 18, 3, 64), torch.bfloat16),
    ((5, 18, 3, 96), torch.float32),
    ((5, 17, 3, 256), torch.float16),
    ((5, 70, 3, 512), torch.bfloat16),
    ((4, 33, 3, 1088), torch.bfloat16),
    ((4, 33, 3, 544), torch.float32),
]
LIMITS = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 1e-5}


def results(gru: GRU, x: Tensor, lengths: Tensor | None) -> list[Tensor]:
    """y, h_n and all gradients."""
    x = x.detach().requires_grad_()
    y, h_n = gru(x, lengths=lengths)
    return [y.detach(), h_n.detach(), *torch.autograd.grad(y.sum() + h_n.sum(), [x, *gru.parameters()])]


def drawn(sizes: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple[GRU, Tensor]:
    """A layer and its input."""
    T, B, I, H = sizes  # noqa: E741
    torch.manual_seed(0)
    gru = GRU(I, H, device=device, dtype=dtype, precision="ieee", backend="triton")
    return gru, torch.randn(T, B, I, dtype=dtype).to(device)


def check_against_nn_gru(gru: GRU, x: Tensor, got: list[Tensor]) -> None:
    """Without lengths."""
    oracle, x_ = gru.to_torch().double().cpu(), x.detach().double().cpu().requires_grad_()
    y, h_n = oracle(x_)
    want = [y, h_n, *torch.autograd.grad(y.sum() + h_n.sum(), [x_, *oracle.parameters()])]
    for a, b in zip(got, want, strict=True):
        error = float((a.double().cpu() - b).norm() / b.norm())
        assert error <= LIMITS[x.dtype], f"{tuple(x.shape)}, {x.dtype}: error {error:.1e}"


def layers(device: str, launches: int) -> None:
    """Runs every regime, with lengths and without."""
    for sizes, dtype in REGIMES[:launches]:
        gru, x = drawn(sizes, dtype, device)
        check_against_nn_gru(gru, x, results(gru, x, None))
        results(gru, x, torch.randint(0, len(x) + 1, x.shape[1:2], device=device))
        print(*sizes, dtype, flush=True)


def neighbours(device: str) -> Iterator[None]:
    """Work on other streams, and a delay on this one, of random lengths."""
    streams = [torch.cuda.Stream() for _ in range(2)] if device == "cuda" else []
    products = [torch.randn(n, n, device=device) for n in (64, 512, 2048)]
    while True:
        for stream in streams:
            with torch.cuda.stream(stream):
                product = random.choice(products)
                product @ product
        if streams:
            torch.cuda._sleep(random.randrange(200_000))
        yield


def exchange(device: str, launches: int) -> None:
    """Repeats two layers of groups, one by each protocol, and compares bits."""
    random.seed(0)
    beside = neighbours(device)
    for sizes, dtype in [REGIMES[3], REGIMES[2]]:
        gru, x = drawn(sizes, dtype, device)
        want = results(gru, x, None)
        check_against_nn_gru(gru, x, want)
        wrong = torch.zeros((), dtype=torch.long, device=device)
        for _ in range(max(1, launches // 4)):  # forward and backward, of two layers
            next(beside)
            for a, b in zip(results(gru, x, None), want, strict=True):
                wrong += (a != b).any()
        assert not int(wrong), f"{sizes}, {dtype}: {int(wrong)} results differ from the first"
        print(*sizes, dtype, launches // 2, "launches", flush=True)


def processes(device: str, launches: int) -> None:
    """Runs `exchange` in two processes at once."""
    command = [sys.executable, __file__, "exchange", "--device", device, "--launches", str(launches)]
    both = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]


def graph(device: str, launches: int) -> None:
    """Replays a captured training step."""
    for sizes, dtype in REGIMES:
        gru, x = drawn(sizes, dtype, device)
        x.requires_grad_()
        static = [x, *gru.parameters()]

        def step(gru: GRU = gru, x: Tensor = x, static: list = static) -> list[Tensor]:
            y, h_n = gru(x)
            return [y, h_n, *torch.autograd.grad(y.sum() + h_n.sum(), static)]

        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            step()
        torch.cuda.synchronize()
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            held = step()
        for _ in range(min(launches, 20)):
            with torch.no_grad():
                x.normal_()
            captured.replay()
            assert all(torch.equal(a, b) for a, b in zip(held, step(), strict=True)), (sizes, dtype)
        print(*sizes, dtype, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["layers", "exchange", "processes", "graph"])
    parser.add_argument("--launches", type=int, default=10_000)
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args()
    {"layers": layers, "exchange": exchange, "processes": processes, "graph": graph}[given.what](
        given.device, given.launches
    )
