"""to_onnx in onnxruntime, and from_onnx with files by to_onnx, torch.onnx.export and others."""

import itertools
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from oracle import rms_error
from torch import nn

from grucore import GRU, InputError
from grucore.convert import from_onnx, to_onnx

pytestmark = pytest.mark.slow

LIMIT = 2e-6  # RMS error of float32 outputs against onnxruntime; measured at most 1.9e-7

# reset_after, bidirectional, layers, batch_first, h0, lengths: every pair of values comes up
CASES = [
    (True, False, 1, False, False, False),
    (True, True, 2, True, True, True),
    (True, True, 1, False, True, False),
    (True, False, 2, True, False, True),
    (False, False, 2, False, True, True),
    (False, True, 1, True, False, True),
    (False, True, 2, False, False, False),
    (False, False, 1, True, True, False),
]


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(path, **inputs):
    given = {name: tensor.numpy() for name, tensor in inputs.items() if tensor is not None}
    return [torch.tensor(result) for result in session(path).run(["output", "h_n"], given)]


def same_parameters(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_file_computes_the_layer(case, bias, tmp_path):
    reset_after, bidirectional, layers, batch_first, with_h0, with_lengths = case
    model = GRU(3, 4, layers, bias, batch_first, bidirectional=bidirectional, reset_after=reset_after)
    path = tmp_path / "model.onnx"
    to_onnx(model, path, h0=with_h0, lengths=with_lengths)
    for steps, batch in ((7, 5), (1, 1), (3, 9)):  # T and B are free
        x = torch.randn((batch, steps, 3) if batch_first else (steps, batch, 3))
        h0 = torch.randn(layers * (1 + bidirectional), batch, 4) if with_h0 else None
        lengths = torch.arange(batch, dtype=torch.int32) % (steps + 1) if with_lengths else None
        got = run(path, input=x, h0=h0, lengths=lengths)
        for one, other in zip(got, model(x, h0, lengths=lengths), strict=True):
            assert rms_error(one, other) <= LIMIT
    back = from_onnx(path)
    assert repr(back) == repr(model) and same_parameters(back, model)


def test_padding_may_hold_nan(tmp_path):
    model, x = GRU(3, 4, 2, bidirectional=True), torch.randn(6, 3, 3)
    to_onnx(model, tmp_path / "model.onnx", lengths=True)
    lengths = torch.tensor([6, 0, 2], dtype=torch.int32)
    x[2:, 2] = x[:, 1] = torch.nan
    for got, want in zip(
        run(tmp_path / "model.onnx", input=x, lengths=lengths), model(x, lengths=lengths), strict=True
    ):
        assert rms_error(got, want) <= LIMIT


def test_float16_runs_and_float64_is_written(tmp_path):
    model, x = GRU(3, 4, 2, bidirectional=True, dtype=torch.float16), torch.randn(6, 3, 3).half()
    to_onnx(model, tmp_path / "half.onnx")
    for got, want in zip(run(tmp_path / "half.onnx", input=x), model(x), strict=True):
        assert got.dtype is torch.float16 and rms_error(got, want) <= 1e-3  # measured 0
    assert same_parameters(from_onnx(tmp_path / "half.onnx"), model)
    model = GRU(3, 4, dtype=torch.float64)
    to_onnx(model, tmp_path / "double.onnx")
    assert same_parameters(from_onnx(tmp_path / "double.onnx"), model)
    with pytest.raises(ValueError, match=r"takes torch.float16, .* the weights are torch.bfloat16: convert"):
        to_onnx(GRU(3, 4, dtype=torch.bfloat16), tmp_path / "bfloat16.onnx")


def test_names_and_free_dimensions(tmp_path):
    to_onnx(GRU(3, 4, 2, batch_first=True), str(tmp_path / "model.onnx"), h0=True, lengths=True)
    (model,) = (session(tmp_path / "model.onnx"),)
    assert {i.name: (i.shape, i.type) for i in model.get_inputs()} == {
        "input": (["batch", "time", 3], "tensor(float)"),
        "h0": ([2, "batch", 4], "tensor(float)"),
        "lengths": (["batch"], "tensor(int32)"),
    }
    assert {o.name: o.shape for o in model.get_outputs()} == {"output": ["batch", "time", 4], "h_n": [2, "batch", 4]}


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.partial"])
def test_nothing_is_overwritten(name, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match=r"model\.onnx"):
        to_onnx(GRU(3, 4), tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "mine"


def test_a_link_to_nothing_is_not_overwritten(tmp_path):
    (tmp_path / "model.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(FileExistsError):
        to_onnx(GRU(3, 4), tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").is_symlink()


def test_the_default_device_does_not_matter(tmp_path):
    model = GRU(3, 4, 2, bidirectional=True)
    with torch.device("meta"):
        to_onnx(model, tmp_path / "model.onnx", h0=True, lengths=True)
    assert same_parameters(from_onnx(tmp_path / "model.onnx"), model)


def test_nothing_is_half_written(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("refused")

    monkeypatch.setattr(onnx.checker, "check_model", refuse)
    with pytest.raises(RuntimeError, match="refused"):
        to_onnx(GRU(3, 4), tmp_path / "model.onnx")
    with pytest.raises(TypeError, match="h0 should be of type bool, got: Tensor"):
        to_onnx(GRU(3, 4), tmp_path / "model.onnx", h0=torch.zeros(1, 2, 4))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "two"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time-first", "batch-first"])
@pytest.mark.parametrize("how", ["free", "fixed", "hx"])
def test_what_torch_exports(how, batch_first, bidirectional, tmp_path):
    theirs = nn.GRU(3, 4, 2, batch_first=batch_first, bidirectional=bidirectional, bias=how != "fixed").eval()
    arguments = (torch.randn(5, 5, 3), *([torch.randn(2 * (1 + bidirectional), 5, 4)] if how == "hx" else []))
    options = {"input_names": ["x"], "dynamic_axes": {"x": {0: "first", 1: "second"}}} if how == "free" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing and deprecation; the newer exporter needs more packages
        torch.onnx.export(theirs, arguments, tmp_path / "model.onnx", dynamo=False, **options)
    ours = from_onnx(tmp_path / "model.onnx")
    assert repr(ours) == repr(theirs) and same_parameters(ours, theirs)


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "two"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time-first", "batch-first"])
@pytest.mark.parametrize("how", ["free", "fixed"])
def test_what_torch_exports_by_default(how, batch_first, bidirectional, tmp_path):
    theirs = nn.GRU(3, 4, 2, batch_first=batch_first, bidirectional=bidirectional).eval()
    free = ({int(not batch_first): torch.export.Dim.DYNAMIC},) if how == "free" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            theirs, (torch.randn(5, 2, 3),), tmp_path / "model.onnx", dynamo=True, dynamic_shapes=free, verbose=False
        )
    ours = from_onnx(tmp_path / "model.onnx")
    assert repr(ours) == repr(theirs) and same_parameters(ours, theirs)


def proto(*nodes, constants=(), **shapes):
    """A file of these nodes with inputs of these shapes."""
    inputs = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in dict(constants).items()]
    outputs = [helper.make_tensor_value_info(nodes[-1].output[0], onnx.TensorProto.FLOAT, None)]
    return helper.make_model(helper.make_graph(list(nodes), "test", inputs, outputs, initializers))


def gru_node(name="gru", x="x", inputs=("w", "r"), **attributes):
    return helper.make_node("GRU", [x, *inputs], [f"{name}_y", f"{name}_h"], name=name, hidden_size=4, **attributes)


random = np.random.default_rng(0)
WEIGHTS = {
    "w": random.normal(size=(1, 12, 3)).astype(np.float32),
    "r": random.normal(size=(1, 12, 4)).astype(np.float32),
    "w2": random.normal(size=(1, 12, 4)).astype(np.float32),
    "none": np.array([0]),
    "one": np.array([1]),
    "shape": np.array([0, 0, -1]),
    "flat": np.array([5, 2, 4]),
    "state": np.ones((1, 2, 4), np.float32),
    "zeros": np.zeros((1, 2, 4), np.float32),
    "l": np.array([5, 2], np.int32),
}


def refused(message, *nodes, constants=None, **options):
    with pytest.raises(ValueError, match=message):
        from_onnx(proto(*nodes, constants=constants or WEIGHTS, x=[5, 2, 3], free=[1, 12, 4]), **options)


ATTRIBUTES = {
    "clip": ({"clip": 1.0}, r"GRU node 'gru' has \{'clip': 1.0\}, which cannot be converted"),
    "reverse": ({"direction": "reverse"}, r"has direction='reverse': reverse=True converts it .*x.flip\(0\)"),
    "direction": ({"direction": "sideways"}, "has direction='sideways', which ONNX does not define"),
    "default alpha": ({"activations": ["HardSigmoid", "Tanh"]}, "activation 'hardsigmoid' with alpha=0.2, beta=0.5"),
    "other activation": ({"activations": ["Sigmoid", "Elu"]}, "has the activation 'elu', which cannot be converted"),
    "alpha of nothing": ({"activation_alpha": [0.5]}, r"has \{'alpha': \[0.5\]\}, which activations=\['sigmoid'"),
    "two kinds": (
        {"activations": ["Sigmoid", "Tanh", "Sigmoid", "Relu"], "direction": "bidirectional"},
        "has different activations per direction",
    ),
}


@pytest.mark.parametrize("attributes, message", ATTRIBUTES.values(), ids=ATTRIBUTES)
def test_attributes_that_grucore_lacks(attributes, message):
    refused(message, gru_node(**attributes))


def test_defaults_may_be_written_out():
    node = gru_node(activations=["Sigmoid", "Tanh"], layout=0, direction="forward", linear_before_reset=0)
    ours = from_onnx(proto(node, constants=WEIGHTS, x=[5, 2, 3]))
    assert not ours.reset_after and not ours.bias and not ours.bidirectional
    z, r, n = np.split(WEIGHTS["r"][0], 3)
    assert torch.equal(ours.weight_hh_l0, torch.tensor(np.concatenate([r, z, n])))


def test_weights_that_are_no_constants_or_do_not_fit():
    refused("constant weights, but 'free' are inputs of the graph without a value", gru_node(inputs=("w", "free")))
    double = helper.make_node("Add", ["free", "r"], ["made"])
    refused("constant weights, but 'made' depend on inputs", double, gru_node(inputs=("w", "made")))
    refused("must have weights W and R", gru_node(inputs=("w",)))
    refused(r"weights of shapes \[\(1, 6, 3\), .* got \[\(1, 12, 3\), \(2,\)\]", gru_node(inputs=("w", "l")))
    refused(r"weights of shapes \[\(2, 12, 3\), .* got \[\(1, 12, 3\)", gru_node(direction="bidirectional"))


def test_constants_as_nodes():
    tensor = numpy_helper.from_array(WEIGHTS["w"])
    nodes = [helper.make_node("Constant", [], ["v"], value=tensor), helper.make_node("Identity", ["v"], ["w"])]
    constants = {"r": WEIGHTS["r"]}
    ours = from_onnx(proto(*nodes, gru_node(), constants=constants, x=[5, 2, 3]))
    assert same_parameters(ours, from_onnx(proto(gru_node(), constants=WEIGHTS, x=[5, 2, 3])))


def test_weights_that_are_inputs_with_a_value_or_computed():
    want = from_onnx(proto(gru_node(), constants=WEIGHTS, x=[5, 2, 3]))
    inputs = {"x": [5, 2, 3], "w": [1, 12, 3], "r": [1, 12, 4]}
    assert same_parameters(from_onnx(proto(gru_node(), constants=WEIGHTS, **inputs)), want)
    halves = [
        helper.make_node("Split", ["w"], ["first", "second"], axis=1, num_outputs=2),
        helper.make_node("Concat", ["first", "second"], ["again"], axis=1),
        gru_node(inputs=("again", "r")),
    ]
    assert same_parameters(from_onnx(proto(*halves, constants=WEIGHTS, x=[5, 2, 3])), want)


def test_states_and_lengths_that_are_constants():
    refused("constant initial_h other than 0; in grucore hx is", gru_node(inputs=("w", "r", "", "", "state")))
    expand = helper.make_node("Slice", ["state", "none", "one"], ["s"])
    refused("constant initial_h other than 0", expand, gru_node(inputs=("w", "r", "", "", "s")))
    filled = helper.make_node("ConstantOfShape", ["flat"], ["s"], value=numpy_helper.from_array(np.ones(1, np.float32)))
    refused("constant initial_h other than 0", filled, gru_node(inputs=("w", "r", "", "", "s")))
    refused("constant sequence_lens; in grucore lengths are", gru_node(inputs=("w", "r", "", "l")))
    for accepted in ("zeros", "free"):
        node = gru_node(inputs=("w", "r", "", "", accepted))
        assert from_onnx(proto(node, constants=WEIGHTS, x=[5, 2, 3], free=[1, 2, 4])).num_layers == 1


def test_states_that_depend_on_inputs():
    """An embedding of an input, and a residual network of 60 blocks, whose paths nobody could count."""
    looked_up = helper.make_node("Gather", ["state", "ids"], ["s"], axis=1)
    node = gru_node(inputs=("w", "r", "", "", "s"))
    assert from_onnx(proto(looked_up, node, constants=WEIGHTS, x=[5, 2, 3], ids=[2])).num_layers == 1
    blocks = []
    for i in range(60):
        name = f"s{i}" if i else "free"
        blocks += [helper.make_node("Tanh", [name], [f"t{i}"])]
        blocks += [helper.make_node("Add", [name, f"t{i}"], [f"s{i + 1}"])]
    node = gru_node(inputs=("w", "r", "", "", "s60"))
    assert from_onnx(proto(*blocks, node, constants=WEIGHTS, x=[5, 2, 3], free=[1, 2, 4])).num_layers == 1


def squeeze(name):
    return helper.make_node("Squeeze", [f"{name}_y", "one"], [f"{name}_x"])


def test_stacks_are_found_and_told_apart():
    second = gru_node("second", "gru_x", ("w2", "r"))
    stack = proto(gru_node(), squeeze("gru"), second, constants=WEIGHTS, x=[5, 2, 3])
    assert from_onnx(stack).num_layers == 2 and from_onnx(stack, "gru").num_layers == 1
    moved = [
        helper.make_node("Transpose", ["gru_y"], ["a"], perm=[0, 2, 1, 3]),
        helper.make_node("Identity", ["a"], ["b"]),
        helper.make_node("Reshape", ["b", "shape"], ["gru_x"]),
    ]
    assert from_onnx(proto(gru_node(), *moved, second, constants=WEIGHTS, x=[5, 2, 3])).num_layers == 2
    elsewhere = [
        [squeeze("gru"), helper.make_node("Relu", ["gru_x"], ["a"])],
        [squeeze("gru"), helper.make_node("Transpose", ["gru_x"], ["a"], perm=[1, 0, 2])],
        [helper.make_node("Reshape", ["gru_y", "flat"], ["a"])],
        [helper.make_node("Transpose", ["gru_y"], ["b"]), helper.make_node("Reshape", ["b", "shape"], ["a"])],
        [helper.make_node("Identity", ["gru_h"], ["a"])],
    ]
    for between in elsewhere:
        apart = [gru_node(), *between, gru_node("second", "a", ("w2", "r"))]
        refused("has 2, which end with GRU node 'gru', GRU node 'second': pass one of these as `node`", *apart)
        assert from_onnx(proto(*apart, constants=WEIGHTS, x=[5, 2, 3]), "second").input_size == 4
    refused("has none$", helper.make_node("Relu", ["x"], ["y"]))
    lstm = helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=3)
    refused("has none; its recurrent nodes are LSTM$", lstm)
    refused("must have one GRU node 'third'; it has GRU node 'gru'", gru_node(), node="third")
    for first, other in ((("w", "r", "", "n"), ("w2", "r")), (("w", "r", "", "n"), ("w2", "r", "", "m"))):
        nodes = [gru_node(inputs=first), squeeze("gru"), gru_node("second", "gru_x", other)]
        with pytest.raises(ValueError, match="have different sequence_lens"):
            from_onnx(proto(*nodes, constants=WEIGHTS, x=[5, 2, 3], n=[2], m=[2]))
    casts = [helper.make_node("Cast", ["n"], [name], to=onnx.TensorProto.INT32) for name in ("a", "b")]
    nodes = [
        *casts,
        gru_node(inputs=("w", "r", "", "a")),
        squeeze("gru"),
        gru_node("second", "gru_x", ("w2", "r", "", "b")),
    ]
    assert from_onnx(proto(*nodes, constants=WEIGHTS, x=[5, 2, 3], n=[2])).num_layers == 2
    differs = gru_node("second", "gru_x", ("w2", "r"), linear_before_reset=1)
    nodes = [gru_node(), squeeze("gru"), differs]
    refused("has 2, which end with GRU node 'gru', GRU node 'second': pass one", *nodes)
    each = [from_onnx(proto(*nodes, constants=WEIGHTS, x=[5, 2, 3]), name) for name in ("gru", "second")]
    assert [(one.num_layers, one.reset_after) for one in each] == [(1, False), (1, True)]
    carried = gru_node("second", "gru_x", ("w2", "r", "", "", "gru_h"))
    refused("begins from the state of GRU node 'gru', which is of the same stack", gru_node(), squeeze("gru"), carried)


@pytest.mark.parametrize("linear_before_reset", [0, 1])
def test_layout_1(linear_before_reset):
    """onnxruntime does not support it; the standard's evaluator does, in one direction."""
    node = gru_node(inputs=("w", "r", "", "", "free"), layout=1, linear_before_reset=linear_before_reset)
    file = proto(node, constants=WEIGHTS, x=[2, 5, 3], free=[2, 1, 4])
    ours, x, hx = from_onnx(file), torch.randn(2, 5, 3), torch.randn(1, 2, 4)
    (got,) = onnx.reference.ReferenceEvaluator(file).run(None, {"x": x.numpy(), "free": hx.transpose(0, 1).numpy()})
    assert ours.batch_first and rms_error(torch.tensor(got).squeeze(2), ours(x, hx)[0]) <= LIMIT
    assert from_onnx(file, batch_first=False).batch_first is False
    swap = helper.make_node("Transpose", ["x"], ["x_t"], perm=[1, 0, 2])
    assert not from_onnx(proto(swap, gru_node(x="x_t", layout=1), constants=WEIGHTS, x=[5, 2, 3])).batch_first


def test_stacks_with_layout_1():
    constants = {name: np.concatenate([array] * 2) for name, array in WEIGHTS.items() if name in ("w", "r")}
    constants |= {"v": random.normal(size=(2, 12, 8)).astype(np.float32), "shape": WEIGHTS["shape"]}
    options = {"layout": 1, "direction": "bidirectional"}
    join = helper.make_node("Reshape", ["gru_y", "shape"], ["gru_x"])
    first, second = gru_node(**options), gru_node("second", "gru_x", ("v", "r"), **options)
    ours = from_onnx(proto(first, join, second, constants=constants, x=[2, 5, 3]))
    assert (ours.num_layers, ours.batch_first, ours.bidirectional) == (2, True, True)
    second = gru_node("second", "gru_x", ("v", "r"), direction="bidirectional")  # (B, T, ...) read as (T, B, ...)
    refused("has 2, which end with", first, join, second, constants=constants)


def test_reverse_on_demand(tmp_path):
    """A backward stack in onnxruntime, against the copy on a reversed sequence."""
    lengths = helper.make_tensor_value_info("lengths", onnx.TensorProto.INT32, [3])
    nodes = [
        gru_node(inputs=("w", "r", "", "lengths"), direction="reverse"),
        squeeze("gru"),
        gru_node("second", "gru_x", ("w2", "r", "", "lengths"), direction="reverse"),
    ]
    file = proto(*nodes, constants=WEIGHTS, x=[6, 3, 3])
    file.graph.input.append(lengths)
    file.ir_version = 8
    ours, x = from_onnx(file, reverse=True), torch.randn(6, 3, 3)
    for given in ([6, 6, 6], [6, 0, 2]):
        onnx_given = {"x": x.numpy(), "lengths": np.array(given, np.int32)}
        want = torch.tensor(session(file.SerializeToString()).run(None, onnx_given)[0]).squeeze(1)
        real = torch.arange(6).unsqueeze(1) < torch.tensor(given)
        assert rms_error(ours(x.flip(0), mask=real.flip(0))[0].flip(0), want) <= LIMIT
        assert min(given) < 6 or rms_error(ours(x.flip(0))[0].flip(0), want) <= LIMIT
    with pytest.raises(ValueError, match="has direction='forward': reverse=True is only for 'reverse'"):
        from_onnx(proto(gru_node(), constants=WEIGHTS, x=[5, 2, 3]), reverse=True)
    refused("has 2, which end with", *nodes[:2], gru_node("second", "gru_x", ("w2", "r")))


@pytest.mark.parametrize("activation, recurrent_activation", [("relu", "hard_sigmoid"), ("linear", "softsign")])
def test_activations_there_and_back(activation, recurrent_activation, tmp_path):
    model = GRU(3, 4, 2, bidirectional=True, activation=activation, recurrent_activation=recurrent_activation)
    to_onnx(model, tmp_path / "model.onnx")
    x = torch.randn(6, 3, 3)
    for got, want in zip(run(tmp_path / "model.onnx", input=x), model(x), strict=True):
        assert rms_error(got, want) <= LIMIT
    back = from_onnx(tmp_path / "model.onnx")
    assert repr(back) == repr(model) and same_parameters(back, model)
    with pytest.raises(ValueError, match="activation='hard_tanh' cannot be written for the ONNX operator GRU"):
        to_onnx(GRU(3, 4, activation="hard_tanh"), tmp_path / "other.onnx")


@pytest.mark.parametrize("given", [None, False, True], ids=str)
def test_batch_first_is_read_or_given(given):
    swap = helper.make_node("Transpose", ["x"], ["x_t"], perm=[1, 0, 2])
    swapped = proto(swap, gru_node(x="x_t"), constants=WEIGHTS, x=[2, 5, 3])
    assert from_onnx(swapped, batch_first=given).batch_first is (given is not False)
    plain = proto(gru_node(), constants=WEIGHTS, x=[5, 2, 3])
    assert from_onnx(plain, batch_first=given).batch_first is (given is True)


def test_damaged_files_are_named(tmp_path):
    """The file is named, whatever protobuf or NumPy raise; tests/fuzzing has more."""
    path = tmp_path / "model.onnx"
    for data in (b"no model", b"\x08\xff"):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"model\.onnx is damaged or has another format|must have one stack"):
            from_onnx(path)
    with pytest.raises(FileNotFoundError):
        from_onnx(tmp_path / "missing.onnx")
    model = proto(gru_node(), constants=WEIGHTS, x=[5, 2, 3])
    model.graph.initializer[0].dims[0] = 7
    with pytest.raises(InputError, match="the model is damaged or has another format: ValueError: cannot reshape"):
        from_onnx(model)


CIRCLES = {
    "two": [helper.make_node("Identity", ["b"], ["a"]), helper.make_node("Identity", ["a"], ["b"])],
    "itself": [helper.make_node("Identity", ["a"], ["a"])],
    "given twice": [helper.make_node("Identity", ["x"], ["a"]), helper.make_node("Identity", ["a"], ["a"])],
}


@pytest.mark.parametrize("nodes", CIRCLES.values(), ids=CIRCLES)
def test_values_that_are_made_of_themselves(nodes):
    with pytest.raises(InputError, match="in topological order, with one producer per value: Identity"):
        from_onnx(proto(*nodes, gru_node(x="a"), constants=WEIGHTS, x=[5, 2, 3]))


def test_other_sources_are_refused():
    with pytest.raises(TypeError, match=r"a path or an onnx.ModelProto, got int"):
        from_onnx(3)


def test_the_cases_cover_every_pair():
    columns = [{row[i] for row in CASES} for i in range(6)]
    for i, j in itertools.combinations(range(6), 2):
        assert {(row[i], row[j]) for row in CASES} == set(itertools.product(columns[i], columns[j])), (i, j)
