"""Random programs that use a GRU: statements that mean the same to torch.nn.GRU and to ours. Half of them are wrong.

A statement may set `out`, which is what the two are compared by. Names that it may use are those of `namespace`.
"""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

import grucore

PREAMBLE = '''\
import copy, io, pickle
import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, PackedSequence
from torch.utils.checkpoint import checkpoint

def r(seed, *shape, dtype=torch.float32, **options):
    """Random numbers, the same in every run."""
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return numbers.to(dtype).requires_grad_(options.get("grad", False))

def state(gru):
    """All that is kept of a layer."""
    return [(name, p, p.grad, p.requires_grad) for name, p in gru.named_parameters()], gru.training
'''


def namespace(ours: bool, backend: str) -> dict[str, Any]:
    """What a program begins with: GRU is torch.nn's or ours, and Other the other one."""
    names: dict[str, Any] = {}
    exec(PREAMBLE, names)

    layer = grucore.GRU if backend == "auto" else functools.partial(grucore.GRU, backend=backend)
    names["GRU"], names["Other"] = (layer, nn.GRU) if ours else (nn.GRU, layer)
    names["packed"] = grucore.GRU.packed_weights if ours else lambda gru: contextlib.nullcontext()
    return names


@dataclass
class Layer:
    """What a program knows of its layer, so that a call of it can be right."""

    I: int  # noqa: E741
    H: int
    layers: int
    two_way: bool
    bias: bool
    batch_first: bool
    dtype: str = "torch.float32"

    @property
    def arguments(self) -> str:
        given = f"{self.I}, {self.H}, num_layers={self.layers}, bias={self.bias}, batch_first={self.batch_first}"
        return given + f", bidirectional={self.two_way}" + f", dtype={self.dtype}" * (self.dtype != "torch.float32")

    @property
    def states(self) -> int:
        return self.layers * (1 + self.two_way)

    @property
    def numbers(self) -> str:
        """The end of a call of `r`."""
        return f", dtype={self.dtype}" * (self.dtype != "torch.float32")

    def shape(self, T: int, B: int, features: int | None = None) -> str:
        sizes = (B, T) if self.batch_first else (T, B)
        return ", ".join(map(str, (*sizes, self.I if features is None else features)))


Statement = Callable[[random.Random, Layer], str]


def program(numbers: random.Random) -> list[str]:
    """The statements of one program."""
    dtype = numbers.choice(["torch.float32"] * 3 + ["torch.float64"] * 2 + ["torch.bfloat16"])
    sizes = numbers.choice([1, 2, 3, 5]), numbers.choice([1, 3, 4, 8, 17])
    layer = Layer(*sizes, numbers.choice([1, 1, 2, 3]), *(numbers.random() < p for p in (0.4, 0.8, 0.4)), dtype)
    lines = [f"torch.manual_seed({numbers.randrange(99)}); gru = GRU({layer.arguments}); out = state(gru), repr(gru)"]
    lines += [numbers.choice(numbers.choice([VALID, INVALID]))(numbers, layer) for _ in range(numbers.randint(2, 9))]
    return [*lines, "out = state(gru), repr(gru)"]


def _seed(numbers: random.Random) -> int:
    return numbers.randrange(99)


def _x(n: random.Random, layer: Layer, T: int, B: int, grad: str = "") -> str:
    text = f"r({_seed(n)}, {layer.shape(T, B)}{layer.numbers}{grad})"
    if not grad and n.random() < 0.2:
        first, second, _ = layer.shape(T, B).split(", ")
        return f"r({_seed(n)}, {layer.I}, {second}, {first}{layer.numbers}).permute(2, 1, 0)"
    return text


def _hx(n: random.Random, layer: Layer, B: int) -> str:
    return n.choice(["", f", r({_seed(n)}, {layer.states}, {B}, {layer.H}{layer.numbers})"])


