"""Quantised layers: what they compute, what they are made of and saved as, and what they refuse."""

import copy
import itertools
import pickle
import warnings

import pytest
import torch
from oracle import rms_error
from safetensors.torch import load, save
from torch import nn
from torch.nn.utils.rnn import pack_sequence, unpack_sequence
from torch.testing._internal.two_tensor import TwoTensor

from grucore import GRU, GRUCell, InputError, QuantizedGRU
from grucore import quantized as module

# RMS error against float64 on the same rounded weights, by what runs; behind it the worst measured.
LIMITS = {
    ("int8", "auto"): 1e-4,  # 3.1e-5
    ("bf16", "auto"): 1e-6,  # 1.9e-7
    ("int8", "eager"): 1e-6,  # 1.1e-7
    ("bf16", "eager"): 1e-6,  # 9.8e-8
}
CASES = {
    "plain": {},
    "no biases": {"bias": False},
    "layers": {"num_layers": 2},
    "both ways": {"bidirectional": True},
    "batch first": {"batch_first": True},
    "reset before": {"reset_after": False},
    "layers, both ways, reset before": {"num_layers": 2, "bidirectional": True, "reset_after": False},
    "a learned state": {"learn_initial_state": True},
}


def exact(quantized: QuantizedGRU) -> GRU:
    """The layer of the rounded weights in float64, step by step by the equations."""
    layer = GRU(
        quantized.input_size,
        quantized.hidden_size,
        quantized.num_layers,
        quantized.bias,
        quantized.batch_first,
        bidirectional=quantized.bidirectional,
        dtype=torch.float64,
        reset_after=quantized.reset_after,
        learn_initial_state=quantized.learn_initial_state,
        backend="reference",
    )
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            tensor = getattr(quantized, name).double()
            if hasattr(quantized, f"{name}_scale"):
                tensor *= getattr(quantized, f"{name}_scale").double().unsqueeze(1)
            parameter.copy_(tensor)
    return layer


def assert_near(got, want, kind):
    for one, other in zip(got, want, strict=True):
        assert rms_error(one, other) <= LIMITS[kind]


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("dtype", ["int8", "bf16"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@torch.no_grad()
def test_it_computes_the_layer_of_the_rounded_weights(case, dtype, backend):
    layer = GRU(7, 20, backend=backend, **case)
    quantized = layer.quantize(dtype)
    x, D, K = torch.randn(9, 5, 7), quantized.num_directions, quantized.num_layers
    x = x.transpose(0, 1) if layer.batch_first else x
    hx, lengths, mask = torch.randn(K * D, 5, 20), torch.tensor([9, 0, 3, 1, 8]), torch.rand(9, 5) < 0.7
    reset = torch.rand(9, 5) < 0.2
    mask, reset = (flag.t() if layer.batch_first else flag for flag in (mask, reset))
    calls = [{}, {"lengths": lengths}, {"mask": mask}, {"reset": reset}, {"mask": mask, "reset": reset}]
    calls += [] if D == 2 else [{"reset": reset, "reset_state": torch.randn(K, 5, 20)}]
    for call, state in itertools.product(calls, (None, hx)):
        got = quantized(x, state, **call)
        doubled = {name: t.double() if t.is_floating_point() else t for name, t in call.items()}
        want = exact(quantized)(x.double(), None if state is None else state.double(), **doubled)
        assert_near(got, want, (dtype, backend))


@pytest.mark.parametrize("dtype", ["int8", "bf16"])
@torch.no_grad()
def test_it_computes_nn_gru(dtype):
    """Whose weights are those of the rounded layer, in every layout that it has."""
    quantized = GRU(7, 20, 2, bidirectional=True).quantize(dtype)
    oracle = exact(quantized).to_torch()
    rows = [torch.randn(T, 7) for T in (4, 9, 1)]
    got, h_n = quantized(pack_sequence(rows, enforce_sorted=False))
    want, h_want = oracle(pack_sequence([row.double() for row in rows], enforce_sorted=False))
    assert_near([*unpack_sequence(got), h_n], [*unpack_sequence(want), h_want], (dtype, "auto"))
    assert_near(quantized(rows[0]), oracle(rows[0].double()), (dtype, "auto"))
    assert rms_error(quantized.final_state(h_n), torch.cat([h_want[-2], h_want[-1]], 1)) <= LIMITS[dtype, "auto"]


@pytest.mark.parametrize("dtype", ["int8", "bf16"])
@torch.no_grad()
def test_steps_are_those_of_a_call(dtype):
    quantized, x, h = GRU(7, 20, 2).quantize(dtype), torch.randn(6, 3, 7), None
    y, h_n = quantized(x)
    for x_t, y_t in zip(x, y, strict=True):
        got, h = quantized.step(x_t, h)
        assert torch.equal(got, y_t)
    assert h.shape == h_n.shape
    row, state = quantized.step(x[0, 0])
    assert row.shape == (20,) and state.shape == (2, 20)
    assert quantized.step(x[0, :0])[1].shape == (2, 0, 20)


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0, 0)], ids=str)
@torch.no_grad()
def test_no_steps_and_no_rows(shape):
    quantized, x, hx = GRU(7, 20).quantize("int8"), torch.randn(*shape, 7), torch.randn(1, shape[1], 20)
    for call in ({}, {"lengths": torch.zeros(shape[1], dtype=torch.long)}):
        y, h_n = quantized(x, hx, **call)
        assert y.shape == (*shape, 20) and torch.equal(h_n, hx)


