"""Heads: a layer whose recurrent weights are block-diagonal, against torch.nn.GRU with that matrix, in float64."""

import copy
import math

import pytest
import torch
from contract import Case, flags_of, nn_gru
from oracle import FUSED_LIMITS, LIMITS, assert_near, quantity
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.utils.flop_counter import FlopCounterMode

from grucore import GRU, GRUCell, InputError, dispatch, gru, gru_cell, truncated_bptt
from grucore.kernels import Form, State, Weights, reference
from grucore.kernels.native.library import UNAVAILABLE

f64 = torch.float64
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # of the fused kernels
native = pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))


def dense(w_hh):
    """The matrix (3H, H) of the blocks (n, 3H/n, H/n): that of each gate has a block of each head."""
    return torch.cat([torch.block_diag(*(head.chunk(3)[gate] for head in w_hh)) for gate in range(3)])


def dense_stack(layer, parameters, x, hx, steps, h_reset):
    """y and h_n of torch.nn.GRU, layer by layer, from parameters with heads; of the other form, of the equations."""
    run = nn_gru if layer.reset_after else reference.gru_layer
    D, h_ns = layer.num_directions, []
    for k in range(layer.num_layers):
        groups = []
        for suffix in (f"_l{k}", f"_l{k}_reverse")[:D]:
            w_ih, w_hh = parameters["weight_ih" + suffix], dense(parameters["weight_hh" + suffix])
            biases = [parameters.get(name + suffix, w_ih.new_zeros(len(w_ih))) for name in ("bias_ih", "bias_hh")]
            groups.append((w_ih, w_hh, *biases))
        these = slice(k * D, (k + 1) * D)
        state = State(hx[these], None if h_reset is None else h_reset[these])
        weights = Weights(*(torch.stack(each) for each in zip(*groups, strict=True)))
        x, h_n, *_ = run(x, state, weights, steps, Form(layer.reset_after))
        h_ns.append(h_n)
    return x, torch.cat(h_ns)


# Sizes T, B, I, H; the layer's options; flags, in the words of `contract.flags_of`.
CASES = {
    "two heads": ((6, 3, 4, 8), {"heads": 2}, ""),
    "heads of one unit": ((6, 3, 4, 5), {"heads": 5}, ""),
    "heads of a vector": ((5, 9, 3, 64), {"heads": 2, "bidirectional": True}, ""),
    "three heads, stacked": ((7, 5, 4, 15), {"heads": 3, "num_layers": 2, "bidirectional": True}, "lengths"),
    "without biases": ((6, 4, 3, 12), {"heads": 3, "num_layers": 2, "bias": False}, "left"),
    "gaps and resets": ((9, 5, 3, 34), {"heads": 2, "num_layers": 2, "bidirectional": True}, "gaps resets"),
    "a state to reset to": ((9, 5, 3, 9), {"heads": 3, "num_layers": 2}, "lengths resets state"),
    "all padding": ((4, 3, 3, 8), {"heads": 4, "bidirectional": True}, "padding"),
    "reset before": ((6, 9, 4, 12), {"heads": 3, "num_layers": 2, "reset_after": False}, "gaps resets"),
    "reset before, two-way": ((6, 3, 4, 8), {"heads": 2, "reset_after": False, "bidirectional": True}, ""),
}
IN_SECONDS = ("three heads, stacked", "gaps and resets", "heads of one unit")  # in Triton's interpreter
BACKENDS = {"reference": f64, "eager": f64, "auto": f64, "native": torch.float32, "triton": torch.float32}


def cases():
    for backend, dtype in BACKENDS.items():
        for title, case in CASES.items():
            if backend == "triton" and not case[1].get("reset_after", True):
                continue
            marks = [native] if backend == "native" else []
            marks += [pytest.mark.gpu] * (backend == "triton" and DEVICE == "cuda")
            marks += [pytest.mark.slow] * (backend == "triton" and title != "two heads")
            marks += [pytest.mark.exhaustive] * (backend == "triton" and title in IN_SECONDS)
            yield pytest.param(backend, dtype, *case, id=f"{backend}-{title}", marks=marks)


