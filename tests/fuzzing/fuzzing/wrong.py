"""Statements that are wrong: the same class of error from both layers, or the same result."""

from __future__ import annotations

import random

from .layer import Layer, Statement, x_for


def wrong_input(n: random.Random, layer: Layer) -> str:
    other = {"torch.float32": "torch.float64", "torch.float64": "torch.float32", "torch.bfloat16": "torch.float32"}
    T, B, I, H, s = n.randint(1, 4), n.randint(1, 3), layer.I, layer.H, layer.numbers  # noqa: E741
    x, K = f"r(1, {layer.shape(T, B)}{s})", layer.states
    return n.choice(
        [
            f"out = gru(r(1, {layer.shape(T, B, I + 1)}{s}))",
            f"out = gru(r(1, {layer.shape(T, B, 0)}{s}))",
            f"out = gru(r(1, {I}{s}))",
            f"out = gru(r(1, 2, {layer.shape(T, B)}{s}))",
            f"out = gru(torch.tensor(1.0{s}))",
            f"out = gru({x}.to({other[layer.dtype]}))",
            f"out = gru({x}.long())",
            f"out = gru({x}.to(torch.complex64))",
            f"out = gru({x}.bool())",
            f"out = gru({x}.to('meta'))",
            f"out = gru({x}.to_sparse())",
            f"out = gru({x}.float().numpy())",
            f"out = gru({x}.tolist())",
            "out = gru(None)",
            "out = gru()",
            "out = gru('x')",
            f"out = gru({x}, None, None)",
            f"out = gru({x}, state=None)",
            f"out = gru(({x},))",
            f"out = gru(pack_sequence([r(1, 2, {I + 1}{s})]))",
            f"out = gru(pack_sequence([r(1, 2, {I}, 1{s})]))",
            f"out = gru(pack_sequence([r(1, 2, {I}{s})]).to({other[layer.dtype]}))",
            f"out = gru(pack_sequence([r(1, 2, {I}{s})]), r(1, {K}, 2, {H}{s}))",
            f"out = gru(pack_sequence([r(1, 2, {I}{s})]), r(1, {K}, {H}{s}))",
            f"out = gru(pack_sequence([r(1, 1, {I}{s}), r(1, 2, {I}{s})], enforce_sorted=False), r(1, {K}, 1, {H}{s}))",
        ]
    )


def wrong_state(n: random.Random, layer: Layer) -> str:
    T, B, H, K, s = n.randint(1, 4), n.randint(1, 3), layer.H, layer.states, layer.numbers
    x = f"r(1, {layer.shape(T, B)}{s})"
    hx = n.choice(
        [
            f"r(1, {K}, {B + 1}, {H}{s})",
            f"r(1, {K + 1}, {B}, {H}{s})",
            f"r(1, {K}, {B}, {H + 1}{s})",
            f"r(1, {K}, {H}{s})",
            f"r(1, {B}, {K}, {H}, 1{s})",
            f"r(1, {H}{s})",
            f"r(1, {K}, 0, {H}{s})",
            f"r(1, {K}, {B}, {H}{s}).long()",
            f"r(1, {K}, {B}, {H}{s}).to(torch.complex64)",
            f"r(1, {K}, {B}, {H}{s}).to('meta')",
            f"r(1, {K}, {B}, {H}{s}).tolist()",
            f"(r(1, {K}, {B}, {H}{s}),)",
            "0",
            "'h'",
        ]
    )
    return f"out = gru({x}, {hx})"


def wrong_layer(n: random.Random, layer: Layer) -> str:
    return (
        "other = GRU("
        + n.choice(
            [
                "0, 4",
                "3, 0",
                "-1, 4",
                "3, -1",
                "3.0, 4",
                "3, 4.0",
                "'3', 4",
                "3",
                "",
                "3, 4, 0",
                "3, 4, -1",
                "3, 4, 1.5",
                "3, 4, num_layers='2'",
                "3, 4, dropout=2",
                "3, 4, dropout=-0.1",
                "3, 4, dropout=True",
                "3, 4, dropout='0.1'",
                "3, 4, dropout=None",
                "3, 4, proj_size=2",
                "3, 4, proj_size=-1",
                "3, 4, unknown=1",
                "3, 4, device='nowhere'",
                "3, 4, dtype=torch.int64",
                "3, 4, dtype='float32'",
                "None, 4",
                "3, [4]",
            ]
        )
        + ")"
    )


def wrong_weights(n: random.Random, layer: Layer) -> str:
    own = "sd = gru.state_dict()"
    return n.choice(
        [
            f"{own}; del sd['weight_hh_l0']; out = str(gru.load_state_dict(sd))",
            f"{own}; sd['more'] = r(1, 2); out = str(gru.load_state_dict(sd))",
            f"{own}; sd['more'] = r(1, 2); del sd['weight_hh_l0']; out = str(gru.load_state_dict(sd, strict=False))",
            f"{own}; sd['weight_hh_l0'] = r(1, 2, 2); out = str(gru.load_state_dict(sd))",
            f"{own}; sd['weight_hh_l0'] = 3; out = str(gru.load_state_dict(sd))",
            "gru.load_state_dict([])",
            "gru.load_state_dict(None)",
            f"gru.weight_ih_l0.data = torch.zeros(3, 3); out = gru({x_for(n, layer, 2, 2)})",
            f"gru.weight_hh_l0.data = gru.weight_hh_l0.data.double(); out = gru({x_for(n, layer, 2, 2)})",
            f"del gru.weight_ih_l0; out = gru({x_for(n, layer, 2, 2)})",
        ]
    )


def wrong_use(n: random.Random, layer: Layer) -> str:
    x = x_for(n, layer, 3, 2, ", grad=True")
    return n.choice(
        [
            f"y, h = gru({x}); y.backward()",
            f"y, h = gru({x}); y.sum().backward(); y.sum().backward()",
            f"y, h = gru({x}); gru.weight_hh_l0.data; h.sum().backward(); out = gru.weight_ih_l0.grad",
            f"y, h = gru({x}); exec('with torch.no_grad(): gru.weight_hh_l0.mul_(2)'); y.sum().backward()",
            f"with torch.no_grad(): y, h = gru({x})\ny.sum().backward()",
            f"with torch.inference_mode(): y, h = gru({x})\n(y * r(1, 1, grad=True).to(y.dtype)).sum().backward()",
            f"x = {x}; y, h = gru(x); torch.autograd.grad(y.sum(), [r(1, 2, grad=True)])",
            "gru.to('nowhere')",
            "gru.to(torch.int64)",
            "gru.train('yes')",
            "gru.flatten_parameters(1)",
            "gru.no_such_method()",
            "prune.random_unstructured(gru, 'no_such_weight', 0.5)",
            "checkpoint(gru, use_reentrant=False)",
            "torch.jit.script(gru).code if False else gru.extra_repr(1)",
        ]
    )


INVALID: list[Statement] = [wrong_input] * 4 + [wrong_state] * 3 + [wrong_layer] * 2 + [wrong_weights, wrong_use] * 2
