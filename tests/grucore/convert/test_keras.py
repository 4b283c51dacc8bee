"""from_keras and to_keras against Keras itself, on its PyTorch backend, and on files that it wrote."""

import itertools
import json
import os
import sys
import zipfile

os.environ.setdefault("KERAS_BACKEND", "torch")  # read when Keras is imported

import h5py
import ml_dtypes
import numpy as np
import pytest
import torch
from oracle import rms_error

from grucore import GRU, InputError
from grucore.convert import from_keras, to_keras

pytestmark = pytest.mark.slow

LIMIT = 2e-6  # RMS error of float32 outputs against Keras; measured at most 1.3e-7

FORMS = list(itertools.product([True, False], [True, False], [True, False]))
FORM_IDS = [
    "-".join(("after" if reset_after else "before", "two" if bidirectional else "one", "bias" if bias else "no-bias"))
    for reset_after, bidirectional, bias in FORMS
]


@pytest.fixture(scope="module")
def keras():
    import keras

    return keras


def randomised(layer):
    """Gives a layer weights without zeros, since Keras initialises biases to 0."""
    random = np.random.default_rng(len(layer.get_weights()))
    layer.set_weights([random.uniform(-0.6, 0.6, w.shape).astype(w.dtype) for w in layer.get_weights()])
    return layer


def built(keras, input_size=3, bidirectional=False, **options):
    layer = keras.layers.GRU(4, **{"return_sequences": True, **options})
    layer = keras.layers.Bidirectional(layer) if bidirectional else layer
    layer.build((None, None, input_size))
    return randomised(layer)


def outputs(layers, x):
    """The outputs of a stack of Keras layers for (B, T, I)."""
    for layer in layers:
        x = layer(x)
    return torch.as_tensor(x.detach())


