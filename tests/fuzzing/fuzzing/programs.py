"""Random programs that use a GRU: statements that mean the same to torch.nn.GRU and to ours. Half of them are wrong.

A statement may set `out`, which is compared. It may use the names of `namespace`.
"""

from __future__ import annotations

import contextlib
import functools
import random
from typing import Any

import grucore

from . import theirs
from .layer import Layer
from .right import VALID
from .wrong import INVALID

PREAMBLE = '''\
import copy, io, pickle
import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, PackedSequence
from torch.utils.checkpoint import checkpoint

def r(seed, *shape, dtype=torch.float32, **options):
    """Random numbers, the same in every run."""
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return numbers.to(dtype).requires_grad_(options.get("grad", False))

def state(gru):
    """All that is kept of a layer."""
    return [(name, p, p.grad, p.requires_grad) for name, p in gru.named_parameters()], gru.training
'''


def namespace(ours: bool, backend: str) -> dict[str, Any]:
    """The names of a program: GRU is that of `theirs.py` or ours, and Other the other one."""
    names: dict[str, Any] = {}
    exec(PREAMBLE, names)

    layer = grucore.GRU if backend == "auto" else functools.partial(grucore.GRU, backend=backend)
    names["GRU"], names["Other"] = (layer, theirs.GRU) if ours else (theirs.GRU, layer)
    names["packed"] = grucore.GRU.packed_weights if ours else lambda gru: contextlib.nullcontext()
    return names


def program(numbers: random.Random) -> list[str]:
    """The statements of one program."""
    dtype = numbers.choice(["torch.float32"] * 3 + ["torch.float64"] * 2 + ["torch.bfloat16"])
    sizes = numbers.choice([1, 2, 3, 5]), numbers.choice([1, 3, 4, 8, 17])
    heads = numbers.choice([1, 1, 1, *(n for n in (2, 3, 4) if sizes[1] % n == 0)])
    layer = Layer(*sizes, numbers.choice([1, 1, 2, 3]), *(numbers.random() < p for p in (0.4, 0.8, 0.4)), dtype, heads)
    lines = [f"torch.manual_seed({numbers.randrange(99)}); gru = GRU({layer.arguments}); out = state(gru), repr(gru)"]
    lines += [numbers.choice(numbers.choice([VALID, INVALID]))(numbers, layer) for _ in range(numbers.randint(2, 9))]
    return [*lines, "out = state(gru), repr(gru)"]