@pytest.mark.parametrize("backend, dtype, sizes, options, words", list(cases()))
def test_equals_nn_gru_with_the_block_diagonal_matrix(backend, dtype, sizes, options, words):
    """Outputs and all gradients."""
    T, B, I, H = sizes  # noqa: E741
    device, limits = (DEVICE, FUSED_LIMITS) if backend == "triton" else ("cpu", LIMITS)
    layer = GRU(I, H, **options, dtype=dtype, backend=backend, precision="ieee")
    steps = flags_of(Case(T=T, B=B, flags=words))
    K = layer.num_layers * layer.num_directions
    tensors = {"dx": torch.randn(T, B, I), "dh0": torch.randn(K, B, H)}
    tensors |= {"reset_state": torch.randn(K, B, H)} if "state" in words else {}
    tensors |= {name: p.detach() for name, p in layer.named_parameters()}
    dy, dh_n = torch.randn(T, B, layer.num_directions * H), torch.randn(K, B, H)
    if steps.real is not None:
        dy = dy.masked_fill(~steps.real.unsqueeze(-1), 0)
    layer.to(device)

    def ours(parameters, x, hx, h_reset):
        flags = {"mask": steps.real, "reset": steps.start, "reset_state": h_reset}
        flags = {name: None if flag is None else flag.to(device) for name, flag in flags.items()}
        return functional_call(layer, parameters, (x, hx), flags)

    def oracle(parameters, x, hx, h_reset):
        return dense_stack(layer, parameters, x, hx, steps, h_reset)

    names, results = set(dict(layer.named_parameters())), []
    for run, kind, where in ((ours, dtype, device), (oracle, f64, "cpu")):
        leaves = {name: t.to(where, kind).requires_grad_() for name, t in tensors.items()}
        parameters = {name: leaf for name, leaf in leaves.items() if name in names}
        y, h_n = run(parameters, leaves["dx"], leaves["dh0"], leaves.get("reset_state"))
        ends = [dy.to(where, kind), dh_n.to(where, kind)]
        inputs = list(leaves.values())
        nothing = sum(0 * t.sum() for t in inputs)  # so that all have a gradient
        gradients = torch.autograd.grad([y + nothing, h_n + nothing], inputs, ends)
        results.append({"y": y, "h_n": h_n} | dict(zip(leaves, gradients, strict=True)))
    got, want = results
    for name in got:
        kind = {"y": "output", "h_n": "output", "dx": "dx", "dh0": "dh0", "reset_state": "dh0"}.get(name)
        assert_near(kind or quantity(name), got[name].cpu(), want[name], limits)


def flashrnn(layer, x, hx):
    """y and h_n of FlashRNN's plain GRU, batch first; gates are n, r, z on the hidden side, r, z, n on the input's."""
    run = pytest.importorskip("flashrnn.flashrnn").flashrnn
    heads, units = layer.heads, layer.hidden_size // layer.heads
    w_ih, w_hh, b_ih, b_hh = layer.all_weights[0]
    gx = (x.transpose(0, 1) @ w_ih.t()).unflatten(-1, (3, heads, units))
    r, z, n = w_hh.unflatten(1, (3, units)).unbind(1)
    (b_ir, b_iz, b_in), (b_hr, b_hz, b_hn) = (b.view(3, heads, units) for b in (b_ih, b_hh))
    b = torch.stack([b_hn, b_ir + b_hr, b_iz + b_hz, b_in])
    states = hx.view(1, x.shape[1], 1, heads, units)
    y, h_n = run(gx, torch.stack([n, r, z]), b, states=states, function="gru", backend="vanilla", dtype="float64")
    return y[0].flatten(2).transpose(0, 1), h_n[0].flatten(2).transpose(0, 1)