def same_parameters(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("reset_after, bidirectional, bias", FORMS, ids=FORM_IDS)
def test_a_stack_from_keras(keras, reset_after, bidirectional, bias):
    options = {"reset_after": reset_after, "use_bias": bias, "bidirectional": bidirectional}
    layers = [built(keras, 3, **options), built(keras, 8 if bidirectional else 4, **options)]
    ours, x = from_keras(layers, reset_after=reset_after), torch.randn(5, 7, 3)
    assert (ours.batch_first, ours.num_layers, ours.bias, ours.reset_after) == (True, 2, bias, reset_after)
    assert rms_error(ours(x)[0], outputs(layers, x)) <= LIMIT
    for layer, copy in zip(layers, to_keras(ours), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(layer.get_weights(), copy.get_weights(), strict=True))


@pytest.mark.parametrize("reset_after, bidirectional, bias", FORMS, ids=FORM_IDS)
def test_a_stack_to_keras(keras, reset_after, bidirectional, bias):
    ours = GRU(3, 4, num_layers=2, bidirectional=bidirectional, bias=bias, reset_after=reset_after)
    layers, x = to_keras(ours), torch.randn(7, 5, 3)
    assert rms_error(ours(x)[0].transpose(0, 1), outputs(layers, x.transpose(0, 1))) <= LIMIT
    back = from_keras(layers)
    if reset_after or not bias:
        assert same_parameters(back, ours)
        return
    assert rms_error(back(x.transpose(0, 1))[0], ours(x)[0].transpose(0, 1)) <= LIMIT
    for name, value in back.state_dict().items():
        if "bias_hh" in name:
            assert value.count_nonzero() == 0
        else:
            other = ours.state_dict()[name.replace("bias_ih", "bias_hh")]
            assert torch.equal(value, ours.state_dict()[name] + (other if "bias" in name else 0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtypes_are_kept(keras, dtype):
    ours = GRU(3, 4, bidirectional=True, dtype=dtype)
    (layer,) = to_keras(ours)
    assert layer.variable_dtype == str(dtype).removeprefix("torch.")
    assert same_parameters(from_keras(layer), ours) and from_keras(layer).weight_hh_l0.dtype is dtype


def test_masked_and_initial_states(keras):
    """The final state of a right-padded batch, and an initial state."""
    layer = built(keras, return_state=True)
    ours, x, h0 = from_keras(layer), torch.randn(2, 6, 3), torch.randn(2, 4)
    mask = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    _, state = layer(x, mask=mask, initial_state=h0)
    assert rms_error(ours(x, h0[None], mask=mask)[1][0], state.detach()) <= LIMIT


def test_masked_steps(keras):
    """A unidirectional layer repeats its output unless told otherwise; a bidirectional one gives 0."""
    mask, x = torch.tensor([[True, True, False, True, False]]), torch.randn(1, 5, 3)
    for options in ({"bidirectional": True}, {"zero_output_for_mask": True}, {}):
        layer = built(keras, **options)
        theirs, ours = torch.as_tensor(layer(x, mask=mask).detach()), from_keras(layer)(x, mask=mask)[0]
        assert rms_error(ours[mask], theirs[mask]) <= LIMIT and ours[~mask].count_nonzero() == 0
        assert torch.equal(theirs[~mask], ours[~mask] if options else theirs[:, [1, 3]][0])


FUNCTIONS = [("relu", "hard_sigmoid"), ("hard_tanh", "sigmoid"), ("softsign", "linear"), ("linear", "softsign")]


@pytest.mark.parametrize("activation, recurrent_activation", FUNCTIONS)
def test_activations_there_and_back(keras, activation, recurrent_activation, tmp_path):
    options = {"activation": activation, "recurrent_activation": recurrent_activation}
    ours = GRU(3, 4, bidirectional=activation == "relu", reset_after=activation != "linear", bias=False, **options)
    (layer,) = to_keras(ours)
    x = 3 * torch.randn(5, 7, 3)  # beyond where the hard functions bend
    assert rms_error(ours(x.transpose(0, 1))[0].transpose(0, 1), outputs([layer], x)) <= LIMIT
    files = [save(keras, tmp_path, layer, formats=("keras", "h5"))]
    files.append(files[0].with_suffix(".h5"))
    for each in (layer, *files):
        back = from_keras(each)
        assert (back.activation, back.recurrent_activation) == (activation, recurrent_activation)
        assert same_parameters(back, ours)
    with pytest.raises(InputError, match=r"must agree in .* activation"):
        from_keras([layer, built(keras, 8, bidirectional=ours.bidirectional, use_bias=False)])


def test_go_backwards_on_demand(keras, tmp_path):
    first, second = built(keras, go_backwards=True), built(keras, 4)
    ours, x = from_keras([first, second], reverse=True), torch.randn(3, 6, 3)
    assert rms_error(ours(x.flip(1))[0], outputs([first, second], x)) <= LIMIT
    mask = torch.tensor([6, 2, 4]).unsqueeze(1) > torch.arange(6)
    theirs = torch.as_tensor(first(x, mask=mask).detach())
    mine, real = from_keras(first, reverse=True)(x.flip(1), mask=mask.flip(1))[0], mask.flip(1)
    assert rms_error(mine[real], theirs[real]) <= LIMIT
    path = save(keras, tmp_path, first)
    for each in (path, path.with_name("model.weights.h5")):  # the second does not store go_backwards
        assert same_parameters(from_keras(each, reverse=True), from_keras(first, reverse=True))
    with pytest.raises(ValueError, match="has go_backwards=False; only True can be converted here"):
        from_keras(second, reverse=True)
    with pytest.raises(ValueError, match="has go_backwards=True: if it is the first of a stack"):
        from_keras([second, built(keras, 4, go_backwards=True)])
    with pytest.raises(ValueError, match="is bidirectional: reverse=True is only for go_backwards=True"):
        from_keras(built(keras, bidirectional=True), reverse=True)


def test_mismatched_widths_are_named(keras):
    wide, narrow = keras.layers.GRU(16, name="wide"), keras.layers.GRU(8, name="narrow")
    wide.build((None, None, 3))
    narrow.build((None, None, 16))
    with pytest.raises(InputError, match=r"'narrow' has units=8, but the one before, 'wide', has 16: .* convert each"):
        from_keras([wide, narrow])
    with pytest.raises(InputError, match=r"reads 3 features, but the one before, .*, gives 4"):
        from_keras([built(keras), built(keras)])
    with pytest.raises(InputError, match=r"reads 4 features, but the one before, .*, gives 8"):
        from_keras([built(keras, bidirectional=True), built(keras, 4, bidirectional=True)])


@pytest.fixture(scope="module")
def saved(keras, tmp_path_factory):
    """A model with a model inside, in the three formats; and its layers."""
    layers = {
        "first": keras.layers.Bidirectional(keras.layers.GRU(4, return_sequences=True), name="first"),
        "second": keras.layers.GRU(5, return_sequences=True, name="second"),
        "third": keras.layers.GRU(5, return_sequences=True, name="third", unroll=True, implementation=1),
        "before": keras.layers.GRU(6, name="before", reset_after=False),
    }
    inner = keras.Sequential([keras.Input((4, 5)), layers["second"], keras.layers.LSTM(5, return_sequences=True)])
    model = keras.Sequential([keras.Input((4, 3)), layers["first"], keras.layers.Dense(5), inner])
    model.add(layers["third"])
    model.add(layers["before"])
    model.compile("adam", "mse")
    for layer in layers.values():
        randomised(layer)
    model.fit(np.ones((2, 4, 3)), np.ones((2, 6)), verbose=0)  # so that the files contain an optimizer's state
    folder = tmp_path_factory.mktemp("keras")
    model.save(folder / "model.keras")
    model.save_weights(folder / "model.weights.h5")
    model.save(folder / "model.h5")
    return folder, layers


@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5", "model.h5"])
def test_layers_of_a_file(saved, name, monkeypatch):
    folder, layers = saved
    want = {name: from_keras(layer) for name, layer in layers.items()}
    stack = from_keras([layers["second"], layers["third"]])
    monkeypatch.setitem(sys.modules, "keras", None)  # h5py is enough
    for layer in layers:
        assert same_parameters(from_keras(folder / name, layer), want[layer])
        assert from_keras(str(folder / name), layer).reset_after is (layer != "before")
    assert same_parameters(from_keras(folder / name, ["second", "third"]), stack)
    with pytest.raises(InputError, match=r"must have one GRU layer, or `layer` must name one; it has .*'second'"):
        from_keras(folder / name)
    with pytest.raises(InputError, match=r"has no GRU layer 'fourth'; it has .*'second'"):
        from_keras(folder / name, ["second", "fourth"])
    with pytest.raises(InputError, match="at least one layer"):
        from_keras(folder / name, [])
    with pytest.raises(InputError, match="must agree in reset_after, in being bidirectional"):
        from_keras(folder / name, ["third", "before"])


def save(keras, folder, *layers, formats=("keras",)):
    model = keras.Sequential([keras.Input((None, 3)), *layers])
    for each in formats:
        model.save(folder / f"model.{each}")
    model.save_weights(folder / "model.weights.h5")
    return folder / "model.keras"


def test_one_layer_needs_no_name(keras, tmp_path):
    layer = keras.layers.GRU(4)
    path = save(keras, tmp_path, layer)
    assert same_parameters(from_keras(path), from_keras(layer))


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_a_wrapped_layer_of_another_class_is_refused(suffix, keras, tmp_path):
    """An RNN keeps the options of its cell elsewhere, where nobody would look."""
    cell = keras.layers.GRUCell(4, activation="relu")
    layer = keras.layers.Bidirectional(keras.layers.RNN(cell, return_sequences=True))
    path = save(keras, tmp_path, layer, formats=(suffix,)).with_name(f"model.{suffix}")
    with pytest.raises(InputError, match=r"does not store the options of one Bidirectional layer .* of GRU"):
        from_keras(path)


def test_cells_in_a_stack_of_cells_are_no_layer(keras, tmp_path):
    cells = [keras.layers.GRUCell(4), keras.layers.GRUCell(4)]
    path = save(keras, tmp_path, keras.layers.RNN(cells)).with_name("model.weights.h5")
    with pytest.raises(InputError, match="must have one GRU layer"):
        from_keras(path)


def test_bfloat16_in_a_file(keras, tmp_path):
    """Keras writes bfloat16 like this on JAX; on PyTorch it writes float32 instead."""
    layer = keras.layers.GRU(4)
    save(keras, tmp_path, layer)
    with h5py.File(tmp_path / "model.weights.h5", "a") as file:
        group = file["layers/gru/cell/vars"]
        for name in ("0", "1", "2"):
            array = group[name][()].astype(ml_dtypes.bfloat16)
            del group[name]
            group.create_dataset(name, data=array).attrs["dtype"] = "bfloat16"
    found = from_keras(tmp_path / "model.weights.h5")
    assert same_parameters(found, from_keras(layer).bfloat16()) and found.weight_hh_l0.dtype is torch.bfloat16


def test_a_name_that_is_there_twice(keras, tmp_path):
    inner = keras.Sequential([keras.Input((None, 4)), keras.layers.GRU(4, name="same")])
    save(keras, tmp_path, keras.layers.GRU(4, name="same", return_sequences=True), inner)
    with pytest.raises(InputError, match=r"more than one layer 'same'; give a path of .*'layers/sequential"):
        from_keras(tmp_path / "model.weights.h5", "same")
    found = from_keras(tmp_path / "model.weights.h5", "layers/gru")
    assert found.input_size == 3
    with pytest.raises(InputError, match="does not store the options of one GRU layer 'same'"):
        from_keras(tmp_path / "model.keras", "layers/gru")


def test_weights_alone_without_bias(keras, tmp_path):
    path = save(keras, tmp_path, keras.layers.GRU(4, use_bias=False, reset_after=False)).with_name("model.weights.h5")
    with pytest.raises(InputError, match="without options and without bias: pass reset_after"):
        from_keras(path)
    assert not from_keras(path, reset_after=False).reset_after
    with pytest.raises(InputError, match="reset_after is False, the caller says True"):
        from_keras(tmp_path / "model.keras", reset_after=True)


def test_a_file_of_keras_2(tmp_path):
    """Its format: `:0` after names, numbered cells, no backward_layer in the options."""
    random = np.random.default_rng(0)
    shapes = {"kernel:0": (3, 12), "recurrent_kernel:0": (4, 12), "bias:0": (2, 12)}
    forward, backward = ({k: random.normal(size=s).astype(np.float32) for k, s in shapes.items()} for _ in range(2))
    options = {"name": "gru", "units": 4, "activation": "tanh", "recurrent_activation": "sigmoid", "reset_after": True}
    options |= {"go_backwards": False, "dropout": 0.0}
    wrapper = {"name": "both", "merge_mode": "concat", "layer": {"class_name": "GRU", "config": options}}
    config = {"class_name": "Sequential", "config": {"layers": [{"class_name": "Bidirectional", "config": wrapper}]}}

    def write(path, config):
        with h5py.File(path, "w") as file:
            file.attrs["model_config"] = json.dumps(config)
            group = file.create_group("model_weights/both/both")
            for part, cell, weights in (
                ("forward_gru", "gru_cell_1", forward),
                ("backward_gru", "gru_cell_2", backward),
            ):
                for name, array in weights.items():
                    group.create_dataset(f"{part}/{cell}/{name}", data=array)
        return path

    gru = from_keras(write(tmp_path / "old.h5", config))
    z, r, n = np.split(forward["kernel:0"].T, 3)
    assert torch.equal(gru.weight_ih_l0, torch.tensor(np.concatenate([r, z, n])))
    z, r, n = np.split(backward["bias:0"][1], 3)
    assert torch.equal(gru.bias_hh_l0_reverse, torch.tensor(np.concatenate([r, z, n])))
    options["recurrent_activation"] = "hard_sigmoid"
    with pytest.raises(
        ValueError, match="'both' has recurrent_activation='hard_sigmoid' and does not say that it is from Keras 3"
    ):
        from_keras(write(tmp_path / "older.h5", config))


def tanh(x):
    return torch.tanh(x)


REFUSED = {
    "activation": ({"activation": "elu"}, "activation=<function elu.*; only tanh, .* can be converted"),
    "own activation": ({"activation": tanh}, "activation=<function tanh"),
    "recurrent_activation": ({"recurrent_activation": "softmax"}, "recurrent_activation=<function softmax"),
    "go_backwards": ({"go_backwards": True}, r"go_backwards=True: .* reverse=True converts it .* gru\(x.flip\(1"),
    "stateful": ({"stateful": True}, "stateful=True"),
    "dropout": ({"dropout": 0.5}, "dropout=0.5, .* ignore_dropout=True leaves it out"),
    "recurrent_dropout": ({"recurrent_dropout": 0.5}, "recurrent_dropout=0.5"),
}


@pytest.mark.parametrize("options, message", REFUSED.values(), ids=REFUSED)
def test_options_that_grucore_lacks(keras, options, message):
    layer = keras.layers.GRU(4, **options)
    layer.build((2, None, 3))
    with pytest.raises(ValueError, match=message):
        from_keras(layer)


def test_options_of_a_file_are_checked(keras, tmp_path):
    path = save(keras, tmp_path, keras.layers.GRU(4, name="a", activation="elu", dropout=0.1), formats=["keras", "h5"])
    for each in (path, path.with_suffix(".h5")):
        with pytest.raises(ValueError, match="'a' has activation='elu'; only tanh, "):
            from_keras(each)


def test_dropout_is_left_out_on_demand(keras):
    layer = built(keras, dropout=0.5, recurrent_dropout=0.5)
    x = torch.randn(2, 5, 3)
    assert rms_error(from_keras(layer, ignore_dropout=True)(x)[0], outputs([layer], x)) <= LIMIT


def test_other_sources_are_refused(keras, tmp_path):
    with pytest.raises(TypeError, match=r"expected a keras.layers.GRU, .* got LSTM"):
        from_keras(keras.layers.LSTM(4))
    with pytest.raises(TypeError, match="got Bidirectional around LSTM"):
        from_keras(keras.layers.Bidirectional(keras.layers.LSTM(4)))
    summed = keras.layers.Bidirectional(keras.layers.GRU(4), merge_mode="sum")
    summed.build((2, None, 3))
    with pytest.raises(ValueError, match="merge_mode='sum'; only 'concat' can be converted"):
        from_keras(summed)
    with pytest.raises(InputError, match="has no weights yet"):
        from_keras(keras.layers.GRU(4))
    with pytest.raises(InputError, match="at least one layer"):
        from_keras([])
    with pytest.raises(InputError, match="layer='gru' requires a file"):
        from_keras(built(keras), "gru")
    with pytest.raises(FileNotFoundError, match="no Keras file"):
        from_keras(tmp_path / "missing.keras")
    (tmp_path / "text.h5").write_text("text")
    with pytest.raises(InputError, match=r"neither a .keras archive nor an HDF5 file"):
        from_keras(tmp_path / "text.h5")
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(InputError, match=r"lacks model.weights.h5"):
        from_keras(tmp_path / "other.keras")


@pytest.mark.parametrize("place, shape", [("1", (4, 9)), ("2", (3, 12))])
def test_weights_of_a_wrong_shape_are_refused(keras, tmp_path, place, shape):
    save(keras, tmp_path, keras.layers.GRU(4))
    with h5py.File(tmp_path / "model.weights.h5", "a") as file:
        del file[f"layers/gru/cell/vars/{place}"]
        file[f"layers/gru/cell/vars/{place}"] = np.zeros(shape)
    with pytest.raises(InputError, match=r"must have weights of shapes .* got .*\(3, 12\)"):
        from_keras(tmp_path / "model.weights.h5")


def test_damaged_files_are_named(keras, tmp_path):
    """The file is named, whatever zip, JSON or HDF5 raise; tests/fuzzing has more."""
    path = save(keras, tmp_path, keras.layers.GRU(4))
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    for name, data in (
        ("config.json", b"{"),
        ("config.json", parts["config.json"].replace(b'"config"', b'"other"')),
        ("model.weights.h5", parts["model.weights.h5"][:900]),
    ):
        with zipfile.ZipFile(path, "w") as archive:
            for part, content in (parts | {name: data}).items():
                archive.writestr(part, content)
        with pytest.raises(
            InputError, match=r"model\.keras (is damaged or has another format|does not store the options)"
        ):
            from_keras(path)
    path.write_bytes(path.read_bytes()[:-5] + b"\0" * 5)
    with pytest.raises(InputError):
        from_keras(path)
