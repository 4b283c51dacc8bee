"""GRU layers for PyTorch: `from grucore import GRU` takes the place of `torch.nn.GRU`."""

from pathlib import Path

__version__ = "0.1.0"

if not (Path(__file__).parent / "kernels").is_dir():
    # A checkout: there the package `grucore.kernels` lies beside this one, in `kernels/`.
    __path__.append(str(Path(__file__).resolve().parent.parent))

from grucore.cell import GRUCell
from grucore.errors import InputError
from grucore.functional import gru, gru_cell
from grucore.kernels.reference import Gates
from grucore.module import GRU
from grucore.truncated import truncated_bptt

__all__ = ["GRU", "GRUCell", "Gates", "InputError", "gru", "gru_cell", "truncated_bptt"]
