"""Times runs in alternation, so that background load affects all providers equally."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple, TypeVar

import torch

Name = TypeVar("Name", bound=Hashable)
SECONDS = {"cpu": 1.0, "cuda": 6.0}  # per case, over all its runs; no round starts later, after the first three
BURST_MS = 5.0  # shorter runs are called several times per sample on a CPU, since a sample begins with cold caches
FLUSH_BYTES = 2**28  # larger than any L2 cache, so that a run does not find data of the one before


class Sample(NamedTuple):
    """The milliseconds of one run in wall time and in CPU time, which excludes other processes."""

    ms: float
    ms_cpu: float | None = None  # None on a GPU


def timed(runs: Mapping[Name, Callable[[], object]], rounds: int, device: str = "cpu") -> dict[Name, list[float]]:
    """Returns the milliseconds of each run in each of at most `rounds` rounds, after a warm-up round."""
    return {name: [sample.ms for sample in found] for name, found in sampled(runs, rounds, device).items()}


def sampled(
    runs: Mapping[Name, Callable[[], object]],
    rounds: int,
    device: str = "cpu",
    seconds: float | None = None,
    clock: Callable[[], float] = time.process_time,
) -> dict[Name, list[Sample]]:
    """Returns the samples of each run in each of at most `rounds` rounds, after a warm-up round.

    Args:
        runs: the calls, by name.
        rounds: the largest number of samples per run.
        device: "cpu" or "cuda".
        seconds: the time after which no round starts, except the first three; default: `SECONDS`.
        clock: the clock for CPU time: a process's, or a thread's if there is only one.
    """
    samples: dict[Name, list[Sample]] = {name: [] for name in runs}
    begin = time.perf_counter()
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda") if device == "cuda" else None
    calls = {name: 1 if flush is not None else _calls(run) for name, run in runs.items()}
    for i in range(rounds + 1):
        if i > 3 and time.perf_counter() - begin > (SECONDS[device] if seconds is None else seconds):
            break
        for name, run in runs.items():
            sample = _on_cpu(run, calls[name], clock) if flush is None else Sample(_milliseconds_on_gpu(run, flush))
            if i > 0:
                samples[name].append(sample)
    return samples


def _calls(run: Callable[[], object]) -> int:
    """The number of calls per sample, from the second of two calls, as the first may have to fill caches."""
    for _ in range(2):
        if (ms := _on_cpu(run, 1, time.perf_counter).ms) >= BURST_MS:
            return 1
    return math.ceil(BURST_MS / ms)


def _on_cpu(run: Callable[[], object], calls: int, clock: Callable[[], float]) -> Sample:
    begin, begin_cpu = time.perf_counter(), clock()
    for _ in range(calls):
        run()
    end_cpu, end = clock(), time.perf_counter()
    return Sample((end - begin) * 1e3 / calls, (end_cpu - begin_cpu) * 1e3 / calls)


def _milliseconds_on_gpu(run: Callable[[], object], flush: torch.Tensor) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    flush.zero_()
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def replayed(run: Callable[[], object], rounds: int) -> float:
    """Returns the median milliseconds of the run as a CUDA graph, which excludes the host's overhead."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return statistics.median(timed({"graph": graph.replay}, rounds, "cuda")["graph"])


def peak_mib(run: Callable[[], object]) -> float:
    """Returns the peak MiB of a run on the GPU beyond those in use before."""
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
