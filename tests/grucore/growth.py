"""The growth of a process in calls with changing shapes: `python growth.py BACKEND CALLS`.

Trains, infers and makes single steps. One call in three has lengths, one in three a mask and resets. Prints MiB of
memory, threads, open files and child processes, those after the last call less those after a fifth of them.
"""

import json
import os
import random
import sys
from pathlib import Path

import torch

from grucore import GRU, GRUCell

SELF = Path("/proc/self")


def held() -> dict[str, float]:
    """The resources of the process now."""
    pages = int((SELF / "statm").read_text().split()[1])
    children = [each.read_text() for each in SELF.glob("task/*/children")]
    return {
        "MiB": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        "threads": len(list((SELF / "task").iterdir())),
        "files": len(list((SELF / "fd").iterdir())),
        "processes": len(" ".join(children).split()),
    }


def call(layer: GRU, cell: GRUCell, kind: str, i: int, numbers: random.Random) -> None:
    """One call, of a possibly new shape."""
    T, B = numbers.randint(1, 12), numbers.randint(1, 64)
    x = torch.randn(T, B, layer.input_size)
    if kind == "step":
        layer.step(x[0])
        cell(x[0])
        return
    flags = {
        1: {"lengths": torch.randint(T + 1, (B,))},
        2: {"mask": torch.rand(T, B) < 0.7, "reset": torch.rand(T, B) < 0.1},
    }
    y, h_n = layer(x, **flags.get(i % 3, {}))
    if kind == "training":
        (y.sum() + h_n.sum()).backward()


def gained(backend: str, kind: str, calls: int) -> dict[str, float]:
    """The growth during calls of a kind."""
    layer, cell = GRU(32, 128, backend=backend), GRUCell(32, 128, backend=backend)
    numbers, begin = random.Random(0), held()
    with torch.set_grad_enabled(kind == "training"):
        for i in range(calls):
            if i == calls // 5:
                begin = held()
            call(layer, cell, kind, i, numbers)
    end = held()
    return {name: end[name] - begin[name] for name in end}


if __name__ == "__main__":
    torch.manual_seed(0)
    print(json.dumps({kind: gained(sys.argv[1], kind, int(sys.argv[2])) for kind in ("training", "inference", "step")}))
