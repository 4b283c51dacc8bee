"""How runs are timed: in turns, so that what else the machine does falls on all of them alike."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import torch

Name = TypeVar("Name", bound=Hashable)
SECONDS = {"cpu": 1.0, "cuda": 6.0}  # of a case, all its runs together: then no round begins, once there were three
FLUSH_BYTES = 2**28  # more than any L2 cache: what a run left there does not help the next one


def timed(runs: Mapping[Name, Callable[[], object]], rounds: int, device: str = "cpu") -> dict[Name, list[float]]:
    """Returns the milliseconds of each run in each of at most `rounds` rounds, after a round of warming up."""
    samples: dict[Name, list[float]] = {name: [] for name in runs}
    begin = time.perf_counter()
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda") if device == "cuda" else None
    for i in range(rounds + 1):
        if i > 3 and time.perf_counter() - begin > SECONDS[device]:
            break
        for name, run in runs.items():
            elapsed = _milliseconds(run) if flush is None else _milliseconds_on_gpu(run, flush)
            if i > 0:
                samples[name].append(elapsed)
    return samples


def _milliseconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return (time.perf_counter() - begin) * 1e3


def _milliseconds_on_gpu(run: Callable[[], object], flush: torch.Tensor) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    flush.zero_()
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def replayed(run: Callable[[], object], rounds: int) -> float:
    """Returns the median milliseconds of a CUDA graph of the run: what it takes without the host's share."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return statistics.median(timed({"graph": graph.replay}, rounds, "cuda")["graph"])


def peak_mib(run: Callable[[], object]) -> float:
    """Returns the MiB that a run needs on the GPU beyond what is there before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def spread(samples: list[float]) -> tuple[float, ...]:
    """Returns the quantiles 0.2, 0.5 and 0.8."""
    tenths = statistics.quantiles(samples, n=10, method="inclusive") if len(samples) > 1 else samples * 9
    return tuple(tenths[i - 1] for i in (2, 5, 8))


def rotating(inputs: list[torch.Tensor]) -> Callable[[], torch.Tensor]:
    """Hands out the inputs in turn."""
    turn = itertools.cycle(inputs)
    return lambda: next(turn)
