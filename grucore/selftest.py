"""Reports which implementation runs on this machine, its error, and its time next to torch.nn.GRU's.

Run it by `python -m grucore.selftest`. It takes a minute at most and exits with 1 if a result is wrong.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch
from torch import Tensor, nn

import grucore
from grucore import GRU

# Largest RMS error of outputs and gradients against float64.
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}
TF32_LIMIT = 4e-3  # both operands of every product have a mantissa of ten bits, like float16
SHAPES = [(50, 16, 64, 64), (50, 16, 128, 256)]  # (T, B, I, H)


def rms_error(got: Tensor, want: Tensor) -> float:
    """RMS(got - want) / RMS(want)."""
    return float((got.double() - want).square().mean().sqrt() / want.square().mean().sqrt())


def worst_error(layer: GRU, x: Tensor) -> float:
    """The largest error of y, h_n and every gradient, against torch.nn.GRU in float64 on the CPU."""
    oracle = layer.to_torch().double().cpu()
    results = []
    for module, x_ in ((layer, x.detach()), (oracle, x.detach().double().cpu())):
        x_ = x_.requires_grad_()
        y, h_n = module(x_)
        grads = torch.autograd.grad(y.sum() + h_n.sum(), [x_, *module.parameters()])
        results.append([t.detach().cpu() for t in (y, h_n, *grads)])
    errors = [rms_error(got, want) for got, want in zip(*results, strict=True)]
    return float(torch.tensor(errors).max())  # NaN if one is; Python's max may lose it


def milliseconds(module: nn.Module, x: Tensor, rounds: int = 7) -> float:
    """The median time of a forward and backward pass."""
    times = []
    for _ in range(rounds + 2):
        begin = time.perf_counter()
        torch.autograd.grad(module(x)[0].sum(), list(module.parameters()))
        if x.is_cuda:
            torch.cuda.synchronize()
        times.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(times[2:])


def main() -> int:
    """Prints one line per device, dtype and shape; returns 1 if a result is wrong."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    print(f"grucore {grucore.__version__}, torch {torch.__version__}")
    print("device dtype     T   B    I    H  backend    RMS error  training ms  torch.nn.GRU ms")
    wrong = 0
    for device in devices:
        for dtype in LIMITS if device == "cuda" else [torch.float32]:
            for steps, batch, input_size, hidden_size in SHAPES:
                torch.manual_seed(0)
                layer = GRU(input_size, hidden_size, device=device, dtype=dtype)
                x = torch.randn(steps, batch, input_size, device=device, dtype=dtype)
                choice, error = layer.explain_backend(x), worst_error(layer, x)
                exact = dtype is not torch.float32 or device == "cpu" or not torch.backends.cudnn.allow_tf32
                right = error <= (LIMITS[dtype] if exact else TF32_LIMIT)
                wrong += not right
                ours, theirs = milliseconds(layer, x), milliseconds(layer.to_torch(), x)
                print(
                    f"{device:6} {str(dtype)[6:]:8} {steps:3} {batch:3} {input_size:4} {hidden_size:4}  {choice.name:9}"
                    f"  {error:9.1e}  {ours:11.2f}  {theirs:15.2f}{'' if right else '  WRONG'}"
                )
    print("wrong results: do not use this installation" if wrong else "all results are correct")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
