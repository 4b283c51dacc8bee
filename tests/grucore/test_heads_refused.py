"""Checks that converters without heads, and wrong numbers of heads, are refused by name."""

import pytest
import torch
from torch import nn

from grucore import GRU, GRUCell, InputError, gru, gru_cell
from grucore.convert import replace_torch, restore_torch, to_flax, to_keras, to_onnx

REFUSED = {
    "torch.nn": (lambda layer, _: layer.to_torch(), "torch.nn.GRU has no heads=4, .*to_dense"),
    "a model's": (
        lambda layer, _: restore_torch(nn.Sequential(layer)),
        "no heads=4, so '0' cannot be converted. to_dense",
    ),
    "a cell": (lambda *_: GRUCell(3, 8, heads=2).to_torch(), "torch.nn.GRUCell has no heads=2, .*to_dense"),
    "ONNX": (lambda layer, path: to_onnx(layer, path / "a.onnx"), "heads=4 cannot be written for the ONNX .*to_dense"),
    "Keras": (lambda layer, _: to_keras(layer), "heads=4 cannot be written for .*to_dense"),
    "Flax": (lambda layer, _: to_flax(layer), "heads=4 cannot be written for .*to_dense"),
    "packed weights": (lambda layer, _: layer.packed_weights(), "packed_weights cannot keep the weights of heads=4"),
}


@pytest.mark.parametrize("call, message", REFUSED.values(), ids=REFUSED)
def test_what_knows_no_heads_says_so(call, message, tmp_path):
    with pytest.raises(InputError, match=message):
        call(GRU(3, 8, heads=4), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("dynamo", [True, False])
def test_onnx_exporters_say_so(dynamo, tmp_path):
    pytest.importorskip("onnxscript")
    model = nn.Sequential(GRU(3, 8, heads=4))
    with pytest.raises(
        Exception, match=r"heads=4 cannot be exported: the ONNX operator GRU cannot express it.*to_dense"
    ):
        torch.onnx.export(model, (torch.randn(5, 2, 3),), str(tmp_path / "model.onnx"), dynamo=dynamo)


def test_replacing_leaves_one_head():
    model = nn.Sequential(nn.GRU(3, 4))
    replace_torch(model)
    assert model[0].heads == 1 and model[0](torch.randn(5, 2, 3))[0].shape == (5, 2, 4)


BAD = {
    "no divisor": (InputError, {"heads": 3}, "heads must divide hidden_size, got heads=3 and hidden_size=8"),
    "more than units": (InputError, {"heads": 16}, "heads must divide hidden_size, got heads=16 and hidden_size=8"),
    "none": (InputError, {"heads": 0}, "heads must be greater than zero, got 0"),
    "negative": (InputError, {"heads": -2}, "heads must be greater than zero, got -2"),
    "a bool": (TypeError, {"heads": True}, "heads should be of type int, got: bool"),
    "a float": (TypeError, {"heads": 2.0}, "heads should be of type int, got: float"),
}


@pytest.mark.parametrize("kind", [GRU, GRUCell])
@pytest.mark.parametrize("error, options, message", BAD.values(), ids=BAD)
def test_bad_numbers_of_heads(kind, error, options, message):
    with pytest.raises(error, match=message):
        kind(3, 8, **options)


def test_bad_weights():
    x, h, (w_ih, w_hh, *biases) = torch.randn(5, 2, 3), torch.randn(2, 8), GRU(3, 8, heads=4).all_weights[0]
    with pytest.raises(InputError, match=r"w_hh must have shape \(3H, H\), got \(4, 6, 2\)"):
        gru(x, None, [(w_ih, w_hh, *biases)])
    with pytest.raises(InputError, match=r"w_hh must have shape \(4, 3H/4, H/4\), got \(24, 8\)"):
        gru(x, None, [(w_ih, GRU(3, 8).weight_hh_l0, *biases)], heads=4)
    with pytest.raises(InputError, match=r"w_ih must have shape \(12, 3\), got \(24, 3\)"):
        gru_cell(x[0], h[:, :4], w_ih, w_hh, *biases, heads=2)
    with pytest.raises(InputError, match=r"w_hh must have shape \(4, 6, 2\), got \(4, 5, 2\)"):
        gru(x, None, [(w_ih, w_hh[:, :5], *biases)], heads=4)
    with pytest.raises(InputError, match="hx must have shape"):
        gru_cell(x[0], h[:, :4], w_ih, w_hh, *biases, heads=4)


def test_calls_are_checked_as_ever():
    layer = GRU(3, 8, heads=4)
    with pytest.raises(InputError, match="Expected hidden size"):
        layer(torch.randn(5, 2, 3), torch.randn(1, 2, 2))
    assert layer(torch.randn(0, 2, 3))[0].shape == (0, 2, 8) and layer(torch.randn(5, 0, 3))[1].shape == (1, 0, 8)
