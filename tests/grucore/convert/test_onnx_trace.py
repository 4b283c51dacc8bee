"""torch.onnx.export of models with GRU layers, with both exporters, checked in onnxruntime."""

import warnings

import onnx
import onnxruntime
import pytest
import torch
from oracle import rms_error
from torch import nn
from torch.export import Dim, export
from torch.nn.utils.rnn import pack_padded_sequence

from grucore import GRU, GRUCell, InputError
from grucore.convert import from_onnx

pytestmark = pytest.mark.slow

LIMIT = 2e-6  # RMS error of float32 outputs against onnxruntime; measured at most 3.2e-7, of float16 6.2e-4

# reset_after, bidirectional, layers, batch_first, bias, hx, lengths
CASES = [
    (True, False, 1, False, True, False, False),
    (True, True, 2, True, False, True, True),
    (True, True, 1, False, True, True, False),
    (True, False, 2, True, True, False, True),
    (False, False, 2, False, False, True, True),
    (False, True, 1, True, True, False, True),
    (False, True, 2, False, False, False, False),
    (False, False, 1, True, True, True, False),
]
ACTIVATIONS = ("relu", "sigmoid"), ("hard_sigmoid", "softsign"), ("linear", "hard_sigmoid"), ("softsign", "relu")


class Model(nn.Module):
    """Layers of every kind, between others; returns a dict of their results."""

    def __init__(self, cases, activations):
        super().__init__()
        self.cases, self.activations = cases, activations
        self.before = nn.Linear(3, 3)
        self.layers = nn.ModuleDict()
        for case in cases:
            reset_after, bidirectional, layers, batch_first, bias, *_ = case
            options = {"bidirectional": bidirectional, "reset_after": reset_after, "dropout": 0.5 * (layers > 1)}
            self.layers[str(case)] = GRU(3, 4, layers, bias, batch_first, **options)
        for n, r in activations:
            options = {"bidirectional": n == "linear", "reset_after": n != "relu"}
            self.layers[f"{n} {r}"] = GRU(3, 4, activation=n, recurrent_activation=r, **options)
        self.learned = GRU(3, 4, learn_initial_state=True)
        nn.init.normal_(self.learned.initial_state)
        self.normed = nn.utils.parametrizations.weight_norm(GRU(3, 4), "weight_hh_l0")
        self.of_half = GRU(3, 4, dtype=torch.float16)
        self.streamed = GRU(3, 4, 2, reset_after=False)
        self.cell = GRUCell(3, 4)

    def forward(self, x, hx, lengths):
        """x (T, B, 3), hx (4, B, 4), lengths (B,)."""
        x = self.before(x)
        results = {}
        for case in self.cases:
            _, bidirectional, layers, batch_first, _, with_hx, with_lengths = case
            given = hx[: layers * (1 + bidirectional)] if with_hx else None
            given_lengths = lengths if with_lengths else None
            x_ = x.transpose(0, 1) if batch_first else x
            results[str(case)] = self.layers[str(case)](x_, given, lengths=given_lengths)
        for n, r in self.activations:
            results[f"{n} {r}"] = self.layers[f"{n} {r}"](x, lengths=lengths)
        computed = (x.square().sum(-1) > 1).sum(0)
        results["lengths computed, state learned"] = self.learned(x, lengths=computed)
        results["int32 lengths, weights of others"] = self.normed(x, lengths=lengths.int())
        results["unbatched"] = self.normed(x[:, 0])
        results["float16"] = [each.float() for each in self.of_half(x.half())]
        first = self.streamed.step(x[0])
        results["step"] = (*first, *self.streamed.step(x[-1], first[1]))
        results["cell"] = (self.cell(x[0]), self.cell(x[-1], hx[0]))
        return results


def exported(model, arguments, path, dynamo, **options):
    with warnings.catch_warnings():
        # The exporters' own deprecations and dependencies. A warning of ours is an error.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        torch.onnx.export(model, arguments, path, dynamo=dynamo, verbose=False, **options)
    return path