def _call(n: random.Random, layer: Layer, grad: str = "") -> str:
    """The arguments of a call that is right."""
    T, B = n.randint(1, 6), n.randint(1, 4)
    if not grad and n.random() < 0.15:
        hx = n.choice(["", f", r({_seed(n)}, {layer.states}, {layer.H}{layer.numbers})"])
        return f"r({_seed(n)}, {T}, {layer.I}{layer.numbers}){hx}"
    if not grad and n.random() < 0.2:
        lengths = [n.randint(1, T) for _ in range(B)]
        rows = f"r({_seed(n)}, {layer.shape(max(lengths), B)}{layer.numbers})"
        packed = f"pack_padded_sequence({rows}, torch.tensor({lengths}), {layer.batch_first}, enforce_sorted=False)"
        return packed + _hx(n, layer, B)
    return _x(n, layer, T, B, grad) + _hx(n, layer, B)


def called(n: random.Random, layer: Layer) -> str:
    return f"out = gru({_call(n, layer)})"


def named(n: random.Random, layer: Layer) -> str:
    B = n.randint(1, 3)
    return f"out = gru(hx=r(1, {layer.states}, {B}, {layer.H}{layer.numbers}), input={_x(n, layer, 4, B)})"


def no_grad(n: random.Random, layer: Layer) -> str:
    mode = n.choice(["torch.no_grad()", "torch.inference_mode()", "packed(gru)", "torch.no_grad(), packed(gru)"])
    return f"with {mode}: out = gru({_call(n, layer)})"


def autocast(n: random.Random, layer: Layer) -> str:
    return f"with torch.autocast('cpu', torch.bfloat16): out = [t.dtype for t in gru({_x(n, layer, 3, 2)})]"


def backward(n: random.Random, layer: Layer) -> str:
    loss = n.choice(["(y * y).sum()", "h.sum()", "y.sum() + (h * h).sum()", "y[-1].sum()", "y.mean()"])
    head = f"x = {_x(n, layer, n.randint(1, 5), n.randint(1, 3), ', grad=True')}; y, h = gru(x)"
    return f"{head}; ({loss}).float().backward(); out = x.grad, [p.grad for p in gru.parameters()]"


def twice(n: random.Random, layer: Layer) -> str:
    if layer.dtype == "torch.bfloat16":  # which has too few digits for it
        return called(n, layer)
    head = f"x = {_x(n, layer, 3, 2, ', grad=True')}; y, h = gru(x)"
    first = "(d,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)"
    return f"{head}; {first}; out = torch.autograd.grad(d.square().sum(), [x, gru.weight_hh_l0])"


def step(n: random.Random, layer: Layer) -> str:
    kinds = ["SGD(gru.parameters(), 0.1)", "SGD(gru.parameters(), 0.1, momentum=0.9)"]
    if layer.dtype == "torch.float64":  # of a small gradient only the sign would count
        kinds += ["Adam(gru.parameters(), 0.01)", "AdamW(gru.parameters(), 0.01)"]
    kind = n.choice(kinds)
    return (
        f"opt = torch.optim.{kind}; gru({_x(n, layer, 3, 2)})[0].square().sum().backward(); opt.step(); opt.zero_grad()"
    )


def copied(n: random.Random, layer: Layer) -> str:
    how = ["copy.deepcopy(gru)", "pickle.loads(pickle.dumps(gru))" if n.random() < 0.9 else "copy.copy(gru)"]
    return f"gru = {n.choice(how)}; out = state(gru), repr(gru)"


def saved(n: random.Random, layer: Layer) -> str:
    safe = n.choice(["torch.load(file)", "torch.load(file, mmap=False, weights_only=True)"])
    return (
        f"file = io.BytesIO(); torch.save(gru.state_dict(), file); file.seek(0); gru = GRU({layer.arguments}); "
        f"out = str(gru.load_state_dict({safe}, assign={n.random() < 0.3}))"
    )


