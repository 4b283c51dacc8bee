"""How a layer's recurrences are launched: a pure function of its sizes, kind of arithmetic and device.

The first row of the table `plans.json` that matches and fits is used. `benchmarks/tuning/compile_report.py` checks
every row against a budget of registers, shared memory and instructions; `benchmarks/tuning/tune.py` times candidates on
a GPU and writes the table. The rows of 16 bits for capability 90 were timed on an H200 (benchmarks/notes-h200.md), the
others on no GPU.
"""

from __future__ import annotations

import functools
import json
from contextlib import AbstractContextManager, nullcontext
from importlib.resources import files
from typing import Any, NamedTuple

import torch


class Plan(NamedTuple):
    """How a recurrence is launched."""

    block_b: int  # rows of a tile
    block_j: int  # hidden units per program if a group of programs shares a tile; 0 if one program has all units
    block_k: int  # hidden units per product, a power of two
    streamed: bool  # weights come from the L2 cache in each step, instead of staying on chip
    exchange: str  # the protocol of a group, "data" or "counter" (`exchange.py`); "" without a group
    warps: int
    stages: int  # steps (products, if streamed) whose operands are loaded ahead
    shared_bytes: int  # on the architecture that needs most, with Triton 3.7 or 3.8


class Device(NamedTuple):
    """The device properties that a plan depends on."""

    capability: int  # 90 for compute capability 9.0
    processors: int
    shared_memory: int  # bytes that a block may take, `shared_memory_per_block_optin` of the device's properties


H100 = Device(90, 132, 232_448)

# The rows of plans.json. max_hidden and max_batch are None where there is no limit.
TABLE: list[dict] = json.loads((files(__package__) / "plans.json").read_text())


def kind(dtype: torch.dtype, precision: str) -> str:
    """The kind of arithmetic: "half" for float16 and bfloat16, else the precision of float32, "tf32" or "ieee"."""
    return precision if dtype is torch.float32 else "half"


def plan(recurrence: str, batch: int, hidden_size: int, directions: int, kind: str, device: Device) -> Plan:
    """The plan of a recurrence.

    The programs of a group whose weights stay on chip must run at the same time, so each needs a multiprocessor. With
    streamed weights, a group that does not fit is launched step by step.

    Args:
        recurrence: "forward" or "backward".
        batch: B.
        hidden_size: H.
        directions: D.
        kind: see `kind`.
        device: see `Device`.

    Raises:
        ValueError: the device is older than any row, or has too little shared memory.
    """
    find = _found if torch.compiler.is_compiling() else found
    return find(recurrence, batch, hidden_size, directions, kind, device)


def _found(recurrence: str, batch: int, hidden_size: int, directions: int, kind: str, device: Device) -> Plan:
    for row in TABLE:
        if (row["recurrence"], row["kind"]) != (recurrence, kind) or row["capability"] > device.capability:
            continue
        within = all(
            most is None or n <= most for n, most in ((hidden_size, row["max_hidden"]), (batch, row["max_batch"]))
        )
        if not within or row["shared_bytes"] > device.shared_memory:
            continue
        if (
            row["block_j"]
            and not row["streamed"]
            and directions * -(-hidden_size // row["block_j"]) > device.processors
        ):
            continue
        return Plan(*(row[name] for name in Plan._fields))
    raise ValueError(
        f"no plan for {hidden_size} hidden units in {kind} arithmetic on a device of compute capability "
        f"{device.capability / 10} with {device.shared_memory} bytes of shared memory per block"
    )


found = functools.cache(_found)  # torch.compile ignores a cache, with a warning


def current(of: torch.device) -> AbstractContextManager[Any]:
    """A context in which launches run on that device."""
    return torch.cuda.device(of) if of.type == "cuda" else nullcontext()


def device(of: torch.device) -> Device:
    """The properties of a device; without a GPU (in Triton's interpreter), those of an H100."""
    if of.type != "cuda" or not torch.cuda.is_available():
        return H100
    properties = torch.cuda.get_device_properties(of)
    shared = getattr(properties, "shared_memory_per_block_optin", properties.shared_memory_per_block)
    return Device(10 * properties.major + properties.minor, properties.multi_processor_count, shared)