def test_weights_are_rounded_to_the_nearest():
    layer = GRU(7, 20)
    with torch.no_grad():
        layer.weight_hh_l0[3] = 0
        layer.weight_hh_l0[4] *= 1e-20
        layer.weight_hh_l0[5] *= 1e20
    before, quantized = copy.deepcopy(layer.state_dict()), layer.quantize("int8")
    for name in ("weight_ih_l0", "weight_hh_l0"):
        w, q, scale = before[name].double(), getattr(quantized, name), getattr(quantized, f"{name}_scale").double()
        assert ((w - q * scale[:, None]).abs() <= 0.5001 * scale[:, None]).all()
        largest = q.abs().amax(1)
        assert (largest[w.abs().amax(1) > 0] == 127).all() and not largest[w.abs().amax(1) == 0].any()
    assert torch.equal(layer.quantize("bf16").weight_ih_l0, before["weight_ih_l0"].bfloat16())
    assert not [*quantized.parameters()] and not quantized.training and layer.training
    assert all(torch.equal(layer.state_dict()[name], tensor) for name, tensor in before.items())
    assert torch.equal(quantized.bias_hh_l0, before["bias_hh_l0"])
    assert quantized.bias_hh_l0.data_ptr() != layer.bias_hh_l0.data_ptr()


ROUNDING = {  # times the weights that a layer begins with; the limits, and behind them the worst measured
    1: {"int8": 2e-3, "bf16": 1e-3},  # 9.0e-4 and 4.0e-4
    2: {"int8": 3e-3, "bf16": 2e-3},  # 1.8e-3 and 8.1e-4
    4: {"int8": 8e-3, "bf16": 4e-3},  # 4.7e-3 and 2.1e-3
}


@pytest.mark.parametrize("dtype", ["int8", "bf16"])
@pytest.mark.parametrize("gain", ROUNDING)
@torch.no_grad()
def test_the_error_of_rounding(gain, dtype):
    """RMS over states, which are from -1 to 1, against float64 of the layer before."""
    limit = ROUNDING[gain][dtype]
    layer, x = GRU(64, 128), torch.randn(100, 8, 64)
    for parameter in layer.parameters():
        parameter *= gain
    want = layer.to_torch().double()(x.double())[0]
    error = (layer.quantize(dtype)(x)[0] - want).square().mean().sqrt()
    assert 1e-5 < error <= limit


@torch.no_grad()
def test_copies_and_files_have_the_same_bits(tmp_path):
    for dtype in ("int8", "bf16"):
        quantized, x = GRU(7, 20, 2, bidirectional=True).quantize(dtype), torch.randn(5, 3, 7)
        want = quantized(x)[0]
        torch.save(quantized, tmp_path / "module.pt")
        torch.save(quantized.state_dict(), tmp_path / "state.pt")
        others = [copy.deepcopy(quantized), pickle.loads(pickle.dumps(quantized))]
        others.append(torch.load(tmp_path / "module.pt", weights_only=False))
        for state in (torch.load(tmp_path / "state.pt"), load(save(quantized.state_dict()))):
            others.append(GRU(7, 20, 2, bidirectional=True).quantize(dtype))
            others[-1](x)  # packs what is there before
            others[-1].load_state_dict(state)
        for other in others:
            assert repr(other) == repr(quantized) and torch.equal(other(x)[0], want)


