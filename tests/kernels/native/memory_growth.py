"""MiB that a process gains in 1,000 native calls whose shapes change: `python memory_growth.py KIND`.

KIND is "inference", "training" or "step". One in three has lengths.
"""

import random
import sys
from pathlib import Path

import torch

from grucore import GRU

WARM_UP, CALLS = 200, 1_200


def resident() -> float:
    """MiB in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def main(kind: str) -> None:
    """Calls and prints."""
    torch.manual_seed(0)
    layer, generator, begin = GRU(12, 40, backend="native"), random.Random(0), 0.0
    for i in range(CALLS):
        T, B = generator.randint(1, 40), generator.randint(1, 40)
        x = torch.randn(T, B, 12)
        with torch.set_grad_enabled(kind == "training"):
            if kind == "step":
                layer.step(x[0])
            else:
                y, _ = layer(x, lengths=torch.randint(T + 1, (B,)) if i % 3 == 0 else None)
        if kind == "training":
            y.sum().backward()
        if i == WARM_UP:
            begin = resident()
    print(resident() - begin)


if __name__ == "__main__":
    main(sys.argv[1])