def given(T, B):
    return torch.randn(T, B, 3), torch.randn(4, B, 4), torch.arange(B) % (T + 1)


FREE = {
    False: {
        "input_names": ["x", "hx", "lengths"],
        "dynamic_axes": {"x": {0: "T", 1: "B"}, "hx": {1: "B"}, "lengths": {0: "B"}},
    },
    True: {"dynamic_shapes": ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, {1: Dim.DYNAMIC}, {0: Dim.DYNAMIC})},
}


def run(path, *arguments):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    inputs = dict(zip(names, (each.numpy() for each in arguments), strict=True))
    return [torch.tensor(result) for result in session.run(None, inputs)]


# Exporting is slow with dynamo=True, so there are fewer layers, which still cover every value.
KINDS = {False: (CASES, ACTIVATIONS), True: (CASES[1:5], ACTIVATIONS[1:3])}


@pytest.mark.parametrize("dynamo", [False, True], ids=["traced", "exported"])
def test_every_layer_becomes_a_node(dynamo, tmp_path):
    torch.manual_seed(0)
    cases, activations = KINDS[dynamo]
    model = Model(cases, activations).eval()
    with torch.set_grad_enabled(not dynamo):
        path = exported(model, given(5, 3), tmp_path / "model.onnx", dynamo, **FREE[dynamo])
    operators = [node.op_type for node in onnx.load(path).graph.node]
    assert operators.count("GRU") == sum(case[2] for case in cases) + len(activations) + 4
    assert "ScatterND" not in operators  # of a cell that writes in place, which it only does without gradients
    for T, B in ((5, 3), (7, 6), (1, 1), (3, 9)):
        arguments = given(T, B)
        want = model(*arguments)
        got = iter(run(path, *arguments))
        for name, tensors in want.items():
            for i, tensor in enumerate(tensors):
                error = rms_error(next(got), tensor)
                assert error <= (1e-3 if name == "float16" else LIMIT), (name, i, T, B, error)


class Call(nn.Module):
    """A layer with further arguments for its call."""

    def __init__(self, layer, **call):
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x):
        """x (T, B, 3)."""
        return self.layer(x, **self.call)


def test_a_model_in_training_is_exported_as_it_is(tmp_path):
    """dynamo=False has its own argument for this, and without it exports the model in eval mode."""
    model = Call(GRU(3, 64, 2, dropout=0.5))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* while it is in training mode", UserWarning)  # torch 2.8 does not say so
        path = exported(model, (torch.randn(5, 2, 3),), tmp_path / "exported.onnx", True)
    operators = [node.op_type for node in onnx.load(path).graph.node]
    assert [each for each in operators if each in ("GRU", "Dropout")] == ["GRU", "Dropout", "GRU"]
    names = [node.name for node in onnx.load(path).graph.node if node.op_type == "GRU"]
    assert "Gather" in operators  # the exporter leaves it to the runtime to reorder weights as large as these
    for k, name in enumerate(names):
        assert torch.equal(from_onnx(path, name).weight_hh_l0, getattr(model.layer, f"weight_hh_l{k}"))
    path, x = exported(model, (torch.randn(5, 2, 3),), tmp_path / "traced.onnx", False), torch.randn(5, 2, 3)
    assert model.training
    for got, want in zip(run(path, x), model.eval()(x), strict=True):
        assert rms_error(got, want) <= LIMIT


