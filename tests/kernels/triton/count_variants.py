"""Counts the variants that Triton compiles for many sizes of batch and time; run by test_compile.py without a GPU.

Kernels are compiled, for sm_90, but not launched; arguments are CPU tensors, whose addresses are aligned as a GPU's
are. Prints the number of variants of each kernel after the first size and after all, as JSON.
"""

import json
import random
import sys
from collections import Counter

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from grucore.kernels import Form, State, Steps, Weights
from grucore.kernels.triton import layer, step

variants: dict[str, set] = {}


class Driver:
    """The part of a driver that compiling needs."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def compile_only(self, *args, grid, warmup, **options):
    """JITFunction.run, up to the launch."""
    kernel = run(self, *args, grid=grid, warmup=True, **options)
    variants.setdefault(self.fn.__name__, set()).add(kernel.hash)


triton.runtime.driver.set_active(Driver())
run, JITFunction.run = JITFunction.run, compile_only
dtype, directions, input_size, hidden_size = torch.bfloat16, 2, 32, int(sys.argv[1])
random.seed(0)
counts = []
for _ in range(int(sys.argv[2])):
    steps, batch = random.choice([1, 2, 3, 7, 16, 33]), random.choice([1, 2, 8, 15, 16, 17, 31, 32])
    x, h0 = torch.zeros(steps, batch, input_size, dtype=dtype), torch.zeros(directions, batch, hidden_size, dtype=dtype)
    weights = [torch.zeros(directions, 3 * hidden_size, n, dtype=dtype) for n in (input_size, hidden_size)]
    weights += [torch.zeros(directions, 3 * hidden_size, dtype=dtype) for _ in range(2)]
    values = (State(h0), Weights(*weights), Steps(), Form(precision="tf32"))
    y, h_n = layer.gru_forward(x, *values)
    layer.gru_backward(y, h_n, y, x, *values, True)
    step.gru_step(x[0], h0[0], values[1].of(0), "tf32")
    counts.append(Counter({name: len(hashes) for name, hashes in variants.items()}))
print(json.dumps([counts[0], counts[-1]]))
