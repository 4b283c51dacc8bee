"""Launches of a kernel over the memory of CPU tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .build import library
from .ptx import Kernel

BUFFER_SHIFT = 36  # as in core/machine.h: each buffer has 64 GiB of addresses, so that beyond it there is no other
FIRST = 1 << 28  # where a buffer begins in them, so that before it there is none either


class Fault(Exception):
    """Errors that a GPU would not handle: out of bounds, a race, a deadlock and others, one per line."""


class Settings(NamedTuple):
    """How a launch is executed."""

    seed: int = 0
    exact: bool = False  # tanh, exp2 and division without the error that the hardware may have
    round_to_zero: bool = True  # sums of tensor cores
    delay_stores: bool = True  # other programs see a program's stores later, in any order
    resident: int = 0  # programs at once, where the launch is not cooperative; 0: drawn
    most_polls: int = 20_000  # backward branches a warp without any store, until it is a deadlock


class Region(NamedTuple):
    """Bytes of host memory that a kernel may touch."""

    address: int
    size: int
    item: int = 1  # bytes of an element


class _Buffer(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("host", "base", "size", "item")]


class _Settings(ctypes.Structure):
    _fields_ = [("seed", ctypes.c_uint64)] + [
        (name, ctypes.c_int32)
        for name in ("exact", "round_to_zero", "delay_stores", "cooperative", "resident", "most_polls")
    ]


class _Launch(ctypes.Structure):
    _fields_ = [
        ("names", ctypes.c_char_p),
        ("texts", ctypes.c_char_p),
        *((name, ctypes.c_void_p) for name in ("fields", "operands")),
        ("params", ctypes.POINTER(ctypes.c_uint64)),
        ("buffers", ctypes.POINTER(_Buffer)),
        ("settings", _Settings),
        ("shared_bytes", ctypes.c_uint64),
        ("grid", ctypes.c_uint32 * 3),
        *(
            (name, ctypes.c_int32)
            for name in ("n_instructions", "n_operands", "n_registers", "n_params", "n_buffers", "threads")
        ),
    ]


def mapped(regions: Sequence[Region]) -> tuple[list[Region], list[int], dict[Region, int]]:
    """Buffers (overlapping regions joined), their bases as a kernel sees them, and each region's address there."""
    buffers: list[Region] = []
    for region in sorted({region for region in regions if region.size}):
        last = buffers[-1] if buffers else Region(0, 0)
        if region.address < last.address + last.size:
            end = max(last.address + last.size, region.address + region.size)
            buffers[-1] = last._replace(size=end - last.address)
        else:
            buffers.append(region)
    bases = [((i + 1) << BUFFER_SHIFT) + FIRST + buffer.address % 4096 for i, buffer in enumerate(buffers)]
    addresses = {
        region: base + region.address - buffer.address
        for region in regions
        for base, buffer in zip(bases, buffers, strict=True)
        if buffer.address <= region.address < buffer.address + buffer.size
    }
    return buffers, bases, addresses


def launch(
    kernel: Kernel,
    grid: tuple[int, int, int],
    params: Sequence[int | Region],
    shared_bytes: int,
    settings: Settings,
    cooperative: bool = False,
) -> int:
    """Runs a kernel to its end; returns the number of instructions of all warps.

    Raises:
        Fault: all findings, with their place and number.
    """
    if len(params) != kernel.params:
        raise ValueError(f"{kernel.name} has {kernel.params} parameters, got {len(params)}")
    buffers, bases, addresses = mapped([p for p in params if isinstance(p, Region)])
    values = [addresses.get(p, 0) if isinstance(p, Region) else p & (2**64 - 1) for p in params]
    fields: list[tuple[int, ...]] = []
    operands: list[tuple[int, int, int]] = []
    for i in kernel.code:
        fields.append((i.predicate, i.negated, i.target, i.join, len(operands), len(i.operands)))
        operands += [(kind, 0, value - 2**64 if value >= 2**63 else value) for kind, value in i.operands]
    fields_ = np.array(fields, np.int32)
    operands_ = np.array(operands, [("kind", "<i4"), ("unused", "<i4"), ("value", "<i8")])
    placed = [_Buffer(b.address, base, b.size, b.item) for b, base in zip(buffers, bases, strict=True)]
    given = _Launch(
        b"".join(i.name.encode() + b"\0" for i in kernel.code),
        b"".join(i.text.encode() + b"\0" for i in kernel.code),
        fields_.ctypes.data,
        operands_.ctypes.data,
        (ctypes.c_uint64 * len(values))(*values),
        (_Buffer * len(buffers))(*placed),
        _Settings(*settings[:4], cooperative, *settings[4:]),
        shared_bytes,
        (ctypes.c_uint32 * 3)(*grid),
        len(fields),
        len(operands),
        kernel.registers,
        len(values),
        len(buffers),
        kernel.threads,
    )
    run: Any = library().ptx_run
    run.restype = ctypes.c_uint64
    found = ctypes.create_string_buffer(1 << 20)
    executed = run(ctypes.byref(given), found, ctypes.c_uint64(len(found)))
    if lines := found.value.decode().splitlines():
        raise Fault("\n".join([f"{kernel.name}, grid {grid}, seed {settings.seed}:", *lines]))
    return executed
