"""The only place that decides which implementation runs a call, and says why.

"reference"    the equations, step by step (`kernels/reference.py`); differentiable in every way
"regularised"  the equations with what regularises them (`kernels/regularised.py`); only "auto" chooses it
"eager"        PyTorch operators with a hand-written backward pass (`kernels/eager`)
"native"       C++ for CPUs (`kernels/native`)
"triton"       fused GPU kernels (`kernels/triton`)
"onnx"         nothing is computed: torch.onnx.export writes a node (`convert/onnx_trace.py`)
"""

import os
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from typing import Literal, NamedTuple, get_args

import torch

from grucore import compat, first_use
from grucore.errors import InputError
from grucore.kernels import Form
from grucore.kernels.native.library import UNAVAILABLE as NO_NATIVE
from grucore.kernels.triton import plan  # which does not import Triton

Backend = Literal["auto", "native", "eager", "triton", "reference"]
BACKENDS = get_args(Backend)

OLDEST_TRITON = (3, 4)


def _version_of_triton() -> str | None:
    """The version installed; the packages for ROCm, XPU and Windows have other names. None of a folder `triton`."""
    if not find_spec("triton"):
        return None
    try:
        return version("triton")
    except PackageNotFoundError:
        return next(map(version, packages_distributions().get("triton", ())), None)


def _no_triton(installed: str | None) -> str | None:
    """Why no kernel can run with the Triton version installed, None where one can."""
    if installed is None:
        return "Triton is not installed"
    if tuple(int(part) for part in installed.split(".")[:2]) < OLDEST_TRITON:
        oldest = ".".join(map(str, OLDEST_TRITON))
        return f"the fused kernels need Triton {oldest} or newer, but {installed} is installed"
    return None


# Known once, without importing Triton: torch.compile traces `choose`, and could not look for a package.
NO_TRITON = _no_triton(_version_of_triton())


_NATIVE_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MOST_UNITS_OF_A_TRAINED_STEP = 400  # measured: 256 are faster natively, 512 slower, with 1 row and with 16
_FUSED = ("recurrent_dropout", "zoneout")  # options that the triton kernels have
_FASTEST = {"cpu": ("native",), "cuda": ("triton",)}


class Request(NamedTuple):
    """The properties of a call that the choice depends on."""

    device: torch.device
    dtype: torch.dtype
    hidden_size: int
    form: Form
    sizes: tuple[int, int, int] = (1, 1, 1)  # T, B, D
    regularised: tuple[str, ...] = ()  # the options that act, by name
    training: bool = False  # they act as in training
    has_steps: bool = False  # lengths, a mask or resets are given
    wants_gates: bool = False  # as `GRU.trace` does
    wants_gradient: bool = False
    is_plain: bool = True  # tensors of PyTorch's own class, and nothing that traces, exports or compiles the call
    is_transformed: bool = False  # torch.func or forward-mode differentiation is active, or there are DTensors
    is_onnx_node: bool = False  # torch.onnx.export runs, and its operator says all of this


class Choice(NamedTuple):
    """The implementation that runs, and why."""

    name: str
    reason: str


def check(backend: str) -> None:
    """Raises an InputError for an unknown backend."""
    if backend not in BACKENDS:
        raise InputError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")


def choose(backend: str, request: Request) -> Choice:
    """The implementation for a request under the user's `backend`.

    Raises:
        InputError: an unknown backend.
        RuntimeError: an explicit backend cannot serve the request.
    """
    check(backend)
    if request.is_onnx_node:
        return Choice("onnx", "torch.onnx.export writes it as a node")
    if backend != "auto":
        if obstacle := _obstacle(backend, request):
            raise RuntimeError(f"backend={backend!r} cannot run: {obstacle}. Use backend='auto'")
        return Choice(backend, "asked for")
    device, first_obstacle = request.device.type, None
    for name in (*_FASTEST.get(device, ()), "eager", "reference"):
        obstacle = _obstacle(name, request)
        if obstacle is None:
            obstacle = _seen_on_first_use(request) if name == "triton" else _slower(name, request)
        if obstacle is None:
            return Choice(name, first_obstacle or f"the implementation for {device} tensors")
        first_obstacle = first_obstacle or obstacle
    return Choice("regularised", first_obstacle or "")


