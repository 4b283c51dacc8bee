"""MiB that a process gains between two numbers of training steps whose shapes change: `python memory_growth.py KIND`.

KIND is "lengths" or "batch": what changes.
"""

import random
import sys
from pathlib import Path

import torch

from grucore import GRU

WARM_UP, TRAINED = 20, 200


def resident() -> float:
    """MiB in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def main(kind: str) -> None:
    """Trains and prints."""
    torch.manual_seed(0)
    layer, generator, begin = GRU(32, 128), random.Random(0), 0.0
    for step in range(TRAINED):
        batch = generator.randint(1, 64) if kind == "batch" else 24
        call = {"lengths": torch.randint(13, (batch,))} if kind == "lengths" else {}
        layer(torch.randn(12, batch, 32), **call)[0].sum().backward()
        if step == WARM_UP:
            begin = resident()
    print(resident() - begin)


if __name__ == "__main__":
    main(sys.argv[1])