@torch.no_grad()
def test_a_write_is_seen_at_the_next_call():
    quantized, x = GRU(7, 20).quantize("int8"), torch.randn(5, 3, 7)
    before = quantized(x)[0]
    quantized.weight_hh_l0_scale *= 2
    after = quantized(x)[0]
    assert not torch.equal(before, after)
    assert_near([after], [exact(quantized)(x.double())[0]], ("int8", "auto"))
    quantized.bias_ih_l0 = torch.zeros(60)
    assert_near([quantized(x)[0]], [exact(quantized)(x.double())[0]], ("int8", "auto"))
    with torch.inference_mode():
        made = GRU(7, 20).quantize("int8")
        made.load_state_dict(quantized.state_dict())
        assert torch.equal(made(x)[0], quantized(x)[0])
        made(x)
        made.load_state_dict(GRU(7, 20).quantize("int8").state_dict())
        assert not torch.equal(made(x)[0], quantized(x)[0])


@torch.no_grad()
def test_a_copy_of_a_compiled_layer_has_its_own_weights():
    quantized, x = GRU(7, 20).quantize("int8"), torch.randn(5, 3, 7)
    quantized.compile(backend="eager")
    for twin in (copy.deepcopy(quantized), pickle.loads(pickle.dumps(quantized))):
        for buffer in twin.buffers():
            buffer.zero_()
        assert not twin(x)[0].any()


def test_code_for_nn_gru_finds_what_it_calls():
    quantized = GRU(7, 20).quantize("bf16")
    quantized.flatten_parameters()
    assert (quantized.mode, quantized.proj_size) == ("GRU", 0)


@torch.no_grad()
def test_other_buffers_are_never_taken_for_those_before():
    """Buffers of a functional call may get the memory of the ones before."""
    quantized, x = GRU(64, 64).quantize("bf16"), torch.randn(5, 2, 64)
    for value in range(6):
        got = torch.func.functional_call(quantized, {"bias_ih_l0": torch.full((192,), float(value))}, (x,))
        quantized.bias_ih_l0.fill_(value)
        assert_near([got[0]], [exact(quantized)(x.double())[0]], ("bf16", "auto"))


@pytest.mark.parametrize("convert", [lambda layer: layer, lambda layer: layer.cpu()._apply(torch.clone)])
def test_writes_in_inference_mode_are_seen(convert):
    with torch.inference_mode():
        quantized, x = convert(GRU(7, 20).quantize("int8")), torch.randn(5, 3, 7)
        for _ in range(2):
            quantized.bias_ih_l0.add_(1)
            assert_near([quantized(x)[0]], [exact(quantized)(x.double())[0]], ("int8", "auto"))


@torch.no_grad()
def test_back_to_a_float_layer():
    for dtype in ("int8", "bf16"):
        layer = GRU(7, 20, 2, bidirectional=True, dropout=0.3, recurrent_dropout=0.2, learn_initial_state=True)
        quantized = layer.quantize(dtype)
        back, x = quantized.dequantize(), torch.randn(5, 3, 7)
        assert repr(back) == repr(layer) and not back.training
        assert_near(quantized(x), back(x), (dtype, "auto"))
        again = back.quantize(dtype)
        for name, tensor in quantized.state_dict().items():
            close = torch.allclose if name.endswith("scale") else torch.equal
            assert close(tensor, again.state_dict()[name]), name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert repr(GRU(7, 20).quantize("int8").dequantize()) == "GRU(7, 20)"


def test_a_float_layer_takes_bfloat16_weights_as_they_are():
    quantized, layer = GRU(7, 20).quantize("bf16"), GRU(7, 20)
    layer.load_state_dict(quantized.state_dict())
    assert torch.equal(layer.weight_hh_l0, quantized.dequantize().weight_hh_l0)


