"""Compares results with an oracle, with limits for the error.

The chain: torch.nn.GRU in float64 -> kernels/reference.py -> the hand-written backward. An error is
RMS(got - want) / RMS(want), where want is float64 from the same rounded inputs.
"""

import torch

# Largest error allowed, and (behind it) the worst measured on torch 2.13, CPU. Never depends on where tests run.
LIMITS = {
    torch.float64: {
        "output": 1e-12,  # 4.2e-16
        "dx": 1e-12,  # 1.0e-15
        "dh0": 1e-12,  # 4.7e-15
        "dw": 1e-12,  # 1.4e-14
        "db": 1e-12,  # 1.5e-15
    },
    torch.float32: {
        "output": 1e-5,  # 2.4e-6
        "dx": 1e-5,  # 1.4e-6
        "dh0": 1e-5,  # 2.7e-6
        "dw": 1e-5,  # 4.2e-6
        "db": 1e-5,  # 1.3e-6
    },
    torch.bfloat16: {
        "output": 8e-3,  # 2.4e-3
        "dx": 8e-3,  # 2.5e-3
        "dh0": 8e-3,  # 1.7e-3
        "dw": 8e-3,  # 4.1e-3
        "db": 8e-3,  # 2.2e-3
    },
    torch.float16: {
        "output": 1e-3,  # 2.7e-4
        "dx": 1e-3,  # 3.8e-4
        "dh0": 1e-3,  # 3.5e-4
        "dw": 1e-3,  # 3.8e-4
        "db": 1e-3,  # 3.3e-4
    },
}

# The same for the fused kernels, which keep the state in float32 and round the operands of each product; worst measured
# in Triton's interpreter.
FUSED_LIMITS = {
    torch.float32: {
        "output": 2e-6,  # 2.2e-7
        "dx": 2e-6,  # 3.4e-7
        "dh0": 2e-6,  # 2.6e-7
        "dw": 2e-6,  # 3.4e-7
        "db": 2e-6,  # 3.0e-7
    },
    torch.bfloat16: {
        "output": 8e-3,  # 3.3e-3
        "dx": 8e-3,  # 4.5e-3
        "dh0": 8e-3,  # 3.1e-3
        "dw": 8e-3,  # 4.7e-3
        "db": 8e-3,  # 5.5e-3
    },
    torch.float16: {
        "output": 1e-3,  # 3.1e-4
        "dx": 1e-3,  # 6.2e-4
        "dh0": 1e-3,  # 4.8e-4
        "dw": 1e-3,  # 5.8e-4
        "db": 1e-3,  # 5.2e-4
    },
}

worst: dict[str, tuple[float, float]] = {}  # what this session measured, for the summary


def rms_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """RMS(got - want) / RMS(want); 0 where both are all zero, infinite where a NaN is on one side only."""
    got, want = got.detach().double(), want.detach().double()
    assert got.shape == want.shape, f"shape {tuple(got.shape)}, expected {tuple(want.shape)}"
    if got.numel() == 0:
        return 0.0
    difference = (got - want).square().mean().sqrt()
    scale = want.square().mean().sqrt()
    if difference.isnan():
        return float("inf")
    return float(difference) if scale == 0 else float(difference / scale)


def assert_near(quantity: str, got: torch.Tensor, want: torch.Tensor, limits: dict = LIMITS) -> None:
    """Asserts that `got` is within the limit for its dtype and quantity: output, dx, dh0, dw or db."""
    limit, error = limits[got.dtype][quantity], rms_error(got, want)
    assert error <= limit, f"{quantity}: RMS error {error:.2e} is over the limit {limit:.0e} for {got.dtype}"
    key = f"{'fused ' if limits is FUSED_LIMITS else ''}{str(got.dtype).removeprefix('torch.')} {quantity}"
    worst[key] = max(worst.get(key, (0.0, limit)), (error, limit))


def quantity(name: str) -> str:
    """The row of the table for a parameter's name."""
    return "dw" if "weight" in name else "db"


def compare(layer, oracle, x, hx=None, call=None, call_oracle=None, limits=LIMITS):
    """Outputs and every gradient of layer(x) against oracle(x.double()), for a loss that weighs y and h_n at random."""
    call, call_oracle = call or (lambda m, x, h: m(x, h)), call_oracle or (lambda m, x, h: m(x, h))
    runs = []
    for module, run, dtype in ((layer, call, x.dtype), (oracle, call_oracle, torch.float64)):
        x_ = x.detach().to(dtype).requires_grad_()
        h_ = None if hx is None else hx.detach().to(dtype).requires_grad_()
        y, h_n = run(module, x_, h_)
        if not runs:
            dy, dh_n = torch.randn_like(y), torch.randn_like(h_n)
        inputs = [x_, *([] if h_ is None else [h_]), *module.parameters()]
        grads = torch.autograd.grad([y, h_n], inputs, [dy.to(dtype), dh_n.to(dtype)])
        runs.append((y, h_n, grads))
    (y, h_n, grads), (y_want, h_n_want, grads_want) = runs
    assert_near("output", y, y_want, limits)
    assert_near("output", h_n, h_n_want, limits)
    names = ["dx", *([] if hx is None else ["dh0"]), *(quantity(name) for name, _ in layer.named_parameters())]
    for name, got, want in zip(names, grads, grads_want, strict=True):
        assert_near(name, got, want, limits)


def to_oracle(layer) -> torch.nn.GRU:
    """torch.nn.GRU in float64 with the layer's (rounded) parameters."""
    return layer.to_torch().double()
