"""Which implementation runs a call, and why; an explicit one never gives way to another."""

import re

import pytest
import torch
from grucore.kernels.triton.plan import H100
from torch.func import vmap

from grucore import GRU
from grucore import backend as backends


def test_backend_for_names_what_runs_and_why(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    x = torch.randn(2, 1, 3)
    assert GRU(3, 4).backend_for(x) == ("reference", "the implementation for cpu tensors")
    assert GRU(3, 4, backend="reference").backend_for(x).reason == "asked for"
    with pytest.raises(RuntimeError, match="need a CUDA device, and the tensors are on cpu"):
        GRU(3, 4, backend="triton")(x)


CHOICES = [
    ("auto", "cuda", torch.bfloat16, True, H100, "triton", "the implementation for cuda tensors"),
    ("auto", "cuda", torch.float32, True, H100, "triton", "the implementation for cuda tensors"),
    ("auto", "cuda", torch.bfloat16, True, H100._replace(capability=75), "reference", "compute capability 7.5"),
    ("auto", "cuda", torch.float64, True, H100, "reference", "the dtype is torch.float64"),
    ("auto", "cuda", torch.float32, False, H100, "reference", "no reset_after=False"),
    ("auto", "mps", torch.float32, True, H100, "reference", "the implementation for mps tensors"),
    ("reference", "cuda", torch.float32, True, H100, "reference", "asked for"),
    ("triton", "cuda", torch.float16, True, H100, "triton", "asked for"),
]


@pytest.mark.parametrize("case", CHOICES, ids=str)
def test_choice_of_backend(case, monkeypatch):
    backend, device, dtype, reset_after, limits, name, reason = case
    monkeypatch.setattr(backends.plan, "device", lambda _: limits)
    choice = backends.choose(backend, torch.device(device), dtype, 100_000, reset_after, "ieee")
    assert choice.name == name and re.search(reason, choice.reason)


def test_an_explicit_backend_never_falls_back(monkeypatch):
    for dtype, reset_after, limits, message in (
        (torch.float64, True, H100, "dtype is torch.float64"),
        (torch.float32, False, H100, "no reset_after=False"),
        (torch.bfloat16, True, H100._replace(capability=75), "compute capability 7.5"),
    ):
        monkeypatch.setattr(backends.plan, "device", lambda _, limits=limits: limits)
        with pytest.raises(RuntimeError, match=f"backend='triton' cannot run: .*{message}"):
            backends.choose("triton", torch.device("cuda"), dtype, 4, reset_after, "tf32")


REFUSED = {  # what only PyTorch's own operators have: a layer's options and a call
    "gates": ({}, lambda layer, x: layer(x, return_gates=True), "no return_gates"),
    "backend_for": ({}, lambda layer, x: layer.backend_for(x, return_gates=True), "no return_gates"),
    "vmap": ({}, lambda layer, x: vmap(lambda x: layer(x)[0], in_dims=1)(x[:, :, None]), "no rule for torch.func"),
    "vmap of a cell": ({}, lambda layer, x: vmap(layer.step)(x, x.new_zeros(5, 1, 2, 4)), "no rule for"),
    "zoneout": ({"zoneout": 0.1}, lambda layer, x: layer(x), "no zoneout"),
    "several": ({"layer_norm": True}, lambda layer, x: layer(x, return_gates=True), "no layer_norm and return_gates"),
}


@pytest.mark.parametrize("options, call, message", REFUSED.values(), ids=REFUSED)
def test_an_explicit_backend_that_cannot_serve_a_call_raises(options, call, message):
    x = torch.randn(5, 2, 3)
    with pytest.raises(RuntimeError, match=f"backend='triton' cannot run: the fused kernels have {message}"):
        call(GRU(3, 4, backend="triton", **options), x)
    call(GRU(3, 4, **options), x)


@pytest.mark.parametrize(
    "installed, message", [(None, "Triton is not installed"), ("3.3.1", "need Triton 3.4 or newer, and 3.3.1 is")]
)
def test_a_missing_or_old_triton_is_named(installed, message, monkeypatch):
    monkeypatch.setattr(backends, "NO_TRITON", backends._no_triton(installed))
    with pytest.raises(RuntimeError, match=message):
        GRU(3, 4, backend="triton")(torch.randn(2, 1, 3))
    assert backends.choose("auto", torch.device("cuda"), torch.float32, 4, True, "ieee").name == "reference"


def test_precision_follows_torch_unless_given(monkeypatch):
    for allowed, resolved in ((True, "tf32"), (False, "ieee")):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
        assert backends.resolve_precision(None) == resolved
        assert backends.resolve_precision("ieee") == "ieee"