def test_equals_flashrnn():
    """Outputs and all gradients of another library's heads."""
    layer = GRU(3, 12, heads=3, dtype=f64)
    x, hx = torch.randn(5, 4, 3, dtype=f64, requires_grad=True), torch.randn(1, 4, 12, dtype=f64, requires_grad=True)
    inputs, results = [x, hx, *layer.parameters()], []
    for y, h_n in (layer(x, hx), flashrnn(layer, x, hx)):
        results.append([y, h_n, *torch.autograd.grad(y.sin().sum() + h_n.square().sum(), inputs)])
    for name, got, want in zip(("output", "output", "dx", "dh0", "dw", "dw", "db", "db"), *results, strict=True):
        assert_near(name, got, want)


@pytest.mark.parametrize("reset_after", [True, False], ids=["after", "before"])
def test_cells_and_steps(reset_after):
    """Checks one row and several, with and without gradients; a cell computes one step of a layer."""
    layer = GRU(3, 8, num_layers=2, heads=4, reset_after=reset_after, dtype=f64)
    cell = GRUCell(3, 8, heads=4, reset_after=reset_after, dtype=f64)
    cell.load_state_dict({name.removesuffix("_l0"): p for name, p in layer.state_dict().items() if "_l0" in name})
    x, h = torch.randn(5, 2, 3, dtype=f64), None
    want, h_want = layer(x)
    first, h_first = layer.trace(x).layers[0], None
    for t in range(5):
        y, h = layer.step(x[t], h)
        h_first = cell(x[t], h_first)
        assert_near("output", y, want[t])
        assert_near("output", h_first, first[t])
    assert_near("output", h, h_want)
    with torch.no_grad():
        h = None
        for t in range(5):
            y, h = layer.step(x[t], h)
            assert_near("output", y, want[t])
        assert_near("output", layer.step(x[0, 0])[0], want[0, 0])
        for rows in (x[0], x[0, 0], x[0, :0]):
            assert_near("output", cell(rows), cell.to_dense()(rows))
    weights = cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh
    options = {"heads": 4, "reset_after": reset_after}
    assert torch.equal(gru_cell(x[0], torch.zeros(2, 8, dtype=f64), *weights, **options), cell(x[0]))
    assert torch.equal(gru(x, None, layer.all_weights, **options)[0], want)
    if reset_after:
        oracle = nn.GRUCell(3, 8, dtype=f64)
        state = cell.state_dict()
        oracle.load_state_dict(state | {"weight_hh": dense(state["weight_hh"])})
        assert_near("output", cell(x[1], first[0]), oracle(x[1], first[0]))


@pytest.mark.parametrize("options", [{"recurrent_dropout": 0.4}, {"zoneout": 0.3}, {"activation": "relu"}], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_options_that_regularise(options, training, monkeypatch):
    """The native kernels' masks are those of the equations, and differ from head to head."""
    layer = GRU(3, 40, num_layers=2, bidirectional=True, heads=2, dtype=f64, **options).train(training)
    x, lengths, results = torch.randn(7, 3, 3, dtype=f64), torch.tensor([7, 0, 4]), []
    for _ in range(2):
        torch.manual_seed(5)
        y, h_n = layer(x, lengths=lengths)
        results.append([y, h_n, *torch.autograd.grad(y.sum() + h_n.sum(), list(layer.parameters()))])
        monkeypatch.setattr(dispatch, "NO_NATIVE", "as on other processors")
    acts = training or "recurrent_dropout" not in options
    assert layer.explain_backend(x).name == ("regularised" if acts else "eager")
    for name, got, want in zip(["output", "output", *["dw"] * len(list(layer.parameters()))], *results, strict=True):
        assert_near(name, got, want)
    if training and "recurrent_dropout" in options:
        one = GRU(3, 40, heads=2, **options)
        one(torch.randn(4, 1, 3))[0].sum().backward()
        first, second = (head.abs().sum(0) == 0 for head in one.weight_hh_l0.grad)  # units that were dropped
        assert first.any() and second.any() and not torch.equal(first, second)


def test_layer_normalisation_is_of_each_head():
    """So that a layer of n heads is n layers side by side."""
    layer = GRU(3, 12, heads=3, layer_norm=True, dtype=f64)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    x, outputs = torch.randn(5, 2, 3, dtype=f64), []
    for head in range(3):
        one = GRU(3, 4, layer_norm=True, dtype=f64)
        for name, p in one.named_parameters():
            whole = getattr(layer, name).detach()
            own = whole[head] if name == "weight_hh_l0" else whole.unflatten(0, (3, 3, 4))[:, head].flatten(0, 1)
            p.data = own
        outputs.append(one(x)[0])
    assert_near("output", layer(x)[0], torch.cat(outputs, -1))


@native
@pytest.mark.parametrize("heads", [2, 3, 8])
def test_threads_change_no_bit(heads):
    layer, results = GRU(33, 24 * heads, heads=heads, bidirectional=True, backend="native"), []
    x = torch.randn(12, 40, 33, requires_grad=True)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 4, 7, 16):
            torch.set_num_threads(threads)
            y, h_n = layer(x)
            results.append([y, h_n, *torch.autograd.grad(y.sin().sum(), [x, *layer.parameters()])])
    finally:
        torch.set_num_threads(before)
    for got in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(got, results[0], strict=True))


