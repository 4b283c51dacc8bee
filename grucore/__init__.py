"""GRU layers for PyTorch: `from grucore import GRU` takes the place of `torch.nn.GRU`."""

from importlib.util import find_spec
from pathlib import Path

__version__ = "0.1.0"

if find_spec("grucore.kernels") is None:
    # A checkout used as it is: there the package `grucore.kernels` lies beside this one, in `kernels/`.
    __path__.append(str(Path(__file__).resolve().parent.parent))

from grucore.errors import InputError
from grucore.functional import gru, gru_cell
from grucore.kernels.reference import Gates
from grucore.module import GRU, GRUCell

__all__ = ["GRU", "GRUCell", "Gates", "InputError", "gru", "gru_cell"]