@torch.no_grad()
def test_what_watches_a_call_sees_the_dequantised_layer():
    quantized, x = GRU(7, 20).quantize("int8"), torch.randn(5, 3, 7)
    want = exact(quantized)(x.double())[0]
    compiled = torch.compile(quantized, fullgraph=True, backend="eager")
    exported = torch.export.export(quantized, (x,)).module()
    batched = torch.func.vmap(lambda x: quantized(x)[0])(x[None])[0]
    for y in (compiled(x)[0], exported(x)[0], batched):
        assert_near([y], [want], ("int8", "eager"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = quantized(x)
        assert y.dtype is torch.float32 and torch.equal(y, quantized(x)[0])
    assert quantized.explain_backend(x).name == ("native" if module.UNAVAILABLE is None else "eager")
    with quantized.packed_weights():
        assert torch.equal(quantized(x)[0], y)


@torch.no_grad()
def test_without_native_kernels(monkeypatch):
    monkeypatch.setattr(module, "UNAVAILABLE", "the native kernels are not built")
    quantized, x = GRU(7, 20).quantize("int8"), torch.randn(5, 3, 7)
    assert quantized.explain_backend(x) == ("eager", "the native kernels are not built")
    assert_near(quantized(x), exact(quantized)(x.double()), ("int8", "eager"))
    with pytest.raises(RuntimeError, match="backend='native' cannot run: the native kernels are not built"):
        GRU(7, 20, backend="native").quantize("int8")(x)


X, QUANTIZED = torch.randn(5, 2, 3), GRU(3, 4).quantize("int8")


def with_nan(name):
    layer = GRU(3, 4)
    with torch.no_grad():
        getattr(layer, name)[2] = torch.nan
    return layer


def training():
    return GRU(3, 4).quantize("int8").train()


REFUSED = {
    "twice": (lambda: QUANTIZED.quantize("bf16"), "is already quantised to int8"),
    "an unknown dtype": (lambda: GRU(3, 4).quantize("int4"), r"must be one of 'int8', 'bf16', got 'int4'"),
    "no text": (lambda: GRU(3, 4).quantize(torch.int8), r"must be one of 'int8', 'bf16', got torch.int8"),
    "layer_norm": (lambda: GRU(3, 4, layer_norm=True).quantize("int8"), "layer_norm=True cannot be quantised"),
    "zoneout": (lambda: GRU(3, 4, zoneout=0.1).quantize("bf16"), "zoneout=0.1 cannot be quantised"),
    "an activation": (lambda: GRU(3, 4, activation="relu").quantize("int8"), "activation='relu' cannot be quantised"),
    "float64": (lambda: GRU(3, 4).double().quantize("int8"), "float32 on the CPU, and weight_ih_l0 is torch.float64"),
    "meta": (lambda: GRU(3, 4, device="meta").quantize("int8"), "weight_ih_l0 is torch.float32 on meta"),
    "NaN": (lambda: with_nan("weight_hh_l0").quantize("int8"), "weight_hh_l0 holds a NaN or an infinity"),
    "a NaN bias": (lambda: with_nan("bias_hh_l0").quantize("int8"), "bias_hh_l0 holds a NaN or an infinity"),
    "a gradient of the input": (lambda: QUANTIZED(X.clone().requires_grad_()), "input requires a gradient"),
    "a gradient of hx": (lambda: QUANTIZED(X, torch.zeros(1, 2, 4, requires_grad=True)), "hx requires a gradient"),
    "a step's gradient": (lambda: QUANTIZED.step(X[0].clone().requires_grad_()), "input requires a gradient"),
    "training": (lambda: training()(X), "is in training mode: call its eval"),
    "input of float64": (lambda: QUANTIZED(X.double()), "input is torch.float64 on cpu"),
    "input elsewhere": (lambda: QUANTIZED(X.to("meta")), "input is torch.float32 on meta"),
    "hx of bfloat16": (lambda: QUANTIZED(X, torch.zeros(1, 2, 4).bfloat16()), "hx is torch.bfloat16"),
    "I": (lambda: QUANTIZED(torch.randn(5, 2, 4)), r"Expected 3, got 4"),
    "a step's I": (lambda: QUANTIZED.step(torch.randn(2, 4)), r"step: input must be \(B, 3\) or \(3,\), got \(2, 4\)"),
    "hx": (lambda: QUANTIZED(X, torch.zeros(1, 3, 4)), r"Expected hidden size \(1, 2, 4\), got \[1, 3, 4\]"),
    "a step's hx": (lambda: QUANTIZED.step(X[0], torch.zeros(1, 3, 4)), r"Expected hidden size \(1, 2, 4\)"),
    "a step of 3 dimensions": (lambda: QUANTIZED.step(X), r"input must be \(B, 3\) or \(3,\), got \(5, 2, 3\)"),
    "reset_state alone": (lambda: QUANTIZED(X, reset_state=torch.zeros(1, 2, 4)), "reset_state requires reset"),
    "lengths": (lambda: QUANTIZED(X, lengths=[5, 6]), "lengths must be between 0 and T = 5, got 6"),
    "both ways": (
        lambda: GRU(3, 4, bidirectional=True).quantize("int8").step(X[0]),
        "step requires a unidirectional layer",
    ),
    "half()": (lambda: GRU(3, 4).quantize("int8").half(), "weight_ih_l0_scale must be torch.float32, and would be"),
    "float()": (lambda: GRU(3, 4).quantize("bf16").float(), "weight_ih_l0 must be torch.bfloat16, and would be"),
    "to(meta)": (lambda: GRU(3, 4).quantize("bf16").to("meta")(X), "weight_ih_l0 must be torch.bfloat16, .* on meta"),
}


@pytest.mark.parametrize("call, message", REFUSED.values(), ids=REFUSED)
def test_refusals(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_refused_dtype_changes_nothing():
    """`half().float()` would leave scales of fewer digits."""
    layer = GRU(3, 4).quantize("int8")
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        with pytest.raises(InputError, match="stays as it was made"):
            layer.to(dtype)
    after = layer.float().cpu().share_memory().state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_other_types_are_refused():
    for other in (nn.GRU(3, 4), GRUCell(3, 4), QUANTIZED):
        with pytest.raises(TypeError, match=f"expected a grucore.GRU .*, got {type(other).__name__}"):
            QuantizedGRU(other, "int8")


STATES = {
    "int8 into float": (GRU(3, 4), "int8", "weight_ih_l0 is of a layer that is quantised to int8"),
    "int8 into bf16": (GRU(3, 4).quantize("bf16"), "int8", "weight_ih_l0 is torch.int8, and this layer's is"),
    "bf16 into int8": (QUANTIZED, "bf16", "weight_ih_l0 is torch.bfloat16, and this layer's is torch.int8"),
    "float into int8": (QUANTIZED, None, "weight_ih_l0 is torch.float32, and this layer's is torch.int8"),
    "float into bf16": (
        GRU(3, 4).quantize("bf16"),
        None,
        "weight_ih_l0 is torch.float32, and this layer's is",
    ),
}


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "not strict"])
@pytest.mark.parametrize("layer, dtype, message", STATES.values(), ids=STATES)
def test_a_state_of_another_kind_is_refused(layer, dtype, message, strict):
    before = copy.deepcopy(layer.state_dict())
    other = GRU(3, 4) if dtype is None else GRU(3, 4).quantize(dtype)
    model = nn.Sequential(layer)
    with pytest.raises(RuntimeError, match=f"0.{message}"):
        model.load_state_dict({f"0.{name}": tensor for name, tensor in other.state_dict().items()}, strict=strict)
    assert all(torch.equal(layer.state_dict()[name], tensor) for name, tensor in before.items())


def test_a_frozen_part_of_a_model_that_trains():
    """Later layers may train if the quantised layer itself is in eval mode."""
    model = nn.ModuleDict({"gru": GRU(3, 4).quantize("int8"), "out": nn.Linear(4, 1)}).train()
    model["gru"].eval()
    model["out"](model["gru"](X)[0]).sum().backward()
    assert model["out"].weight.grad.abs().sum() > 0
    with torch.no_grad():
        model.train()["gru"](X)


@torch.no_grad()
def test_a_step_of_one_row_takes_a_state():
    quantized, x = GRU(7, 20, 2).quantize("int8"), torch.randn(2, 1, 7)
    y, h_n = quantized(x)
    row, state = quantized.step(x[1, 0], quantized.step(x[0, 0])[1])
    assert torch.equal(row, y[1, 0]) and torch.equal(state, h_n[:, 0])
    with pytest.raises(TypeError, match="hx must be a Tensor"):
        quantized.step(x[0], [0.0])


@torch.no_grad()
def test_explaining_a_call_refuses_what_the_call_refuses():
    quantized, x = GRU(3, 4).quantize("int8"), torch.randn(5, 2, 3)
    calls = [(x, {"lengths": [9, 9]}), (x, {"mask": 3}), (torch.randn(5, 2, 7), {}), (x.double(), {}), ("a", {})]
    calls += [(x, {"reset_state": torch.zeros(1, 2, 4)})]
    for given, flags in calls:
        errors = []
        for call in (quantized, quantized.explain_backend):
            with pytest.raises((InputError, TypeError)) as error:
                call(given, **flags)
            errors.append(str(error.value))
        assert errors[0] == errors[1]


@torch.no_grad()
def test_tensors_without_memory_go_to_pytorch():
    """A wrapper subclass has the address 0, as a flag and as a weight."""
    quantized, x = GRU(3, 4).quantize("int8"), torch.randn(5, 2, 3)
    mask = torch.rand(5, 2) > 0.4
    expected = quantized(x, mask=mask)[0]
    wrapped = TwoTensor(mask, mask.clone())
    assert quantized.explain_backend(x, mask=wrapped).name == "eager"
    torch.testing.assert_close(quantized(x, mask=wrapped)[0].a, expected, atol=1e-3, rtol=1e-3)
    for name, buffer in quantized._buffers.items():
        quantized._buffers[name] = TwoTensor(buffer, buffer.clone())
    torch.testing.assert_close(quantized(x, mask=mask)[0].a, expected, atol=1e-3, rtol=1e-3)