def test_one_head_is_the_layer_without():
    torch.manual_seed(3)
    plain = GRU(3, 4, num_layers=2)
    torch.manual_seed(3)
    one = GRU(3, 4, num_layers=2, heads=1)
    assert repr(one) == "GRU(3, 4, num_layers=2)" and GRUCell(3, 4, heads=1).weight_hh.shape == (12, 4)
    for (name, p), (same, q) in zip(plain.state_dict().items(), one.state_dict().items(), strict=True):
        assert name == same and torch.equal(p, q)


def test_parameters():
    layer = GRU(30, 64, num_layers=2, heads=16)
    assert layer.weight_hh_l1.shape == (16, 12, 4) and layer.weight_ih_l1.shape == (192, 64)
    assert GRUCell(30, 64, heads=16).weight_hh.shape == (16, 12, 4)
    assert repr(layer) == "GRU(30, 64, num_layers=2, heads=16)"
    for module in (layer, GRUCell(30, 64, heads=16)):
        for name, p in module.named_parameters():
            bound = math.sqrt((16 if "weight_hh" in name else 1) / 64)
            assert 0.9 * bound < p.abs().max() <= bound, "by what a sum is made of: H/heads units of the state"
    again = GRU(30, 64, num_layers=2, heads=16)
    again.load_state_dict(layer.state_dict())
    x = torch.randn(3, 2, 30)
    for same in (again, copy.deepcopy(layer)):
        assert torch.equal(same(x)[0], layer(x)[0])
    with pytest.raises(RuntimeError, match="size mismatch for weight_hh_l0"):
        GRU(30, 64, num_layers=2).load_state_dict(layer.state_dict())


def test_trace_and_what_runs():
    layer = GRU(3, 8, num_layers=2, heads=4, bidirectional=True, dtype=f64)
    x, lengths = torch.randn(5, 3, 3, dtype=f64), torch.tensor([5, 0, 2])
    got, want = layer.trace(x, lengths=lengths), layer.to_dense().trace(x, lengths=lengths)
    for a, b in zip((*got[:2], *got.gates, got.layers), (*want[:2], *want.gates, want.layers), strict=True):
        assert_near("output", a, b)
    assert layer.explain_backend(x).name == ("eager" if UNAVAILABLE else "native")
    assert layer.final_state(got.h_n).shape == (3, 16)


def test_parts_of_a_batch():
    layer = GRU(3, 8, heads=4, dtype=f64)
    x, reset = torch.randn(7, 2, 3, dtype=f64), torch.zeros(7, 2, dtype=torch.bool)
    reset[3, 1] = True
    parts = torch.cat([part.y for part in truncated_bptt(layer, x, steps=3, reset=reset)])
    assert_near("output", parts, layer(x, reset=reset)[0])


