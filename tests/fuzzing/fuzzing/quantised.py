"""Quantised layers: near the float layer, the same after a copy, and only named refusals where it has none."""

from __future__ import annotations

import copy
import io
import pickle
import random
from typing import Any

import torch
from torch import Tensor

from grucore import GRU, InputError, QuantizedGRU

from .options import NAMED, REFUSED, call_of, told

# RMS(got - want) / RMS(want), where want is of float32: of the dequantised layer, and of the layer that was quantised.
# Behind each the worst of 880 calls; layers of few units have the larger errors of the second.
NEAR_ROUNDED = {"int8": 1e-3, "bf16": 1e-5}  # 1.3e-4, 1.7e-6
NEAR_FLOAT = {"int8": 0.1, "bf16": 0.1}  # 2.4e-2 for either
REFUSED_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"heads": 2, "hidden_size": 4}, "heads=2 cannot be quantised"),
    ({"zoneout": 0.5}, "zoneout=0.5 cannot be quantised"),
    ({"layer_norm": True, "reset_after": True}, "layer_norm=True cannot be quantised"),
    ({"activation": "relu"}, "activation='relu' cannot be quantised"),
    ({"dtype": torch.float64}, "a layer of float32 on the CPU, and weight_ih_l0 is torch.float64"),
    ({"device": "meta"}, "a layer of float32 on the CPU"),
]


def _drawn(numbers: random.Random, **more: Any) -> GRU:
    options = {
        "input_size": numbers.choice([1, 2, 3, 16, 33]),
        "hidden_size": numbers.choice([2, 4, 17, 32, 40]),
        "num_layers": numbers.choice([1, 1, 2, 3]),
        "bias": numbers.random() < 0.7,
        "batch_first": numbers.random() < 0.3,
        "bidirectional": numbers.random() < 0.3,
        "reset_after": numbers.random() < 0.7,
        "recurrent_dropout": numbers.choice([0.0, 0.5]),
        "learn_initial_state": numbers.random() < 0.3,
        "backend": numbers.choice(["auto", "auto", "eager"]),
    }
    return GRU(**options | more)


def _refusals(numbers: random.Random) -> list[str]:
    """Checks that what cannot be quantised is refused by name."""
    options, message = numbers.choice(REFUSED_OPTIONS)
    calls = [
        (_drawn(numbers, **options), "int8", message),
        (_drawn(numbers), numbers.choice(["int4", None, torch.int8, 8]), "dtype must be one of 'int8', 'bf16', got"),
        (_drawn(numbers).quantize("bf16"), "int8", "is already quantised to bf16"),
        (_drawn(numbers), "int8", "holds a NaN or an infinity"),
    ]
    with torch.no_grad():
        numbers.choice(list(calls[-1][0].parameters())).view(-1)[0] = numbers.choice([torch.nan, torch.inf])
    layer, dtype, message = numbers.choice(calls)
    try:
        layer.quantize(dtype)  # type: ignore[arg-type]
    except InputError as error:
        return [] if message in str(error) else [f"another message: {error}: {layer!r}.quantize({dtype!r})"]
    except Exception as error:
        return [f"{type(error).__name__}: {error}: {layer!r}.quantize({dtype!r})"]
    return [f"no error: {layer!r}.quantize({dtype!r})"]


def _again(numbers: random.Random, layer: GRU, quantized: QuantizedGRU) -> QuantizedGRU:
    """A copy, in one of the ways that users have."""
    way = numbers.randrange(4)
    if way == 0:
        return copy.deepcopy(quantized)
    if way == 1:
        return pickle.loads(pickle.dumps(quantized))
    if way == 2:
        file = io.BytesIO()
        torch.save(quantized.state_dict(), file)
        file.seek(0)
        other = copy.deepcopy(layer)
        with torch.no_grad():
            for p in other.parameters():
                p.zero_()
        loaded = other.quantize(quantized.weight_dtype)
        loaded.load_state_dict(torch.load(file))
        return loaded
    return quantized.dequantize().quantize(quantized.weight_dtype)  # which rounds nothing any more


def _far(got: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor]) -> float:
    """The larger error of y and h_n; infinite where one is not finite and the other is."""
    found = 0.0
    for a, b in zip(got, want, strict=True):
        if a.shape != b.shape or a.dtype is not b.dtype or not torch.equal(a.isfinite(), b.isfinite()):
            return torch.inf
        a, b = (t[b.isfinite()].double() for t in (a, b))
        if b.numel() and b.any():
            found = max(found, float((a - b).norm() / b.norm()))
    return found


def _calls(numbers: random.Random) -> list[str]:
    layer, dtype = _drawn(numbers).eval(), numbers.choice(["int8", "bf16"])
    quantized = layer.quantize(dtype)  # type: ignore[arg-type]
    again, rounded = _again(numbers, layer, quantized), quantized.dequantize()
    found = []
    for _ in range(3):
        arguments, call = call_of(numbers, layer)
        what = f"{quantized!r} with {told(arguments)}, {told(call)}"
        with torch.no_grad():
            results = [_outcome(each, arguments, call) for each in (quantized, again, rounded, layer)]
        got, same, exact, unrounded = results
        if isinstance(got, Exception):
            if not _is_named(got):
                found.append(f"{type(got).__name__}: {got}: {what}")
            elif not isinstance(unrounded, Exception) and "takes float32 on the CPU" not in str(got):
                found.append(f"only the quantised layer raises {type(got).__name__}: {got}: {what}")
            continue
        if isinstance(unrounded, Exception):
            found.append(f"only the float layer raises {type(unrounded).__name__}: {unrounded}: {what}")
            continue
        if not all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(got, same, strict=True)):
            found.append(f"other bits after a copy: {what}")
        for limit, want in ((NEAR_ROUNDED[dtype], exact), (NEAR_FLOAT[dtype], unrounded)):
            if (error := _far(got, want)) > limit:
                found.append(f"far: {error:.1e}, expected {limit:.0e}: {what}")
    x = torch.randn(3, 2, layer.input_size, requires_grad=numbers.random() < 0.5)
    try:
        (quantized if x.requires_grad else quantized.train())(x.transpose(0, 1) if layer.batch_first else x)
        found.append(f"trained: {quantized!r}")
    except InputError as error:
        if "is for inference" not in str(error):
            found.append(f"another message: {error}: {quantized!r}")
    return found


def _outcome(layer: Any, arguments: list[Any], call: dict[str, Any]) -> Any:
    try:
        return layer(*arguments, **call)
    except Exception as error:
        return error


def _is_named(error: Exception) -> bool:
    return isinstance(error, NAMED) or (isinstance(error, RuntimeError) and REFUSED in str(error))


def one(seed: int) -> list[str]:
    """The failures with a seed."""
    torch.manual_seed(seed)
    numbers = random.Random(seed)
    return [f"{failure}\n    quantised.one({seed})" for failure in _refusals(numbers) + _calls(numbers)]
