"""Correct statements: both layers must give the same result."""

from __future__ import annotations

import random

from .layer import Layer, Statement, arguments_for, seed_in, x_for


def called(n: random.Random, layer: Layer) -> str:
    return f"out = gru({arguments_for(n, layer)})"


def named(n: random.Random, layer: Layer) -> str:
    B = n.randint(1, 3)
    return f"out = gru(hx=r(1, {layer.states}, {B}, {layer.H}{layer.numbers}), input={x_for(n, layer, 4, B)})"


def no_grad(n: random.Random, layer: Layer) -> str:
    kept = ["packed(gru)", "torch.no_grad(), packed(gru)"] if layer.heads == 1 else []
    mode = n.choice(["torch.no_grad()", "torch.inference_mode()", *kept])
    return f"with {mode}: out = gru({arguments_for(n, layer)})"


def autocast(n: random.Random, layer: Layer) -> str:
    return f"with torch.autocast('cpu', torch.bfloat16): out = [t.dtype for t in gru({x_for(n, layer, 3, 2)})]"


def backward(n: random.Random, layer: Layer) -> str:
    loss = n.choice(["(y * y).sum()", "h.sum()", "y.sum() + (h * h).sum()", "y[-1].sum()", "y.mean()"])
    head = f"x = {x_for(n, layer, n.randint(1, 5), n.randint(1, 3), ', grad=True')}; y, h = gru(x)"
    return f"{head}; ({loss}).float().backward(); out = x.grad, [p.grad for p in gru.parameters()]"


def twice(n: random.Random, layer: Layer) -> str:
    if layer.dtype == "torch.bfloat16":  # which has too few digits for it
        return called(n, layer)
    head = f"x = {x_for(n, layer, 3, 2, ', grad=True')}; y, h = gru(x)"
    first = "(d,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)"
    return f"{head}; {first}; out = torch.autograd.grad(d.square().sum(), [x, gru.weight_hh_l0])"


def step(n: random.Random, layer: Layer) -> str:
    kinds = ["SGD(gru.parameters(), 0.1)", "SGD(gru.parameters(), 0.1, momentum=0.9)"]
    if layer.dtype == "torch.float64":  # of a small gradient only the sign would count
        kinds += ["Adam(gru.parameters(), 0.01)", "AdamW(gru.parameters(), 0.01)"]
    kind = n.choice(kinds)
    x = x_for(n, layer, 3, 2)
    return f"opt = torch.optim.{kind}; gru({x})[0].square().sum().backward(); opt.step(); opt.zero_grad()"


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
    there = f"torch.manual_seed({seed_in(n)}); other = Other({layer.arguments})"
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
    head = f"x = {x_for(n, layer, 3, 2)}; w = {weights}"
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
    head = f"x = {x_for(n, layer, 3, 2, ', grad=True')}; y, h = checkpoint(gru, x, {use})"
    return f"{head}; (y.sum() + h.sum()).backward(); out = y, h, x.grad"


def compiled(n: random.Random, layer: Layer) -> str:
    if n.random() < 0.98:  # some seconds each
        return called(n, layer)
    return f"torch.compiler.reset(); out = torch.compile(gru, backend='eager')({x_for(n, layer, 3, 2)})"


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
    head = f"x = {x_for(n, layer, 3, 2, ', grad=True')}; v = x * 1; y, h = gru(v)"
    change = n.choice(["v.mul_(2)", "h.mul_(2)", "gru.weight_hh_l0.data.mul_(1)", "y = y.mul(2)"])
    return f"{head}; {change}; (y.sum() + h.sum()).backward(); out = x.grad"


def sparse_use(n: random.Random, layer: Layer) -> str:
    T, B = n.randint(1, 4), n.randint(1, 4)
    return n.choice(
        [
            f"out = gru({x_for(n, layer, T, 0)})",
            f"out = gru({x_for(n, layer, T, B)}.detach().requires_grad_())[0].requires_grad",
            f"gru({x_for(n, layer, T, B)}); gru({x_for(n, layer, T + 1, B)}); out = gru({x_for(n, layer, T, B + 1)})",
            f"y, h = gru({x_for(n, layer, T, B)}); out = gru({x_for(n, layer, T, B)}, h)",
            f"y, h = gru({x_for(n, layer, T, B)}); out = y.shape, y.is_contiguous(), h.is_contiguous(), y.stride()",
        ]
    )


VALID: list[Statement] = [called, called, named, no_grad, no_grad, autocast, backward, backward, backward, twice, step]
VALID += [step, copied, saved, from_the_other, mode, mode, converted, frozen, written, hooks, made_of_others]
VALID += [functional, recomputed, compiled, shared, questions, in_place, sparse_use]