FLAG = torch.ones(5, 2, dtype=torch.bool)
REFUSED = {
    "mask": ({}, {"mask": FLAG}, "mask cannot be exported: .* pass lengths=mask.sum"),
    "reset": ({}, {"reset": ~FLAG}, "reset cannot be exported: .* split the sequence"),
    "reset_state": ({}, {"reset": None, "reset_state": torch.zeros(1, 2, 4)}, "reset_state"),
    "zoneout": ({"zoneout": 0.1}, {}, "zoneout cannot be exported with dynamo=False"),
    "layer_norm": ({"layer_norm": True}, {}, "layer_norm cannot be exported with dynamo=False"),
    "activation": ({"activation": "hard_tanh", "recurrent_activation": "relu"}, {}, "^activation cannot be exported"),
    "bfloat16": ({"dtype": torch.bfloat16}, {}, "takes torch.float16, .* this one is torch.bfloat16"),
}


@pytest.mark.parametrize("options, call, message", REFUSED.values(), ids=REFUSED)
def test_what_onnx_cannot_say_is_refused(options, call, message, tmp_path):
    x = torch.randn(5, 2, 3, dtype=options.get("dtype"))
    with pytest.raises(InputError, match=message):
        exported(Call(GRU(3, 4, **options), **call), (x,), tmp_path / "model.onnx", False)


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = GRU(3, 4)

    def forward(self, x):
        """x (T, B, 3)."""
        return self.layer(pack_padded_sequence(x, torch.tensor([5, 2])))[1]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of pack_padded_sequence
def test_what_either_exporter_refuses(tmp_path):
    x = torch.randn(5, 2, 3)
    with pytest.raises(RuntimeError, match=r"mask cannot be exported: .* pass lengths=mask.sum"):
        exported(Call(GRU(3, 4), mask=FLAG).eval(), (x,), tmp_path / "model.onnx", True)
    with pytest.raises(InputError, match=r"a PackedSequence cannot be exported to ONNX: pass .* lengths"):
        exported(Packed(), (x,), tmp_path / "model.onnx", False)


class Unsaid(nn.Module):
    """A layer that the ONNX operator cannot express."""

    def __init__(self):
        super().__init__()
        self.layer = GRU(3, 4, zoneout=0.1, layer_norm=True, activation="hard_tanh")

    def forward(self, x, lengths):
        """x (T, B, 3), lengths (B,)."""
        return self.layer(x, lengths=lengths)


def test_other_layers_are_written_step_by_step_for_one_T(tmp_path):
    model, free = Unsaid().eval(), Dim.DYNAMIC
    path = exported(model, given(2, 3)[::2], tmp_path / "a.onnx", True, dynamic_shapes=({1: free}, {0: free}))
    x, _, lengths = given(2, 5)
    assert all(rms_error(*pair) <= LIMIT for pair in zip(run(path, x, lengths), model(x, lengths), strict=True))
    errors = onnxruntime.capi.onnxruntime_pybind11_state
    with pytest.raises(errors.InvalidArgument, match="Got: 4 Expected: 2"):
        run(path, *given(4, 5)[::2])
    with pytest.raises((torch.onnx.OnnxExporterError, errors.Fail)):  # torch 2.8 writes a file, which does not run
        free_steps = exported(model, given(2, 3)[::2], tmp_path / "b.onnx", True, dynamic_shapes=({0: free}, {0: free}))
        run(free_steps, *given(4, 3)[::2])


def test_torch_export_is_left_as_it_is():
    program = export(GRU(3, 4), (torch.randn(5, 2, 3),))
    targets = [str(node.target) for node in program.graph.nodes]
    assert "grucore.gru_layer.default" in targets and not any("onnx" in target for target in targets)


class Around(nn.Module):
    """The exporter of dynamo=False passes keyword arguments of the model itself by position."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


@pytest.mark.parametrize("opset", [9, 12])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_operators_of_old_versions(bidirectional, opset, tmp_path):
    """Squeeze has its axes in another place before version 13."""
    model, x = GRU(3, 4, bidirectional=bidirectional).eval(), torch.randn(5, 2, 3)
    path = exported(Around(model), (x,), tmp_path / "model.onnx", False, opset_version=opset)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    got = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert all(rms_error(torch.tensor(a), b) <= LIMIT for a, b in zip(got, model(x), strict=True))
