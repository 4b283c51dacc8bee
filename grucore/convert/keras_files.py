"""Reads GRU layers from the files that Keras writes, with h5py.

There are three formats with the same content:

    model.keras        a zip archive: config.json, and model.weights.h5 in the format of the next line
    name.weights.h5    groups named by attribute, `.../gru/cell/vars/{0,1,2}`; the layer's own name is an attribute
    name.h5            Keras 2 and Keras 3's legacy format: `model_weights/NAME/.../gru_cell/{kernel,...}`, the options
                       in an attribute; files that Keras 2 writes with save_weights lack both
"""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from grucore.convert.weights import require, to_tensor
from grucore.errors import InputError

_KINDS = ("kernel", "recurrent_kernel", "bias")


class KerasLayer(NamedTuple):
    """A GRU layer of Keras, or a Bidirectional around one."""

    name: str
    wrapper: dict[str, Any]  # the config of Bidirectional; {} if there is none, or none is stored
    configs: list[dict[str, Any]]  # per direction, of its GRU; {} if not stored
    weights: list[list[Tensor]]  # per direction: kernel (I, 3H), recurrent kernel (H, 3H) and perhaps bias
    version: str = ""  # of the Keras that wrote the configs; "" if not stored


class _Cell(NamedTuple):
    """The weights of one direction, and where they were found."""

    path: str  # of the layer
    name: str
    direction: int | None  # in a Bidirectional: 0 forward, 1 backward
    weights: list[Tensor]


