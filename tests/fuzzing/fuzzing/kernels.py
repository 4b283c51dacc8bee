"""Random cases of the contract, against torch.nn.GRU in float64: sizes around vectors, flags, strides, threads."""

from __future__ import annotations

import random

import torch
from contract import IMPLEMENTATIONS, Case, check

SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 100)
FLAGS = (
    "",
    "",
    "lengths",
    "gaps",
    "left",
    "padding",
    "resets",
    "gaps resets",
    "lengths resets state",
    "gaps resets state",
)


def drawn(numbers: random.Random) -> tuple[str, Case, torch.dtype]:
    """An implementation, a case that it serves, and a dtype; none so small that single numbers cancel."""
    name = numbers.choice(["native", "native", "eager"] if "native" in IMPLEMENTATIONS else ["eager"])
    dtype = numbers.choice([torch.float64, torch.float32])
    case = Case(
        T=numbers.choice([0, 1, 2, 3, 5, 8, 20]),
        B=numbers.choice([0, *SIZES[:14]]),
        I=numbers.choice(SIZES),
        H=numbers.choice(SIZES),
        two_way=numbers.random() < 0.3,
        bias=numbers.random() < 0.7,
        flags=numbers.choice(FLAGS),
        loss=numbers.choice(["y h_n", "y", "h_n", "first y"]),
        layout=numbers.choice(["contiguous", "strided", "expanded"]),
        need_dx=numbers.random() < 0.8,
        reset_after=numbers.random() < 0.7,
        heads=numbers.choice([1, 1, 1, 2, 3, 8]),
    )
    if min(case.I, case.H, case.B) < 7:
        dtype = torch.float64
    if case.layout == "expanded" and "first" in case.loss:
        case = case._replace(loss="y")
    if case.B == 0 or case.T == 0:
        case = case._replace(flags="")
    return name, case, dtype


def one(seed: int) -> list[str]:
    """What goes wrong with a seed."""
    torch.manual_seed(seed)
    numbers = random.Random(seed)
    name, case, dtype = drawn(numbers)
    threads = torch.get_num_threads()
    torch.set_num_threads(numbers.choice([1, 1, 2, 3]))
    try:
        check(IMPLEMENTATIONS[name], case, dtype)
    except Exception as error:
        return [f"{type(error).__name__}: {error}: {name} {dtype} {case}\n    kernels.one({seed})"]
    finally:
        torch.set_num_threads(threads)
    return []