def choose_step(backend: str, request: Request, in_place: bool) -> Choice:
    """The implementation for a single step without flags, as `choose`.

    On the CPU an operator of `torch.library` costs more than a step does: what "auto" cannot compute without one is
    left to PyTorch's autograd, or, where `in_place` says that no gradient is wanted, to "eager".
    """
    if backend == "auto" and request.device.type == "cpu":
        obstacle = _obstacle("native", request) or _slower("native", request)
        if obstacle is None and request.is_plain:
            return Choice("native", "the implementation for cpu tensors")
        obstacle = obstacle or "a step that is compiled, traced or watched is left to PyTorch's operators"
        return Choice("regularised" if request.regularised else "eager" if in_place else "reference", obstacle)
    return choose(backend, request)


def is_step_native(names: tuple[str, ...]) -> bool:
    """Whether the native kernel of a single step has the options that act, by name."""
    return "zoneout" not in names and "recurrent_dropout" not in names


def _obstacle(backend: str, request: Request) -> str | None:
    """Why a backend cannot serve a request, None where it can."""
    what = "the equations have" if backend == "reference" else f"the {backend} kernels have"
    missing = [name for name in request.regularised if backend != "triton" or name not in _FUSED]
    if missing and backend != "native":
        return f"{what} no {' and '.join(missing)}"
    if backend == "reference":
        return None
    if request.wants_gates:
        return f"{what} no gates to return: they never leave the kernel"
    if request.is_transformed:
        return f"{what} no rules for torch.func, forward-mode differentiation and DTensors"
    if backend == "triton":
        return _obstacle_to_triton(request)
    if backend == "native":
        return _obstacle_to_native(request)
    if request.dtype.is_complex:
        return f"{what} no gradients of complex numbers"
    if request.has_steps and request.device.type != "cpu":
        return f"{what} to read lengths, masks and resets on the host, which would wait for {request.device}"
    return None


def _slower(name: str, request: Request) -> str | None:
    """Why PyTorch's operators are faster than an implementation that could serve a request, None where they are not."""
    if name != "native" or not request.regularised or not request.is_plain:  # a trace would fix the sizes
        return None
    if request.hidden_size <= _MOST_UNITS_OF_A_TRAINED_STEP:
        return None
    if request.wants_gradient and request.sizes[0] == 1 and not request.has_steps:
        return "the native kernels pack weights for backward, which is not worth it for one step of so many units"
    return None


def _seen_on_first_use(request: Request) -> str | None:
    T, B, D = request.sizes
    return first_use.obstacle(
        request.device,
        request.dtype,
        request.form,
        request.hidden_size,
        B,
        D,
        is_step=T == D == 1 and not request.has_steps and not request.regularised,
        regularised=request.regularised,
        training=request.training and request.regularised != (),
        has_steps=request.has_steps,
        wants_gradient=request.wants_gradient,
    )


def _obstacle_to_native(request: Request) -> str | None:
    if request.device.type != "cpu":
        return f"the native kernels run on the CPU, but the tensors are on {request.device}"
    if NO_NATIVE:
        return NO_NATIVE
    if request.regularised and compat.in_onnx_export():
        return f"torch.onnx.export writes {' and '.join(request.regularised)} step by step"
    if request.dtype not in _NATIVE_DTYPES:
        return f"the native kernels take float16, bfloat16, float32 and float64, but the dtype is {request.dtype}"
    return None


def _obstacle_to_triton(request: Request) -> str | None:
    if NO_TRITON:
        return NO_TRITON
    device, dtype = request.device, request.dtype
    if torch.version.hip:
        return "the triton kernels contain PTX, for NVIDIA's GPUs, and this is PyTorch for AMD's"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the triton kernels need a CUDA device, but the tensors are on {device}"
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"the triton kernels take float16, bfloat16 and float32, but the dtype is {dtype}"
    if not request.form.reset_after:
        return "the triton kernels have no reset_after=False"
    arithmetic = plan.kind(dtype, request.form.precision)
    try:
        for recurrence in ("forward", "backward"):
            plan.plan(recurrence, 1, request.hidden_size, 1, arithmetic, plan.device(device))
    except ValueError as error:
        return str(error)
    return None
