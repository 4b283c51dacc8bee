"""Times quantised layers and measures their errors, ours and others', side by side in one process; writes a CSV.

    OMP_NUM_THREADS=1 python -m benchmarks.measuring.quantised --out FOLDER          a few minutes

Each is made of the same torch.nn.GRU. An error is that of the outputs, which are from -1 to 1, against float64 of that
layer: its RMS, and that RMS as a part of the outputs' own. Weights are those of a layer as it begins, and twice and
four times those, which take the gates further from 1/2, as training does.

"torch-int8" is torch.ao.quantization.quantize_dynamic, "onnxruntime-int8" onnxruntime's function of that name on the
exported file, and "onnxruntime-of-int8" the file that `to_onnx` writes of our int8 layer.
"""

from __future__ import annotations

import argparse
import copy
import functools
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measuring.environment import environment, on_cpu
from benchmarks.measuring.timing import rotating, sampled, spread
from benchmarks.providers.base import Unavailable, imported
from benchmarks.results import new_file
from grucore import GRU

COLUMNS = ["provider", "weights", "T", "B", "I", "H", "ms_cpu_p20", "ms_cpu_p50", "ms_cpu_p80", "rms_error"]
COLUMNS += ["relative_error", "weight_bytes", "note", "device", "torch", "triton", "cudnn", "commit", "threads"]
COLUMNS += ["instruction_set", "date"]
SHAPES = [(100, B, H // 2, H) for H in (128, 256, 512, 1024) for B in (1, 16)]
GAINS = {"as they begin": 1, "twice that": 2, "four times that": 4}
Call = Callable[[Tensor], Tensor]  # from x to y


def grucore(layer: nn.GRU, form: str = "") -> tuple[Call, int]:
    """Ours, plain, with weights that stay packed, or quantised; and the bytes of its weights."""
    ours: Any = GRU.from_torch(layer)
    if form == "packed":
        ours.packed_weights().__enter__()
    elif form:
        ours = ours.quantize(form)
    return lambda x: ours(x)[0], sum(t.nbytes for name, t in ours.state_dict().items() if "weight" in name)


def pytorch(layer: nn.GRU, quantises: bool) -> tuple[Call, int]:
    """PyTorch's own, and its dynamically quantised one."""
    if not quantises:
        return lambda x: layer(x)[0], _float_bytes(layer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao announces that it is deprecated
        theirs = torch.ao.quantization.quantize_dynamic(nn.Sequential(copy.deepcopy(layer)), {nn.GRU}, torch.qint8)[0]
    if type(theirs) is nn.GRU:
        raise Unavailable("quantize_dynamic leaves nn.GRU as it is")
    return lambda x: theirs(x)[0], _float_bytes(layer) // 4


def onnx(layer: nn.GRU, form: str) -> tuple[Call, int]:
    """Runs a file in onnxruntime: ours of float32, theirs made of it, or ours of the int8 layer."""
    onnxruntime = imported("onnxruntime")
    from grucore.convert import to_onnx

    with tempfile.TemporaryDirectory() as folder:
        path, other = Path(folder) / "gru.onnx", Path(folder) / "quantised.onnx"
        ours = GRU.from_torch(layer)
        to_onnx(ours.quantize("int8") if form == "of int8" else ours, path)
        if form == "theirs":
            imported("onnxruntime.quantization").quantize_dynamic(path, other)
            kinds = [node.op_type for node in imported("onnx").load(other).graph.node]
            if "GRU" in kinds and not any("Quant" in kind or "Integer" in kind for kind in kinds):
                raise Unavailable("quantize_dynamic leaves a GRU node as it is")
            path = other
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
        return lambda x: torch.from_numpy(session.run(None, {"input": x.numpy()})[0]), path.stat().st_size


def _float_bytes(layer: nn.GRU) -> int:
    return sum(p.nbytes for name, p in layer.named_parameters() if "weight" in name)


MAKERS: dict[str, Callable[[nn.GRU], tuple[Call, int]]] = {
    "grucore": grucore,
    "grucore-packed": lambda layer: grucore(layer, "packed"),
    "grucore-int8": lambda layer: grucore(layer, "int8"),
    "grucore-bf16": lambda layer: grucore(layer, "bf16"),
    "torch": lambda layer: pytorch(layer, quantises=False),
    "torch-int8": lambda layer: pytorch(layer, quantises=True),
    "onnxruntime": lambda layer: onnx(layer, ""),
    "onnxruntime-int8": lambda layer: onnx(layer, "theirs"),
    "onnxruntime-of-int8": lambda layer: onnx(layer, "of int8"),
}


def layer_of(I: int, H: int, gain: float) -> nn.GRU:  # noqa: E741
    """A layer whose weights and biases are some times as large as they begin."""
    torch.manual_seed(0)
    layer = nn.GRU(I, H).eval()
    with torch.no_grad():
        for p in layer.parameters():
            p *= gain
    return layer


@torch.no_grad()
def measure(
    shape: tuple[int, int, int, int], weights: str, providers: list[str], rounds: int, seconds: float
) -> Iterator[dict[str, Any]]:
    """Yields a row for each provider: errors, and times where weights are as they begin."""
    T, B, I, H = shape  # noqa: E741
    layer = layer_of(I, H, GAINS[weights])
    inputs = [torch.randn(T, B, I) for _ in range(4)]
    want = copy.deepcopy(layer).double()(inputs[0].double())[0]
    rows, runs = {}, {}
    for name in providers:
        rows[name] = row = dict(zip(COLUMNS, (name, weights, *shape), strict=False))
        try:
            call, row["weight_bytes"] = MAKERS[name](layer)
            error = (call(inputs[0]).double() - want).square().mean().sqrt()
            row["rms_error"], row["relative_error"] = float(error), float(error / want.square().mean().sqrt())
            runs[name] = functools.partial(_called, call, rotating(inputs))
        except Unavailable as reason:
            row["note"] = str(reason)
        except Exception as fault:  # a provider may fail in any way: the result says how, and the run goes on
            row["note"] = f"{type(fault).__name__}: {fault}".splitlines()[0][:200]
    if weights == "as they begin":
        clock = time.thread_time if torch.get_num_threads() == 1 else time.process_time
        for name, samples in sampled(runs, rounds, "cpu", seconds, clock).items():
            quantiles = spread([sample.ms_cpu or 0.0 for sample in samples])
            rows[name] |= zip(("ms_cpu_p20", "ms_cpu_p50", "ms_cpu_p80"), quantiles, strict=True)
    yield from rows.values()


def _called(call: Call, turn: Callable[[], Tensor]) -> Tensor:
    return call(turn())


def main() -> None:
    """Measures every shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--providers", nargs="+", choices=list(MAKERS), default=list(MAKERS))
    parser.add_argument("--largest", type=int, default=SHAPES[-1][-1], help="the largest H")
    parser.add_argument("--rounds", type=int, default=101, help="most timed runs of each")
    parser.add_argument("--seconds", type=float, default=8.0, help="of a shape, all its runs together")
    parser.add_argument("--out", type=Path, required=True, help="a folder; quantised/cpu.csv is written there")
    given = parser.parse_args()
    under = environment("cpu") | on_cpu("cpu")
    with new_file(given.out / "quantised" / "cpu.csv", COLUMNS) as write:
        for shape in (shape for shape in SHAPES if shape[-1] <= given.largest):
            for weights in GAINS:
                for row in measure(shape, weights, given.providers, given.rounds, given.seconds):
                    write(row | under)
                    print(*(row.get(name, "") for name in COLUMNS[: COLUMNS.index("device")]), flush=True)


if __name__ == "__main__":
    main()
