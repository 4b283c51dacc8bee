"""GRU layers for PyTorch: `from grucore import GRU` takes the place of `torch.nn.GRU`."""

from importlib.util import find_spec
from pathlib import Path

__version__ = "0.1.0"

if find_spec("grucore.kernels") is None:
    # A checkout used as it is: there the package `grucore.kernels` lies beside this one, in `kernels/`.
    __path__.append(str(Path(__file__).resolve().parent.parent))

from grucore.errors import InputError  # noqa: E402
from grucore.functional import gru, gru_cell  # noqa: E402
from grucore.kernels.reference import Gates  # noqa: E402
from grucore.module import GRU, GRUCell  # noqa: E402

__all__ = ["GRU", "GRUCell", "Gates", "InputError", "gru", "gru_cell"]
