"""Inputs of every magnitude: the kernels keep their relative accuracy near 0 and where gates saturate.

Natively on a GPU, in Triton's interpreter everywhere else.
"""

import pytest
import torch
from contract import DEVICE
from oracle import FUSED_LIMITS, quantity, rms_error, to_oracle

from grucore import GRU
from grucore.kernels.triton import launch, plan

pytestmark = [pytest.mark.slow, *([pytest.mark.gpu] if DEVICE == "cuda" else [])]


# In 16 bits an argument of 1e4 is off by more than 1 before any gate; and float16 has no normal numbers below 6e-5.
SCALES = {
    torch.float32: (1e-8, 1e-6, 1e-4, 1e-2, 1, 1e2, 1e4),
    torch.bfloat16: (1e-8, 1e-6, 1e-4, 1e-2, 1, 1e2),
    torch.float16: (1e-3, 1e-2, 1, 1e2),
}
CASES = [
    # A case takes up to two seconds in the interpreter: scales between the extremes, and split kernels with biases in
    # 16 bits, run only on demand.
    pytest.param(
        dtype,
        scale,
        path,
        bias,
        id=f"{dtype}-{scale}-{path}-{'bias' if bias else 'no bias'}",
        marks=[pytest.mark.exhaustive]
        * (scale not in (scales[0], 1, scales[-1]) or (path == "split" and bias and dtype is not torch.float32)),
    )
    for dtype, scales in SCALES.items()
    for scale in scales
    for path in ("whole", "split", "step")
    for bias in (False, True)
]


@pytest.mark.parametrize("dtype, scale, path, bias", CASES)
def test_scaled_inputs(dtype, scale, path, bias, monkeypatch):
    """Each gate's part of each gradient by itself, except saturated gates in 16 bits, where one or two units dominate.

    Where gates saturate, and in 16 bits where h - n cancels, rounding only the operands may cost more than the limit;
    twice the error of torch.nn.GRU in the same dtype is accepted there.
    """
    T, B, H = 1 if path == "step" else 5, 7, 20
    if path == "split":
        monkeypatch.setattr(launch, "plan", lambda *_: plan.Plan(16, 16, 16, False, "counter", 4, 1, 0))
    layer = GRU(8, H, bias=bias, device=DEVICE, dtype=dtype, precision="ieee", backend="triton")
    x = (torch.randn(T, B, 8, device=DEVICE) * scale).to(dtype)
    hx = (torch.randn(1, B, H, device=DEVICE) * min(scale, 1)).to(dtype)
    loss_scale = 1 / min(scale, 1)  # float16 needs it
    dy, dh_n = (torch.randn(*size, B, H, device=DEVICE) * loss_scale for size in ((T,), (1,)))
    apart, results = dtype is torch.float32 or scale <= 1, []
    for module in (layer, to_oracle(layer), to_oracle(layer).to(dtype)):
        x_, hx_ = (t.to(module.weight_hh_l0.dtype).requires_grad_() for t in (x, hx))
        y, h_n = module(x_, hx_)
        parameters = dict(module.named_parameters())
        grads = torch.autograd.grad([y, h_n], [x_, hx_, *parameters.values()], [dy.to(y.dtype), dh_n.to(y.dtype)])
        found = {"output y": y, "output h_n": h_n, "dx": grads[0], "dh0": grads[1]}
        for name, grad in zip(parameters, grads[2:], strict=True):
            parts = grad.chunk(3) if apart else [grad]
            found |= {f"{quantity(name)} {name} {i}": part for i, part in enumerate(parts)}
        results.append(found)
    for name, got in results[0].items():
        limit, want = FUSED_LIMITS[dtype][name.split()[0]], results[1][name]
        if scale >= 1e2 or dtype is not torch.float32:
            limit = max(limit, 2 * rms_error(results[2][name], want))
        error = rms_error(got, want)
        assert error <= limit, f"{name}: RMS error {error:.2e} is over the limit {limit:.1e}"
        assert want.any() or scale == 1e4, f"{name}: nothing to compare with"


@pytest.mark.parametrize("path", ["whole", "split", "step"])
def test_a_state_far_smaller_than_the_candidate_is_kept(path, monkeypatch):
    """z = 1 - 2e-9 and n near 1: the next state is h to 1e-2, and exact to 1e-6; n + z (h - n) would be off by 6e-8."""
    if path == "split":
        monkeypatch.setattr(launch, "plan", lambda *_: plan.Plan(16, 16, 16, False, "counter", 4, 1, 0))
    layer = GRU(8, 20, device=DEVICE, precision="ieee", backend="triton")
    with torch.no_grad():
        layer.bias_ih_l0[20:40], layer.bias_ih_l0[40:] = 20, 3
    x, hx = (
        torch.randn(1 if path == "step" else 3, 7, 8, device=DEVICE) / 10,
        torch.rand(1, 7, 20, device=DEVICE) * 1e-6,
    )
    want, _ = to_oracle(layer)(x.double(), hx.double())
    got, _ = layer(x, hx)
    torch.testing.assert_close(got.double(), want, rtol=2e-6, atol=1e-14)
