"""The compared implementations, by their names in results."""

from benchmarks.providers.base import Provider
from benchmarks.providers.converted import Keras, OnnxRuntime, OpenVino
from benchmarks.providers.gpu_libraries import FlashRnn, Haste, TorchRl, Xma
from benchmarks.providers.ours import GrucoreAuto, GrucoreEager, GrucorePacked, GrucoreTriton
from benchmarks.providers.pytorch import Compiled, Lstm, Products, Torch, TorchPadded

PROVIDERS: dict[str, type[Provider]] = {
    "grucore-auto": GrucoreAuto,
    "grucore-packed": GrucorePacked,
    "grucore-eager": GrucoreEager,
    "grucore-triton": GrucoreTriton,
    "torch": Torch,
    "torch-padded": TorchPadded,
    "torch-compile": Compiled,
    "torch-lstm": Lstm,
    "products": Products,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "keras": Keras,
    "flashrnn": FlashRnn,
    "haste": Haste,
    "torchrl": TorchRl,
    "xma": Xma,
}
