"""ONNX and Keras files with changed bytes or changed contents: readers raise an InputError, in time.

A reader that crashes ends the runner too; its file stays in the folder returned by `folder`.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx
import torch

from grucore import GRU, InputError
from grucore.convert import from_keras, from_onnx, to_onnx

SECONDS = 20  # CPU time that a reader may take


def _weights(group: Any, I: int, H: int, names: tuple[str, ...]) -> None:  # noqa: E741
    for name, shape in zip(names, ((I, 3 * H), (H, 3 * H), (2, 3 * H)), strict=True):
        group[name] = np.random.default_rng(0).standard_normal(shape).astype("float32")


def _keras_config(units: int, two_way: bool = False) -> dict[str, Any]:
    config = {"name": "gru", "units": units, "activation": "tanh", "recurrent_activation": "sigmoid"}
    layer = {"class_name": "GRU", "config": {**config, "reset_after": True, "go_backwards": False}}
    if two_way:
        layer = {"class_name": "Bidirectional", "config": {"name": "both", "layer": layer, "merge_mode": "concat"}}
    return {"class_name": "Sequential", "config": {"layers": [layer]}}


def write_all(folder: Path) -> list[Path]:
    """Small files of every format; each can be read."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    layers = {
        "one": GRU(3, 4),
        "two": GRU(3, 4, num_layers=2, bidirectional=True),
        "plain": GRU(2, 3, bias=False, reset_after=False, batch_first=True),
    }
    for name, layer in layers.items():
        (folder / f"{name}.onnx").unlink(missing_ok=True)
        to_onnx(layer, folder / f"{name}.onnx")
    with h5py.File(folder / "layer.weights.h5", "w") as file:
        _weights(file.create_group("layers/gru/cell/vars"), 3, 4, ("0", "1", "2"))
        file.create_group("layers/gru/vars").attrs["name"] = "gru"
    with h5py.File(folder / "legacy.h5", "w") as file:
        file.attrs["model_config"] = json.dumps(_keras_config(4))
        file.attrs["keras_version"] = "2.15.0"
        _weights(
            file.create_group("model_weights/gru/gru/gru_cell"), 3, 4, ("kernel:0", "recurrent_kernel:0", "bias:0")
        )
    with h5py.File(folder / "both.weights.h5", "w") as file:
        for part in ("forward_layer", "backward_layer"):
            _weights(file.create_group(f"layers/both/{part}/cell/vars"), 3, 4, ("0", "1", "2"))
        file.create_group("layers/both/vars").attrs["name"] = "both"
    for name, two_way in (("layer", False), ("both", True)):
        with zipfile.ZipFile(folder / f"{name}.keras", "w") as archive:
            archive.writestr("config.json", json.dumps(_keras_config(4, two_way)))
            archive.writestr("metadata.json", json.dumps({"keras_version": "3.15.0"}))
            archive.write(folder / f"{name}.weights.h5", "model.weights.h5")
    return sorted(path for path in folder.iterdir() if path.suffix in (".onnx", ".h5", ".keras"))


def read(path: Path) -> GRU:
    """Reads the layer of a file."""
    return from_onnx(path) if path.suffix == ".onnx" else from_keras(path)


def changed_bytes(data: bytes, numbers: random.Random) -> bytes:
    """A file's bytes with a few changes."""
    data_ = bytearray(data)
    for _ in range(numbers.choice([1, 1, 2, 5, 40])):
        if not data_:
            break
        at, size = numbers.randrange(len(data_)), numbers.choice([1, 2, 8, 64])
        kind = numbers.randrange(6)
        if kind == 0:
            data_[at] ^= 1 << numbers.randrange(8)
        elif kind == 1:
            data_[at : at + size] = numbers.choice([b"\xff", b"\0", b"\x7f", b"\x80"]) * size
        elif kind == 2:
            del data_[at : at + size]
        elif kind == 3:
            data_[at:at] = numbers.randbytes(size)
        elif kind == 4:
            there = numbers.randrange(len(data_))
            data_[at : at + size] = data_[there : there + size]
        else:
            del data_[at:]
    return bytes(data_)


def changed_values(value: Any, numbers: random.Random) -> Any:
    """JSON with a few values changed, removed or moved."""
    if isinstance(value, dict) and numbers.random() < 0.9:
        kept = {k: changed_values(v, numbers) for k, v in value.items() if numbers.random() > 0.05}
        return kept if numbers.random() > 0.03 else list(kept.values())
    if isinstance(value, list) and numbers.random() < 0.9:
        return [changed_values(each, numbers) for each in value if numbers.random() > 0.05]
    if numbers.random() < 0.15:
        return numbers.choice([None, 0, -1, 1e300, "", "gru", [], {}, True, [value], {"config": value}])
    return value


