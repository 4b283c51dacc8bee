"""Times the options that torch.nn.GRU has not: natively, step by step in PyTorch, as without a compiler, and in Keras.

    OMP_NUM_THREADS=1 python -m benchmarks.measuring.options --out FOLDER

writes FOLDER/options-cpu.csv and prints how the medians of the process's time compare. All run on one core, also the
threads that JAX has. Runs of a shape take turns.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.measuring.environment import environment, on_cpu
from benchmarks.measuring.timing import sampled, spread
from benchmarks.results import Row, new_file
from grucore import GRU, dispatch

SHAPES = [(250, 16, 64, 128), (250, 64, 128, 256)]  # T, B, I, H
PLAIN = "none"
OPTIONS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "recurrent dropout": {"recurrent_dropout": 0.2},
    "recurrent dropout, zoneout": {"recurrent_dropout": 0.2, "zoneout": 0.1},
    "layer normalisation": {"layer_norm": True},
    "relu": {"activation": "relu"},
    "hard_tanh, hard_sigmoid": {"activation": "hard_tanh", "recurrent_activation": "hard_sigmoid"},
    "softsign": {"activation": "softsign", "recurrent_activation": "softsign"},
    "layer normalisation, recurrent dropout, zoneout": {"layer_norm": True, "recurrent_dropout": 0.2, "zoneout": 0.1},
}
NATIVE, STEPWISE, KERAS = "grucore-auto", "grucore-step-by-step", "keras"
Name = tuple[str, str, str]  # the mode, the provider and the options


def runs_of(shape: tuple[int, int, int, int]) -> dict[Name, Callable[[], object]]:
    """The calls of a shape, by name; without options nothing runs step by step."""
    T, B, I, H = shape  # noqa: E741
    x, dy = torch.randn(T, B, I, requires_grad=True), torch.randn(T, B, H) / T
    runs: dict[Name, Callable[[], object]] = {}
    for name, options in OPTIONS.items():
        layer = GRU(I, H, **options)

        def train(layer: GRU = layer) -> None:
            layer(x)[0].backward(dy)

        def infer(layer: GRU = layer) -> None:
            with torch.no_grad():
                layer(x)

        for mode, run in (("inference", infer), ("training", train)):
            runs[mode, NATIVE, name] = run
            if options:
                runs[mode, STEPWISE, name] = lambda run=run: stepwise(run)
    return runs


def in_keras(shape: tuple[int, int, int, int]) -> Callable[[], object]:
    """A step of training of keras.layers.GRU on JAX, compiled, with recurrent dropout, of the options its only one."""
    os.environ["KERAS_BACKEND"] = "jax"
    import jax
    import keras

    T, B, I, H = shape  # noqa: E741
    layer = keras.layers.GRU(H, recurrent_dropout=0.2, return_sequences=True)
    x, dy = jax.random.normal(jax.random.key(0), (B, T, I)), jax.random.normal(jax.random.key(1), (B, T, H)) / T
    layer.build(x.shape)
    seeds = [variable.value for variable in layer.non_trainable_variables]

    def loss(weights: Any, x: Any) -> Any:
        return (layer.stateless_call(weights, seeds, x, training=True)[0] * dy).sum()

    weights, gradients = [variable.value for variable in layer.trainable_variables], jax.jit(jax.grad(loss, (0, 1)))
    return lambda: jax.block_until_ready(gradients(weights, x))


def stepwise(run: Callable[[], object]) -> None:
    """A call without the native kernels."""
    with patch.object(dispatch, "NO_NATIVE", "measured without them"):
        run()


def main() -> None:
    """Measures all shapes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=240, help="of a shape, at most")
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with new_file(options.out / "options-cpu.csv") as write:
        for shape in SHAPES:
            runs = runs_of(shape) | {("training", KERAS, "recurrent dropout"): in_keras(shape)}
            samples = sampled(runs, options.rounds, seconds=options.seconds)
            medians = {}
            for (mode, provider, name), found in samples.items():
                row = Row(provider, mode, *shape, dtype="float32", **environment("cpu"), **on_cpu("cpu"))
                row.ms_p20, row.ms_p50, row.ms_p80 = spread([sample.ms for sample in found])
                worked = spread([sample.ms_cpu or 0.0 for sample in found])
                row.ms_cpu_p20, row.ms_cpu_p50, row.ms_cpu_p80 = worked
                row.note = name
                write(row)
                medians[mode, provider, name] = worked[1]
            for (mode, provider, name), ms in medians.items():
                if provider == NATIVE:
                    plain, steps = medians[mode, NATIVE, PLAIN], medians.get((mode, STEPWISE, name))
                    beyond = "" if steps is None else f", {steps / ms:5.2f} times as fast as step by step"
                    keras = medians.get((mode, KERAS, name))
                    beyond += "" if keras is None else f", {keras / ms:5.2f} times as fast as Keras"
                    print(f"{shape} {mode:9} {name:48} {ms:8.2f} ms, {ms / plain:4.2f} of plain{beyond}", flush=True)


if __name__ == "__main__":
    main()
