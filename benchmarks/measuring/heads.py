"""What heads save: layers of several heads beside the one without and torch.nn.GRU, in turns, on this machine's CPU.

    python -m benchmarks.measuring.heads [--threads N] [--sizes T B I H] [--out FOLDER]

Writes FOLDER/heads.csv: a line for each number of heads, in inference and in training (forward, backward and the
gradient of x), with its time and the arithmetic of its products as shares of those of our layer without heads.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from benchmarks.measuring.environment import environment, on_cpu
from benchmarks.measuring.timing import sampled
from benchmarks.results import new_file
from grucore import GRU

HEADS = (1, 2, 4, 8, 16, 32)
COLUMNS = ("layer", "mode", "T", "B", "I", "H", "heads", "ms_p50", "ms_cpu_p50", "ms_cpu_least", "share_of_time")
COLUMNS += ("share_of_arithmetic", "device", "torch", "commit", "threads", "instruction_set", "date")


def runs(sizes: list[int], mode: str) -> dict[tuple[str, int], Callable[[], object]]:
    """A call of torch.nn.GRU, and of a layer of each number of heads that divides H."""
    T, B, I, H = sizes  # noqa: E741
    x = torch.randn(T, B, I, requires_grad=mode == "training")

    def run_of(layer: nn.Module) -> Callable[[], object]:
        if mode == "training":
            return lambda: layer(x)[0].sum().backward()
        return torch.no_grad()(lambda: layer(x))

    ours = {("grucore", heads): run_of(GRU(I, H, heads=heads)) for heads in HEADS if H % heads == 0}
    return {("torch", 1): run_of(nn.GRU(I, H)), **ours}


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
            least = {name: min(sample.ms_cpu or 0.0 for sample in samples) for name, samples in found.items()}
            for (layer, heads), samples in found.items():
                row = {"layer": layer, "mode": mode, "T": T, "B": B, "I": I, "H": H, "heads": heads}
                row |= {"ms_p50": statistics.median(sample.ms for sample in samples)}
                row |= {"ms_cpu_p50": statistics.median(sample.ms_cpu or 0.0 for sample in samples)}
                own, one = least[layer, heads], least["grucore", 1]
                row |= {"ms_cpu_least": own, "share_of_time": own / one}
                row |= {"share_of_arithmetic": (I + H / heads) / (I + H)}
                row |= {name: value for name, value in environment("cpu").items() if name in COLUMNS} | on_cpu("cpu")
                write(row)
                shares = f"{row['share_of_time']:.2f} of the time, {row['share_of_arithmetic']:.2f} of the arithmetic"
                print(f"{mode:9} {layer:7} heads={heads:<3} {shares} of grucore without heads")


if __name__ == "__main__":
    main()