def from_the_other(n: random.Random, layer: Layer) -> str:
    there = f"torch.manual_seed({_seed(n)}); other = Other({layer.arguments})"
    if n.random() < 0.5:
        return f"{there}; out = str(gru.load_state_dict(other.state_dict()))"
    return (
        f"{there}; other.load_state_dict(gru.state_dict()); gru.load_state_dict(other.state_dict()); out = state(gru)"
    )


def mode(n: random.Random, layer: Layer) -> str:
    return n.choice(["gru.train()", "gru.eval()", "gru.train(False)", "gru.flatten_parameters()", "gru.zero_grad()"])


def converted(n: random.Random, layer: Layer) -> str:
    layer.dtype = n.choice(["torch.float64", "torch.float32", "torch.bfloat16"])
    how = {"torch.float64": "gru.double()", "torch.float32": "gru.float()", "torch.bfloat16": "gru.bfloat16()"}
    return n.choice(
        [f"gru = gru.to({layer.dtype})", f"gru = {how[layer.dtype]}", f"gru.to(r(0, 1, dtype={layer.dtype}))"]
    )


def frozen(n: random.Random, layer: Layer) -> str:
    return n.choice(
        [
            "gru.requires_grad_(False)",
            "gru.requires_grad_(True)",
            "gru.weight_hh_l0.requires_grad_(False)",
            f"gru.weight_ih_l{layer.layers - 1}.requires_grad_(not gru.weight_ih_l{layer.layers - 1}.requires_grad)",
        ]
    )


def written(n: random.Random, layer: Layer) -> str:
    name = n.choice(["weight_ih_l0", "weight_hh_l0", f"weight_hh_l{layer.layers - 1}"])
    return n.choice(
        [
            f"with torch.no_grad(): gru.{name}.mul_(0.5)",
            f"gru.{name}.data = gru.{name}.data * 0.5",
            f"gru.{name} = nn.Parameter(gru.{name}.detach() * 0.5)",
            "gru.reset_parameters() if torch.manual_seed(1) else None; out = state(gru)",
            f"nn.init.orthogonal_(gru.{name}) if gru.{name}.dtype != torch.bfloat16 and torch.manual_seed(1) else None",
            f"gru.{name}.data.copy_(torch.zeros_like(gru.{name}))",
            f"del gru.{name}; gru.{name} = nn.Parameter(r(1, {3 * layer.H}, 1{layer.numbers}))",
        ]
    )


def hooks(n: random.Random, layer: Layer) -> str:
    hook = n.choice(
        [
            "gru.register_forward_hook(lambda m, a, o: (o[0] * 2, o[1]))",
            "gru.register_forward_pre_hook(lambda m, a: (a[0] * 2, *a[1:]))",
            "gru.register_full_backward_hook(lambda m, i, o: (i[0] * 2, *i[1:]))",
            "gru.register_full_backward_pre_hook(lambda m, o: (o[0] * 2, o[1]))",
            "gru.weight_hh_l0.register_hook(lambda g: g * 2)",
            "gru.register_forward_hook(lambda m, a, k, o: (o[0] + len(k), o[1]), with_kwargs=True)",
        ]
    )
    return f"handle = {hook}; {backward(n, layer)}; handle.remove()"


def made_of_others(n: random.Random, layer: Layer) -> str:
    name = n.choice(["weight_hh_l0", "weight_ih_l0"])
    return n.choice(
        [
            f"torch.manual_seed(1); prune.random_unstructured(gru, '{name}', 0.5)",
            f"prune.l1_unstructured(gru, '{name}', 2)",
            f"torch.manual_seed(1); prune.random_unstructured(gru, '{name}', 0.5); prune.remove(gru, '{name}')",
        ]
    )


def functional(n: random.Random, layer: Layer) -> str:
    weights = "{k: v.detach() * 2 for k, v in gru.named_parameters()}"
    loss = "lambda w: functional_call(gru, w, (x,))[0].square().sum()"
    head = f"x = {_x(n, layer, 3, 2)}; w = {weights}"
    return n.choice(
        [
            f"{head}; out = functional_call(gru, w, (x,))",
            f"{head}; out = list(torch.func.grad({loss})(w).values())",
            f"{head}; out = torch.func.jvp(lambda x: gru(x)[0], (x,), (x * 0.5,))",
            f"{head}; out = torch.func.vmap(lambda x: gru(x)[0])(torch.stack([x, x + 1]))",
        ]
    )


