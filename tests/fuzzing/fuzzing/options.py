"""Calls with lengths, masks, resets and options, most of them wrong: errors are clear, and no argument changes."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grucore import GRU, GRUCell, gru, gru_cell, truncated_bptt

NAMED = (ValueError, TypeError, NotImplementedError)  # an InputError is a ValueError; the last is PyTorch's
REFUSED = "cannot run: "  # what a RuntimeError of an explicit backend says
OPTIONS: dict[str, list[Any]] = {
    "num_layers": [1, 2, 3, 0, -1, 1.0, True, "2", None],
    "bias": [True, False, 1, None, "no"],
    "batch_first": [True, False, 0],
    "dropout": [0.0, 1, -0.1, 2, float("nan"), "0", None],
    "bidirectional": [True, False, "yes"],
    "reset_after": [True, False, None],
    "heads": [1, 2, 4, 3, 0, True, 2.0, None],
    "recurrent_dropout": [0.0, 0.5, 1.0, 1.5],
    "zoneout": [0.0, 0.5, 1.0, -1],
    "layer_norm": [True, False, 1],
    "learn_initial_state": [True, False],
    "activation": ["tanh", "relu", "linear", "softsign", "gelu", None, torch.tanh, ["tanh"]],
    "recurrent_activation": ["sigmoid", "hard_sigmoid", "", 3],
    "precision": [None, "ieee", "tf32", "bf16"],
    "backend": ["auto", "eager", "native", "reference", "triton", "cuda", None],
    "dtype": [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64],
    "proj_size": [0, 1],
}
WRONG_VALUES: list[Any] = [None, 0, -1, 1.5, "text", [], [1], (), {}, True, torch.tensor(1), np.ones(2), object()]


def _one(numbers: random.Random) -> list[str]:
    """The failures of some calls of one layer."""
    chosen = {name: numbers.choice(values) for name, values in OPTIONS.items() if numbers.random() < 0.2}
    sizes = numbers.choice([1, 3, 8]), numbers.choice([1, 4, 17])
    found = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of dropout
            layer = GRU(*sizes, **chosen)
    except Exception as error:
        return _named(error, f"GRU{sizes} with {chosen}")
    before = [p.detach().clone() for p in layer.parameters()]
    for _ in range(3):
        name, function = numbers.choice(list(CALLS.items()))
        arguments, call = call_of(numbers, layer)
        what = f"{name} of {layer!r} ({layer.weight_ih_l0.dtype}) with {told(arguments)}, {told(call)}"
        kept = [t.clone() for t in (*arguments, *call.values()) if isinstance(t, Tensor)]
        try:
            _check(function(layer, arguments, call), layer)
        except Exception as error:
            found += _named(error, what)
        same = zip(kept, (t for t in (*arguments, *call.values()) if isinstance(t, Tensor)), strict=True)
        if not all(a.is_meta or torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in same):
            found.append(f"an argument was written to: {what}")
    if not all(torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True)):
        found.append(f"a parameter was written to: {chosen}")
    return found


def call_of(numbers: random.Random, layer: GRU) -> tuple[list[Any], dict[str, Any]]:
    """Arguments of `forward`: correct ones, of which up to two are then made wrong."""
    T, B, K = numbers.randint(0, 5), numbers.randint(0, 4), layer.num_layers * layer.num_directions
    dtype, steps = layer.weight_ih_l0.dtype, (B, T) if layer.batch_first else (T, B)
    x = torch.randn(*steps, layer.input_size).to(dtype)
    arguments: list[Any] = [x, *([torch.randn(K, B, layer.hidden_size).to(dtype)] if numbers.random() < 0.5 else [])]
    call: dict[str, Any] = {}
    if numbers.random() < 0.4:
        lengths = torch.randint(T + 1, (B,))
        call["lengths"] = numbers.choice([lengths, lengths.int(), lengths.tolist(), tuple(lengths.tolist())])
    elif numbers.random() < 0.5:
        call["mask"] = torch.rand(steps) < 0.6
    if numbers.random() < 0.4:
        call["reset"] = torch.rand(steps) < 0.3
        if numbers.random() < 0.5 and not layer.bidirectional:
            call["reset_state"] = torch.randn(K, B, layer.hidden_size).to(dtype)
    for _ in range(numbers.choice([0, 0, 1, 1, 2])):
        place = numbers.choice([*range(len(arguments)), *call, "lengths", "mask", "reset", "reset_state"])
        value = arguments[place] if isinstance(place, int) else call.get(place)
        value = _wrong(numbers, value)
        if isinstance(place, int):
            arguments[place] = value
        else:
            call[place] = value
    return arguments, call


def _wrong(numbers: random.Random, value: Any) -> Any:
    """A wrong value for an argument."""
    if not isinstance(value, Tensor) or numbers.random() < 0.3:
        return numbers.choice(WRONG_VALUES)
    changes: list[Callable[[Tensor], Any]] = [
        lambda t: t.unsqueeze(0),
        lambda t: t[..., :-1] if t.dim() and t.shape[-1] else t,
        lambda t: t.reshape(-1),
        lambda t: t.double(),
        lambda t: t.long(),
        lambda t: t.bool(),
        lambda t: t.to(torch.complex64),
        lambda t: t + 100,
        lambda t: -t.long() - 1,
        lambda t: t.to("meta"),
        lambda t: t.numpy() if t.dtype is not torch.bfloat16 else t,
        lambda t: t.tolist(),
        lambda t: torch.cat([t, t]) if t.dim() else t,
        lambda t: t.transpose(0, -1) if t.dim() else t,
    ]
    return numbers.choice(changes)(value)


CALLS: dict[str, Callable[[GRU, list[Any], dict[str, Any]], Any]] = {
    "forward": lambda layer, arguments, call: layer(*arguments, **call),
    "trace": lambda layer, arguments, call: layer.trace(*arguments, **call)[:2],
    "explain_backend": lambda layer, arguments, call: layer.explain_backend(*arguments, **call),
    "step": lambda layer, arguments, _: layer.step(*arguments),
    "a step": lambda layer, arguments, _: layer.step(
        *(a[0] if isinstance(a, Tensor) and len(a) else a for a in arguments[:1]), *arguments[1:]
    ),
    "gru": lambda layer, arguments, call: gru(*arguments[:1], (arguments[1:] or [None])[0], layer.all_weights, **call),
    "gru_cell": lambda layer, arguments, _: gru_cell(
        *arguments[:1], (arguments[1:] or [None])[0], *layer.all_weights[0]
    ),
    "truncated_bptt": lambda layer, arguments, call: [
        part[1:] for part in truncated_bptt(layer, *arguments, steps=2, **call)
    ][-1:],
    "final_state": lambda layer, arguments, _: layer.final_state(arguments[-1]),
    "GRUCell": lambda layer, arguments, _: GRUCell(layer.input_size, layer.hidden_size)(*arguments),
}


def _check(result: Any, layer: GRU) -> None:
    """Checks that computed results are finite."""
    for t in result if isinstance(result, tuple) else (result,):
        if isinstance(t, Tensor) and t.is_floating_point() and not t.is_meta and layer.activation == "tanh":
            assert t.shape[-1] % layer.hidden_size == 0, "a shape that is none of the layer's"


def _named(error: Exception, what: str) -> list[str]:
    if isinstance(error, NAMED) or (isinstance(error, RuntimeError) and REFUSED in str(error)):
        return []
    return [f"{type(error).__name__}: {error}: {what}"]


def told(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{tuple(value.shape)}" + ":meta" * value.is_meta
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}={told(each)}" for name, each in value.items()) + "}"
    return "[" + ", ".join(map(told, value)) + "]" if isinstance(value, list) else repr(value)


def one(seed: int) -> list[str]:
    """The failures with a seed."""
    torch.manual_seed(seed)
    return [f"{failure}\n    options.one({seed})" for failure in _one(random.Random(seed))]