def changed_onnx(path: Path, numbers: random.Random) -> bytes:
    """A graph with other names, attributes, shapes and nodes."""
    model = onnx.load(path)
    graph = model.graph
    names = [name for node in graph.node for name in (*node.input, *node.output)] + ["", "x", "nothing"]
    for _ in range(numbers.choice([1, 1, 2, 4])):
        node = numbers.choice(graph.node)
        kind = numbers.randrange(9)
        if kind == 0 and node.input:
            node.input[numbers.randrange(len(node.input))] = numbers.choice(names)
        elif kind == 1 and node.output:
            node.output[numbers.randrange(len(node.output))] = numbers.choice(names)
        elif kind == 2 and node.attribute:
            attribute = numbers.choice(node.attribute)
            attribute.i, attribute.s = (
                numbers.choice([-1, 0, 1, 7, 2**62]),
                numbers.choice([b"", b"reverse", b"\xff\xfe"]),
            )
        elif kind == 3 and node.attribute:
            node.attribute.remove(numbers.choice(node.attribute))
        elif kind == 4 and graph.initializer:
            tensor = numbers.choice(graph.initializer)
            if tensor.dims:
                tensor.dims[numbers.randrange(len(tensor.dims))] = numbers.choice([0, -1, 1, 5, 2**40])
        elif kind == 5 and graph.initializer:
            numbers.choice(graph.initializer).data_type = numbers.choice([0, 1, 6, 7, 8, 9, 10, 11, 14, 16, 17, 99])
        elif kind == 6:
            node.op_type = numbers.choice(
                ["GRU", "LSTM", "Identity", "Transpose", "Squeeze", "Reshape", "Loop", "Expand", ""]
            )
        elif kind == 7:
            graph.node.append(node)
        else:
            graph.node.remove(node)
            if not graph.node:
                break
    return bytes(model.SerializeToString())


def changed_archive(path: Path, numbers: random.Random) -> bytes:
    """A .keras file with changed parts and correct checksums."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name = numbers.choice(list(parts))
    if name.endswith(".json") and numbers.random() < 0.8:
        parts[name] = json.dumps(changed_values(json.loads(parts[name]), numbers)).encode()
    else:
        parts[name] = changed_bytes(parts[name], numbers)
    target = path.with_name("new.zip")
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return target.read_bytes()


def changed_hdf5(path: Path, numbers: random.Random) -> bytes:
    """A file with changed arrays or attributes."""
    target = path.with_name("new.hdf5")
    target.write_bytes(path.read_bytes())
    with h5py.File(target, "r+") as file:
        found: list[Any] = [file]
        file.visititems(lambda _, node: found.append(node))
        node = numbers.choice(found)
        if isinstance(node, h5py.Dataset):
            name, parent = node.name, node.parent
            shape = numbers.choice([(), (0,), (3,), (4, 12), (12, 4), (2, 12), (1, 1, 1)])
            dtype = numbers.choice(["float32", "float64", "int8", "S5", "complex64", "float16"])
            del parent[name]
            if numbers.random() < 0.8:
                parent[name] = np.zeros(shape, dtype)
        for name in node.attrs if not isinstance(node, h5py.Dataset) else ():
            text = node.attrs[name]
            changed = changed_bytes(str(text).encode(), numbers).decode("latin-1").replace("\0", "")
            if numbers.random() < 0.5 and str(text).startswith("{"):
                changed = json.dumps(changed_values(json.loads(text), numbers))
            node.attrs[name] = numbers.choice([changed, changed, 3.0, np.zeros(2)])
    return target.read_bytes()


STRUCTURED: dict[str, Callable[[Path, random.Random], bytes]] = {
    ".onnx": changed_onnx,
    ".h5": changed_hdf5,
    ".keras": changed_archive,
}


class TooLong(BaseException):
    """A reader does not return."""


@contextmanager
def _in_time() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def folder() -> Path:
    """The folder of the files."""
    return Path(tempfile.gettempdir()) / f"grucore-fuzzing-{os.getpid()}"


def one(seed: int, paths: list[Path]) -> list[str]:
    """The failures with a seed."""
    return attempt(random.Random(seed), paths, f"files.one({seed})")


def attempt(numbers: random.Random, paths: list[Path], again: str) -> list[str]:
    """The failures of one changed file; `again` says how to repeat it."""
    path = numbers.choice(paths)
    if numbers.random() < 0.4:
        data = changed_bytes(path.read_bytes(), numbers)
    else:
        data = STRUCTURED[path.suffix](path, numbers)
    target = path.parent / "changed" / path.name
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with _in_time():
                read(target)
        except InputError:
            return []
        except TooLong:
            return [f"{path.name}: no end after {SECONDS} s\n    {again}"]
        except TypeError as error:
            if "weights must be one of" in str(error) or re.search(r"must be torch\.\w+, as the weights", str(error)):
                return []
            return [f"TypeError: {str(error)[:200]}: {path.name}\n    {again}"]
        except Exception as error:
            return [f"{type(error).__name__}: {str(error)[:200]}: {path.name}\n    {again}"]
    return []
