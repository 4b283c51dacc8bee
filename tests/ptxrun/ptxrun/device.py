"""Sends Triton's kernels to the executor: everything of a launch except the GPU is Triton's own.

    with Device(90) as device:
        kernel[grid](*cpu_tensors, **options)

compiles as for that GPU, argument specialisation included, up to PTX, and runs that on the tensors' memory. Within it
memory from torch.empty and its kin holds a pattern that the executor knows as uninitialised.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import triton
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.compiler.compiler import CompiledKernel

from benchmarks.tuning.compile_report import DEVICES

from .build import FOLDER
from .machine import Fault, Region, Settings, launch
from .ptx import Kernel, parse

POISON = 0x7ED5  # in every 16 bits, as in core/global_memory.cpp: no value that arithmetic makes


class Launch(NamedTuple):
    """One launch, for statistics."""

    kernel: str
    instructions: int  # of all warps


class _Poison(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and "empty" in function.name() and result.element_size() >= 2:
            storage = result.untyped_storage()
            torch.empty(0, dtype=torch.int16).set_(storage, 0, (storage.nbytes() // 2,)).fill_(POISON)
        return result


class Device:
    """A GPU that does not exist."""

    def __init__(
        self,
        capability: int = 90,
        settings: Settings = Settings(),  # noqa: B008
        edit: Callable[[str, str], str] = lambda name, ptx: ptx,  # of a kernel's PTX, to plant faults
    ):
        self.capability, self.settings, self.edit = capability, settings, edit
        self.launches: list[Launch] = []

    # as much of a driver as Triton asks for
    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # kernels compiled for another capability are kept apart

    def get_current_stream(self, device: int) -> int:
        return 0

    def __enter__(self) -> Device:
        device = self

        def init_handles(kernel: CompiledKernel) -> None:
            kernel.module = kernel.function = 0
            kernel._run = lambda *args: device.launch(kernel, *args)

        def add_stages(backend: CUDABackend, stages: dict[str, Any], *arguments: Any) -> None:
            original(backend, stages, *arguments)
            stages["cubin"] = lambda source, metadata: b""  # ptxas has no part in this

        original = CUDABackend.add_stages
        self.changes = ExitStack()
        for change in (
            patch.object(CUDABackend, "add_stages", add_stages),
            patch.object(triton.knobs.cache, "dir", str(FOLDER / "triton")),  # without machine code
            patch.object(CompiledKernel, "_init_handles", init_handles),
            patch.object(triton.runtime.driver, "_active", self),
            _Poison(),
        ):
            self.changes.enter_context(change)
        return self

    def __exit__(self, *exception: Any) -> None:
        self.changes.close()

    def launch(self, kernel: CompiledKernel, x: int, y: int, z: int, *args: Any) -> None:
        """Replaces a GPU's launcher."""
        _, _, _, _, _, _, *values = args  # stream, function, metadata (packed, of the launch), two hooks
        metadata, programs, hardware = kernel.metadata, x * y * z, DEVICES[self.capability]
        if metadata.num_ctas != 1 or metadata.global_scratch_size or metadata.profile_scratch_size:
            raise Fault(f"{kernel.name}: clusters and scratch memory are not implemented")
        if metadata.shared > hardware.shared_memory:
            raise Fault(f"{kernel.name}: {metadata.shared} bytes of shared memory are more than there are")
        if metadata.launch_cooperative_grid and programs > hardware.processors:
            raise Fault(
                f"{kernel.name}: a cooperative launch of {programs} programs on {hardware.processors} processors"
            )
        kinds = zip(values, kernel.src.signature.values(), strict=True)
        params = [_parameter(value, kind) for value, kind in kinds if kind != "constexpr"]
        code = _parsed(self.edit(kernel.name, kernel.asm["ptx"]))
        settings = self.settings._replace(seed=self.settings.seed * 1009 + len(self.launches))
        no_scratch = [0, 0]
        cooperative = metadata.launch_cooperative_grid
        executed = launch(code, (x, y, z), [*params, *no_scratch], metadata.shared, settings, cooperative)
        self.launches.append(Launch(kernel.name, executed))


@functools.lru_cache(64)
def _parsed(ptx: str) -> Kernel:
    return parse(ptx)


def _parameter(value: Any, kind: str) -> int | Region:
    if isinstance(value, Tensor):
        extent = sum((n - 1) * stride for n, stride in zip(value.shape, value.stride(), strict=True)) + 1
        size = value.element_size()
        return Region(value.data_ptr(), extent * size if value.numel() else 0, size)
    if kind == "fp32":
        return struct.unpack("<I", struct.pack("<f", value))[0]
    if kind[0] not in "iu":
        raise Fault(f"a parameter of type {kind} is not implemented")
    return int(value)
