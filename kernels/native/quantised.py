"""Quantised weights, packed once for the kernels of quantised.cpp."""

import struct
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from .library import LIBRARY

_PACK = struct.Struct("=10q").pack


class Quantised(NamedTuple):
    """One direction's weights instead of `Weights`: the function that reads them, and their packed form."""

    function: str
    memory: Tensor


def packed(tensors: Mapping[str, Tensor], reset_after: bool) -> Quantised:
    """One direction's w_ih and w_hh, packed, with b_ih and b_hh if any, and, of int8, w_ih_scale and w_hh_scale."""
    assert LIBRARY is not None
    given = {name: tensor.contiguous() for name, tensor in tensors.items()}
    addresses = {name: tensor.data_ptr() for name, tensor in given.items()}
    is_int8, (_, H) = given["w_hh"].dtype is torch.int8, given["w_hh"].shape
    order = ("w_ih", "w_hh", "w_ih_scale", "w_hh_scale", "b_ih", "b_hh")
    fields = is_int8, reset_after, given["w_ih"].shape[1], H, *(addresses.get(name, 0) for name in order)
    weights = _PACK(*fields)
    memory = torch.empty(LIBRARY.gru_quantised_bytes(weights), dtype=torch.uint8, device="cpu")
    LIBRARY.gru_quantised_pack(weights, memory.data_ptr())
    return Quantised("gru_forward_int8" if is_int8 else "gru_forward_bf16", memory)
