"""What heads save: the layer of several heads beside the one of one, in turns, on this machine's CPU.

    python -m benchmarks.measuring.heads [--threads N] [--sizes T B I H] [--out FOLDER]

Writes FOLDER/heads.csv: a line for each number of heads, in inference and in training (forward, backward and the
gradient of x), with the arithmetic of its products as a share of that without heads.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.measuring.environment import environment, on_cpu
from benchmarks.measuring.timing import sampled
from benchmarks.results import new_file
from grucore import GRU

HEADS = (1, 2, 4, 8, 16, 32)
COLUMNS = ("mode", "T", "B", "I", "H", "heads", "ms_p50", "ms_cpu_p50", "ms_cpu_least", "share_of_time")
COLUMNS += ("share_of_arithmetic", "device", "torch", "commit", "threads", "instruction_set", "date")


def runs(sizes: list[int], mode: str) -> dict[int, Callable[[], object]]:
    """A call of a layer of each number of heads that divides H."""
    T, B, I, H = sizes  # noqa: E741
    x = torch.randn(T, B, I, requires_grad=mode == "training")

    def run_of(layer: GRU) -> Callable[[], object]:
        if mode == "training":
            return lambda: layer(x)[0].sum().backward()
        return torch.no_grad()(lambda: layer(x))

    return {heads: run_of(GRU(I, H, heads=heads)) for heads in HEADS if H % heads == 0}


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sizes", type=int, nargs=4, default=[250, 16, 256, 512], metavar=("T", "B", "I", "H"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=60.0, help="of a mode, after which no round begins")
    parser.add_argument("--out", type=Path, default=Path("runs/heads"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    T, B, I, H = given.sizes  # noqa: E741
    with new_file(given.out / "heads.csv", COLUMNS) as write:
        for mode in ("inference", "training"):
            found = sampled(runs(given.sizes, mode), given.rounds, seconds=given.seconds)
            least = {heads: min(sample.ms_cpu or 0.0 for sample in samples) for heads, samples in found.items()}
            for heads, samples in found.items():
                row = {"mode": mode, "T": T, "B": B, "I": I, "H": H, "heads": heads}
                row |= {"ms_p50": statistics.median(sample.ms for sample in samples)}
                row |= {"ms_cpu_p50": statistics.median(sample.ms_cpu or 0.0 for sample in samples)}
                row |= {"ms_cpu_least": least[heads], "share_of_time": least[heads] / least[1]}
                row |= {"share_of_arithmetic": (I + H / heads) / (I + H)}
                row |= {name: value for name, value in environment("cpu").items() if name in COLUMNS} | on_cpu("cpu")
                write(row)
                print(f"{mode:9} {heads:3} heads {row['share_of_time']:6.2f} of the time of one, ", end="")
                print(f"{row['share_of_arithmetic']:.2f} of the arithmetic")


if __name__ == "__main__":
    main()