def read_layers(path: str | os.PathLike[str]) -> dict[str, list[KerasLayer]]:
    """The GRU layers of a file by name, and by the path of their group.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: h5py is not installed.
        InputError: it has none of the formats, or does not describe a layer whose weights it stores.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no Keras file {path}")
    h5py = require("h5py", "h5py")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if missing := {"config.json", "model.weights.h5"} - set(archive.namelist()):
                raise InputError(f"{path} lacks {', '.join(sorted(missing))}: expected an archive written by Keras 3")
            options: Any = json.loads(archive.read("config.json"))
            about = json.loads(archive.read("metadata.json")) if "metadata.json" in archive.namelist() else {}
            version = str(about.get("keras_version", ""))
            weights: Any = io.BytesIO(archive.read("model.weights.h5"))
    elif h5py.is_hdf5(path):
        options, weights, version = None, path, ""
    else:
        raise InputError(f"{path} is neither a .keras archive nor an HDF5 file")
    with h5py.File(weights, "r") as file:
        if "model_config" in file.attrs:
            options = json.loads(file.attrs["model_config"])
            version = str(file.attrs.get("keras_version", ""))
        cells = list(_cells(file, h5py))
    layers: dict[str, list[KerasLayer]] = {}
    for layer_path in dict.fromkeys(cell.path for cell in cells):
        layer = _layer([cell for cell in cells if cell.path == layer_path], options, path)._replace(version=version)
        for key in dict.fromkeys((layer.name, layer_path)):
            layers.setdefault(key, []).append(layer)
    return layers


def _cells(file: Any, h5py: Any) -> Iterator[_Cell]:
    """Finds every group of weights with the shapes of a GRU; copies kept by optimisers are skipped."""
    found: list[tuple[str, dict[str, Any]]] = []

    def visit(path: str, node: Any) -> None:
        if isinstance(node, h5py.Group) and not path.startswith(("optimizer", "_optimizer")):
            arrays = {key.removesuffix(":0"): array for key, array in node.items() if isinstance(array, h5py.Dataset)}
            if path.endswith("/cell/vars"):
                arrays = {kind: arrays[str(i)] for i, kind in enumerate(_KINDS) if str(i) in arrays}
            if {"kernel", "recurrent_kernel"} <= set(arrays):
                found.append((path, arrays))

    file.visititems(visit)
    paths = {path for path, _ in found}
    for path, arrays in found:
        weights = [_tensor(arrays[kind]) for kind in _KINDS if kind in arrays]
        if weights[0].shape[-1] != 3 * weights[1].shape[0]:
            continue  # an LSTM, with four gates, or a simple RNN, without gates
        modern = path.endswith("/cell/vars")
        place, name, direction = _keras_3_place(path, file) if modern else _legacy_place(path, paths)
        yield _Cell(place, name, direction, weights)


def _tensor(dataset: Any) -> Tensor:
    array = dataset[()]
    if dataset.attrs.get("dtype") == "bfloat16":  # HDF5 has no bfloat16: Keras writes the two bytes uninterpreted
        array = array.view(require("ml_dtypes", "ml_dtypes").bfloat16)
    return to_tensor(array)


def _keras_3_place(path: str, file: Any) -> tuple[str, str, int | None]:
    """Path, name and direction of the layer to which `.../cell/vars` belongs."""
    layer = path.removesuffix("/cell/vars")
    parent, _, last = layer.rpartition("/")
    direction = {"forward_layer": 0, "backward_layer": 1}.get(last)
    if direction is not None:
        layer = parent
    named = file.get(f"{layer}/vars")
    name = None if named is None else named.attrs.get("name")
    return layer, str(name or layer.rpartition("/")[2]), direction


def _legacy_place(path: str, paths: set[str]) -> tuple[str, str, int | None]:
    """The same for a group of kernels."""
    parent, _, last = path.rpartition("/")
    layer = parent if re.fullmatch(r"gru_cell(_\d+)?", last) else path
    parent, _, name = layer.rpartition("/")
    for direction, (own, other) in enumerate((("forward_", "backward_"), ("backward_", "forward_"))):
        if name.startswith(own):
            twin = f"{parent}/{other}{name.removeprefix(own)}"
            if any(each == twin or each.startswith(twin + "/") for each in paths):
                return parent, parent.rpartition("/")[2], direction
    return layer, name, None


def _layer(cells: list[_Cell], options: Any, path: Path) -> KerasLayer:
    """A layer from its cells and, if the file has options, its config."""
    name = cells[0].name
    cells = sorted(cells, key=lambda cell: cell.direction or 0)
    weights = [cell.weights for cell in cells]
    bidirectional = [cell.direction for cell in cells] == [0, 1]
    if not bidirectional and [cell.direction for cell in cells] != [None]:
        raise InputError(f"{path}: layer {name!r} must have one direction, or forward and backward")
    if options is None:
        return KerasLayer(name, {}, [{} for _ in cells], weights)
    described = [entry for entry in _described(options) if entry["config"].get("name") == name]
    kind = "Bidirectional" if bidirectional else "GRU"
    is_one = len({json.dumps(entry, sort_keys=True) for entry in described}) == 1
    config = described[0]["config"] if is_one else {}
    wrapped = [config.get("layer"), config.get("backward_layer")] if bidirectional else []
    is_gru = all(each is None or each["class_name"] == "GRU" for each in wrapped)
    if not (is_one and is_gru and described[0]["class_name"] == kind):
        raise InputError(
            f"{path} does not store the options of one {kind} layer {name!r}{' of GRU' if bidirectional else ''}: load "
            "it with Keras and pass the layer"
        )
    if not bidirectional:
        return KerasLayer(name, {}, [config], weights)
    forward = config["layer"]["config"]
    backward = config.get("backward_layer")  # Keras 2 stores it only if the user passed one
    return KerasLayer(
        name,
        config,
        [forward, backward["config"] if backward else {**forward, "go_backwards": not forward.get("go_backwards")}],
        weights,
    )


def _described(options: Any) -> Iterator[dict[str, Any]]:
    """Finds the descriptions of GRU layers and Bidirectionals anywhere in a model's options."""
    if isinstance(options, dict):
        if options.get("class_name") in ("GRU", "Bidirectional") and isinstance(options.get("config"), dict):
            yield options
        else:
            for value in options.values():
                yield from _described(value)
    elif isinstance(options, list):
        for value in options:
            yield from _described(value)
