"""Measures one number in a fresh process.

    python -m benchmarks.measuring.fresh MODE PROVIDER DEVICE CASE...

MODE "first": milliseconds to the first gradient (or, for a provider that does not train, the first output), counted
after PyTorch and grucore are imported and the data is made. It includes imports, compilation and warm-up.
MODE "memory": the peak MiB of a forward and backward pass beyond those in use before, after a small one. On a CPU it is
the process's memory, read from Linux.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.providers import PROVIDERS
from benchmarks.providers.base import Provider, Unavailable

PROCESS = Path("/proc/self")


def run(provider: Provider, x: Tensor) -> None:
    """Runs forward and, if the provider trains, backward."""
    y, _ = provider.forward(x, None)
    if provider.trains:
        y.sum().backward()


def held_mib(device: str, most: bool) -> float:
    """Returns the MiB in use now, or the peak since `forget`."""
    if device == "cuda":
        return (torch.cuda.max_memory_allocated() if most else torch.cuda.memory_allocated()) / 2**20
    status = (PROCESS / "status").read_text()
    return int(status.split("VmHWM:" if most else "VmRSS:")[1].split()[0]) / 1024


def forget(device: str) -> None:
    """Resets the peak."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        (PROCESS / "clear_refs").write_text("5")


def main() -> None:
    """Measures one provider in this fresh process."""
    mode, name, device, *values = sys.argv[1:]
    sizes = [int(value) for value in values[:5]]
    layer = nn.GRU(*sizes[2:], bidirectional=values[5] == "True", device=device, dtype=getattr(torch, values[7]))
    x = torch.randn(*sizes[:3], device=device, dtype=layer.weight_ih_l0.dtype, requires_grad=True)
    begin = time.perf_counter()
    try:
        provider = PROVIDERS[name](layer)
        if mode == "first":
            run(provider, x)
            if device == "cuda":
                torch.cuda.synchronize()
            print(f"{(time.perf_counter() - begin) * 1e3:.4g}")
            return
        run(provider, x[:2])
        if device == "cpu" and not PROCESS.exists():
            raise Unavailable("memory is read from Linux")
        forget(device)
        before = held_mib(device, most=False)
        run(provider, x)
        print(f"{held_mib(device, most=True) - before:.1f}")
    except Unavailable as reason:
        sys.exit(str(reason))


if __name__ == "__main__":
    main()
