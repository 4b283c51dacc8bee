"""Runs the comparison with pytest-benchmark: `pytest benchmarks/`, with its JSON, comparisons and histograms."""

import copy

import pytest
import torch

from benchmarks.measuring.cases import suite
from benchmarks.measuring.compare import limit
from benchmarks.measuring.problem import Problem
from benchmarks.providers import PROVIDERS
from benchmarks.providers.base import Unavailable

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OURS = "grucore-triton" if DEVICE == "cuda" else "grucore-auto"
MEASURED = [(mode, case) for mode, case in suite("quick", DEVICE) if mode in ("inference", "training", "step")]


@pytest.mark.parametrize("provider", [OURS, "torch", "torch-lstm", "products"])
@pytest.mark.parametrize(
    "mode, case", MEASURED, ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value))
)
def test_speed(benchmark, provider, mode, case):
    """Times a provider on a case; fails if its result is wrong."""
    problem = Problem(case, mode, DEVICE)
    benchmark.group = " ".join(map(str, (mode, *case)))
    try:
        made = PROVIDERS[provider](copy.deepcopy(problem.layer))
        run = problem.run(made)
        run()
        if made.exact:
            assert problem.error(made) <= limit(problem)
    except Unavailable as reason:
        pytest.skip(str(reason))

    def waited():
        run()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(waited, rounds=5, warmup_rounds=2)
