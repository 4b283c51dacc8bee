"""Which tile a fused layer runs with: a pure function of sizes, dtype and the device's shared memory.

The table, `plans.json`, has a row for each recurrence, kind of arithmetic and largest hidden size: rows of a tile,
warps, steps loaded ahead, and the shared memory that the kernels take, as `python -m benchmarks.compile_report` finds
by compiling them. Nothing in it was timed yet.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch


class Plan(NamedTuple):
    """How a layer's recurrences are launched."""

    block_b: int  # rows of a tile
    block_j: int  # hidden units of a program, where a group of programs shares a tile; 0 where one has them all
    block_k: int  # hidden units that a product takes at once, a power of two
    warps: int
    stages: int  # steps whose operands are on their way
    shared_bytes: int  # on the architecture that takes most


# The rows of plans.json, smallest hidden size first.
TABLE: list[dict] = sorted(
    json.loads((Path(__file__).parent / "plans.json").read_text()), key=lambda row: row["max_hidden"]
)


def kind(dtype: torch.dtype, precision: str) -> str:
    """The kind of arithmetic: "half" for float16 and bfloat16, else the precision of float32, "tf32" or "ieee"."""
    return precision if dtype is torch.float32 else "half"


def largest_hidden_size(kind: str, shared_memory: int, capability: int) -> int:
    """The largest H that has a plan with that much shared memory a block; 0 if none has."""
    return min(
        max(
            (row["max_hidden"] for row in TABLE if _fits(row, recurrence, kind, 1, shared_memory, capability)),
            default=0,
        )
        for recurrence in ("forward", "backward")
    )


def plan(recurrence: str, hidden_size: int, kind: str, shared_memory: int, capability: int) -> Plan:
    """The plan of a recurrence for H units in a kind of arithmetic on a device with that much shared memory a block.

    Args:
        recurrence: "forward" or "backward".
        hidden_size: H.
        kind: see `kind`.
        shared_memory: bytes that a block may take, `shared_memory_per_block_optin` of the device's properties.
        capability: the device's compute capability, 90 for 9.0.

    Raises:
        ValueError: none fits.
    """
    for row in TABLE:
        if _fits(row, recurrence, kind, hidden_size, shared_memory, capability):
            return Plan(*(row[name] for name in Plan._fields))
    raise ValueError(
        f"no plan for {hidden_size} hidden units in {kind} arithmetic with {shared_memory} bytes of shared memory; "
        f"the largest is {largest_hidden_size(kind, shared_memory, capability)}"
    )


def _fits(row: dict, recurrence: str, kind: str, hidden_size: int, shared_memory: int, capability: int) -> bool:
    same = row["recurrence"] == recurrence and row["kind"] == kind and row["capability"] <= capability
    return same and row["max_hidden"] >= hidden_size and row["shared_bytes"] <= shared_memory


def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a block may take on a device; where there is no GPU, those of an H100."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return 232_448
    properties = torch.cuda.get_device_properties(device)
    return getattr(properties, "shared_memory_per_block_optin", properties.shared_memory_per_block)


def capability(device: torch.device) -> int:
    """The compute capability of a GPU, 90 for 9.0; where there is none, that of an H100."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count
