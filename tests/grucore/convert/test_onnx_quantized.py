"""Quantised layers as ONNX files: small, and in onnxruntime what they are here."""

import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from oracle import rms_error

from grucore import GRU, InputError
from grucore.convert import from_onnx, to_onnx

pytestmark = pytest.mark.slow

# RMS error against our kernels, which round the state too; behind it the worst measured.
LIMITS = {"int8": 1e-4, "bf16": 2e-6}  # 1.8e-5 and 1.3e-7


def run(path, **inputs):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = {name: tensor.numpy() for name, tensor in inputs.items()}
    return [torch.tensor(result) for result in session.run(None, given)]


@pytest.mark.parametrize("dtype", ["int8", "bf16"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("reset_after", [True, False], ids=["reset after", "reset before"])
@torch.no_grad()
def test_onnxruntime_computes_the_quantised_layer(reset_after, bidirectional, dtype, tmp_path):
    options = {"num_layers": 2, "bidirectional": bidirectional, "reset_after": reset_after}
    quantized, path = GRU(7, 20, **options).quantize(dtype), tmp_path / "model.onnx"
    to_onnx(quantized, path, h0=True, lengths=True)
    x, h0 = torch.randn(6, 5, 7), torch.randn(2 * (1 + bidirectional), 5, 20)
    lengths = torch.tensor([6, 0, 3, 1, 5], dtype=torch.int32)
    for got, want in zip(run(path, input=x, h0=h0, lengths=lengths), quantized(x, h0, lengths=lengths), strict=True):
        assert rms_error(got, want) <= LIMITS[dtype]
    back, rounded = from_onnx(path), quantized.dequantize()
    assert repr(back) == repr(rounded)
    for name, tensor in rounded.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name


@pytest.mark.parametrize("dtype, kind, part", [("int8", TensorProto.INT8, 0.27), ("bf16", TensorProto.BFLOAT16, 0.52)])
def test_the_file_is_small(dtype, kind, part, tmp_path):
    layer = GRU(100, 200)
    to_onnx(layer, tmp_path / "float.onnx")
    to_onnx(layer.quantize(dtype), tmp_path / "model.onnx")
    large, small = ((tmp_path / name).stat().st_size for name in ("float.onnx", "model.onnx"))
    assert small < part * large
    stored = {each.name: each.data_type for each in onnx.load(tmp_path / "model.onnx").graph.initializer}
    assert sum(each == kind for each in stored.values()) == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*LeafSpec:FutureWarning")
@torch.no_grad()
def test_a_model_around_it_is_exported_dequantised(tmp_path):
    model, x = torch.nn.Sequential(torch.nn.Linear(3, 7), GRU(7, 20).quantize("int8")).eval(), torch.randn(6, 5, 3)
    torch.onnx.export(model, (x,), tmp_path / "model.onnx", dynamo=True, verbose=False)
    got = run(tmp_path / "model.onnx", **{onnx.load(tmp_path / "model.onnx").graph.input[0].name: x})
    for one, other in zip(got, model(x), strict=True):
        assert rms_error(one, other) <= LIMITS["int8"]


def test_what_cannot_be_written_is_named(tmp_path):
    with pytest.raises(InputError, match="learn_initial_state=True cannot be written for the ONNX operator GRU"):
        to_onnx(GRU(3, 4, learn_initial_state=True).quantize("int8"), tmp_path / "model.onnx")
