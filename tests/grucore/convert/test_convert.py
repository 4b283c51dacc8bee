"""All converters: other libraries are imported on demand, and layers that cannot be converted are refused."""

import os
import subprocess
import sys

os.environ.setdefault("KERAS_BACKEND", "torch")  # read when Keras is imported

import numpy as np
import pytest
import torch
from torch import nn

from grucore import GRU, InputError, convert
from grucore.convert.weights import gru_of, swap_gates, to_array, to_tensor

pytestmark = pytest.mark.slow

WRITERS = {
    "keras": lambda model, path: convert.to_keras(model),
    "flax": lambda model, path: convert.to_flax(model),
    "onnx": lambda model, path: convert.to_onnx(model, path),
}


def test_import_brings_no_other_library():
    code = """
import sys
import grucore.convert
print([name for name in ("keras", "h5py", "flax", "jax", "onnx", "onnxruntime", "ml_dtypes") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


CALLS = {
    "keras": lambda path: convert.to_keras(GRU(3, 4)),
    "h5py": lambda path: convert.from_keras(__file__),
    "flax": lambda path: convert.from_flax(object()),
    "onnx": lambda path: convert.to_onnx(GRU(3, 4), path),
}


@pytest.mark.parametrize("package", CALLS)
def test_a_missing_library_is_named(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.nnx", None)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        CALLS[package](tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("writer", WRITERS)
def test_other_layers_are_refused(writer, tmp_path):
    with pytest.raises(TypeError, match=r"expected a grucore.GRU .* got GRU"):
        WRITERS[writer](nn.GRU(3, 4), tmp_path / "model.onnx")


OWN = {"zoneout": 0.1, "layer_norm": True, "learn_initial_state": True}


@pytest.mark.parametrize("option", OWN)
@pytest.mark.parametrize("writer", WRITERS)
def test_what_has_no_equal_is_refused(writer, option, tmp_path):
    model = GRU(3, 4)
    setattr(model, option, OWN[option])
    with pytest.raises(ValueError, match=f"{option}={OWN[option]!r} cannot be written for"):
        WRITERS[writer](model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["dropout", "recurrent_dropout"])
@pytest.mark.parametrize("writer", ["keras", "flax"])
def test_dropout_is_left_out_on_demand_alone(writer, option):
    model = GRU(3, 4, num_layers=2)
    setattr(model, option, 0.25)
    convert_to = {"keras": convert.to_keras, "flax": convert.to_flax}[writer]
    with pytest.raises(ValueError, match=rf"{option}=0.25 cannot be written for .* ignore_dropout=True"):
        convert_to(model)
    assert len(convert_to(model, ignore_dropout=True)) == 2


FLAGS = {
    "to_keras": ("ignore_dropout", lambda flag: convert.to_keras(GRU(3, 4), ignore_dropout=flag)),
    "to_flax": ("ignore_dropout", lambda flag: convert.to_flax(GRU(3, 4), ignore_dropout=flag)),
    "from_flax": ("batch_first", lambda flag: convert.from_flax({}, batch_first=flag)),
    "from_keras": ("ignore_dropout", lambda flag: convert.from_keras([], ignore_dropout=flag)),
    "from_keras, form": ("reset_after", lambda flag: convert.from_keras([], reset_after=flag)),
    "from_keras, direction": ("reverse", lambda flag: convert.from_keras([], reverse=flag)),
    "from_onnx": ("batch_first", lambda flag: convert.from_onnx("model.onnx", batch_first=flag)),
    "from_onnx, direction": ("reverse", lambda flag: convert.from_onnx("model.onnx", reverse=flag)),
    "to_onnx": ("lengths", lambda flag: convert.to_onnx(GRU(3, 4), "model.onnx", lengths=flag)),
}


@pytest.mark.parametrize("name, call", FLAGS.values(), ids=FLAGS)
def test_a_flag_is_a_bool(name, call):
    with pytest.raises(TypeError, match=f"^{name} should be of type bool, got: str$"):
        call("no")


def test_gates_are_swapped_there_and_back():
    assert swap_gates(torch.arange(6)).tolist() == [2, 3, 0, 1, 4, 5]
    assert swap_gates(swap_gates(torch.arange(6))).tolist() == list(range(6))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_arrays_and_tensors_have_the_same_bits(dtype):
    tensor = torch.randn(3, 5).to(dtype).t()
    array = to_array(tensor)
    back = to_tensor(array)
    assert array.dtype.name == str(dtype).removeprefix("torch.") and back.dtype is dtype
    assert torch.equal(back, tensor)
    back.zero_()
    assert np.count_nonzero(array.astype(np.float64)) == 15  # a copy


def test_weights_that_make_no_layer():
    w_ih, w_hh = torch.randn(12, 3), torch.randn(12, 4)
    options = {"bidirectional": False, "reset_after": True, "batch_first": False}
    with pytest.raises(InputError, match=r"w_ih of layer 1 must have shape \(12, 4\), got \(12, 3\)"):
        gru_of([(w_ih, w_hh), (w_ih, w_hh)], **options)
    with pytest.raises(TypeError, match=r"w_hh of layer 0 must be torch.float32, as .* got torch.float64"):
        gru_of([(w_ih, w_hh.double())], **options)
    with pytest.raises(TypeError, match=r"weights must be one of .* got torch.int64"):
        gru_of([(w_ih.long(), w_hh.long())], **options)
    with pytest.raises(InputError, match=r"\(3H, I\) and \(3H, H\), got \(12, 0\)"):
        gru_of([(w_ih[:, :0], w_hh)], **options)
    filled = gru_of([(w_ih, w_hh), (w_hh, w_hh, w_hh[:, 0], w_hh[:, 1])], **options)
    assert filled.bias_ih_l0.count_nonzero() == 0 and torch.equal(filled.bias_hh_l1, w_hh[:, 1])