def test_without_heads():
    """`to_dense`: every option goes with it, and torch.nn, which has no heads, takes it."""
    options = {"num_layers": 2, "bidirectional": True, "dropout": 0.5, "learn_initial_state": True, "zoneout": 0.1}
    layer = GRU(3, 8, heads=4, **options, dtype=f64).eval()
    nn.init.normal_(layer.initial_state)
    layer.bias_hh_l0.requires_grad_(False)
    plain, x = layer.to_dense(), torch.randn(5, 2, 3, dtype=f64)
    assert repr(plain) == repr(GRU(3, 8, **options)) and not plain.training and not plain.bias_hh_l0.requires_grad
    for got, want in zip(plain(x), layer(x), strict=True):
        assert_near("output", got, want)
    assert torch.equal(plain.weight_hh_l1, dense(layer.weight_hh_l1))
    cell, h = GRUCell(3, 8, heads=4, dtype=f64), torch.randn(2, 8, dtype=f64)
    assert_near("output", cell.to_dense().to_torch()(x[0], h), cell(x[0], h))
    same = GRU(3, 8, layer_norm=True)
    assert torch.equal(same.to_dense().weight_hh_l0, same.weight_hh_l0)
    with pytest.raises(InputError, match="layer_norm normalises each of heads=4"):
        GRU(3, 8, heads=4, layer_norm=True).to_dense()


def test_operations_are_counted():
    """The result equals that of as many torch.nn.GRUs side by side."""
    layer, x, counts = GRU(3, 12, heads=3), torch.randn(5, 2, 3, requires_grad=True), []
    for modules in ([layer], [nn.GRU(3, 4) for _ in range(3)]):
        with FlopCounterMode(display=False) as counter:
            sum(module(x)[0].sum() for module in modules).backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_gradients_of_gradients():
    layer = GRU(2, 6, heads=3, bidirectional=True, dtype=f64)
    x, hx = torch.randn(3, 2, 2, dtype=f64, requires_grad=True), torch.randn(2, 2, 6, dtype=f64, requires_grad=True)
    reset = torch.tensor([[0, 0], [1, 0], [0, 1]], dtype=torch.bool)
    for options in ({}, {"mask": reset.logical_not(), "reset": reset}):
        assert torch.autograd.gradgradcheck(lambda x, hx, o=options: layer(x, hx, **o), (x, hx), fast_mode=True)


def test_torch_func():
    layer, x = GRU(2, 6, heads=3, dtype=f64), torch.randn(3, 4, 2, dtype=f64)
    parameters = dict(layer.named_parameters())

    def loss(parameters, x):
        return functional_call(layer, parameters, x.unsqueeze(1))[0].square().sum()

    per_row = vmap(grad(loss), (None, 1))(parameters, x)
    want = torch.autograd.grad(layer(x)[0].square().sum(), list(parameters.values()))
    for name, got in zip(parameters, want, strict=True):
        assert_near("dw", per_row[name].sum(0), got)


@pytest.mark.slow
def test_compiled_exported_and_traced():
    layer, x = GRU(3, 8, num_layers=2, bidirectional=True, heads=4), torch.randn(5, 2, 3)
    lengths, longer = torch.tensor([5, 2]), torch.randn(9, 2, 3)
    want = layer(longer, lengths=lengths)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for run in (compiled, compiled):
        got = run(longer, lengths=lengths)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b)
    (got[0].sum() + got[1].sum()).backward()
    gradients = [p.grad for p in layer.parameters()]
    wanted = torch.autograd.grad(want[0].sum() + want[1].sum(), list(layer.parameters()))
    for a, b in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(a, b)
    steps = torch.export.Dim("T", min=1, max=1000)
    program = torch.export.export(layer, (x,), dynamic_shapes={"input": {0: steps}}).module()
    traced = torch.jit.trace(layer, (x,))
    for run in (program, traced):
        for a, b in zip(run(longer), layer(longer), strict=True):
            torch.testing.assert_close(a, b)