def recomputed(n: random.Random, layer: Layer) -> str:
    use = n.choice(["use_reentrant=False", "use_reentrant=True"])
    head = f"x = {_x(n, layer, 3, 2, ', grad=True')}; y, h = checkpoint(gru, x, {use})"
    return f"{head}; (y.sum() + h.sum()).backward(); out = y, h, x.grad"


def compiled(n: random.Random, layer: Layer) -> str:
    if n.random() < 0.98:  # some seconds each
        return called(n, layer)
    return f"torch.compiler.reset(); out = torch.compile(gru, backend='eager')({_x(n, layer, 3, 2)})"


def shared(n: random.Random, layer: Layer) -> str:
    return n.choice(["gru.share_memory()", "gru.apply(lambda m: None)", "gru.half().to(gru.weight_hh_l0.dtype)"])


def questions(n: random.Random, layer: Layer) -> str:
    names = "'mode input_size hidden_size num_layers bias batch_first dropout bidirectional proj_size training'"
    return n.choice(
        [
            f"out = [getattr(gru, name) for name in {names}.split()]",
            "out = [[w.shape for w in group] for group in gru.all_weights]",
            "out = list(gru.state_dict()), [n for n, _ in gru.named_modules()], len(list(gru.buffers()))",
            "out = repr(nn.Sequential(nn.Linear(2, 2), gru)), gru.extra_repr()",
        ]
    )


def in_place(n: random.Random, layer: Layer) -> str:
    head = f"x = {_x(n, layer, 3, 2, ', grad=True')}; v = x * 1; y, h = gru(v)"
    change = n.choice(["v.mul_(2)", "h.mul_(2)", "gru.weight_hh_l0.data.mul_(1)", "y = y.mul(2)"])
    return f"{head}; {change}; (y.sum() + h.sum()).backward(); out = x.grad"


def sparse_use(n: random.Random, layer: Layer) -> str:
    T, B = n.randint(1, 4), n.randint(1, 4)
    return n.choice(
        [
            f"out = gru({_x(n, layer, T, 0)})",
            f"out = gru({_x(n, layer, T, B)}.detach().requires_grad_())[0].requires_grad",
            f"gru({_x(n, layer, T, B)}); gru({_x(n, layer, T + 1, B)}); out = gru({_x(n, layer, T, B + 1)})",
            f"y, h = gru({_x(n, layer, T, B)}); out = gru({_x(n, layer, T, B)}, h)",
            f"y, h = gru({_x(n, layer, T, B)}); out = y.shape, y.is_contiguous(), h.is_contiguous(), y.stride()",
        ]
    )


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
            f"gru.weight_ih_l0.data = torch.zeros(3, 3); out = gru({_x(n, layer, 2, 2)})",
            f"gru.weight_hh_l0.data = gru.weight_hh_l0.data.double(); out = gru({_x(n, layer, 2, 2)})",
            f"del gru.weight_ih_l0; out = gru({_x(n, layer, 2, 2)})",
        ]
    )


def wrong_use(n: random.Random, layer: Layer) -> str:
    x = _x(n, layer, 3, 2, ", grad=True")
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


VALID: list[Statement] = [called, called, named, no_grad, no_grad, autocast, backward, backward, backward, twice, step]
VALID += [step, copied, saved, from_the_other, mode, mode, converted, frozen, written, hooks, made_of_others]
VALID += [functional, recomputed, compiled, shared, questions, in_place, sparse_use]
INVALID: list[Statement] = [wrong_input] * 4 + [wrong_state] * 3 + [wrong_layer] * 2 + [wrong_weights, wrong_use] * 2
