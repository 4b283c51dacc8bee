"""Converts torch.nn.GRU's layouts (time first, batch first, unbatched, packed) to a time-major batch, and back."""

from typing import Any, NamedTuple

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from grucore.compat import in_onnx_export
from grucore.errors import InputError, check_tensor, differ
from grucore.functional import Call
from grucore.steps import as_lengths, check_step_flag, repack, unpack


class Layout(NamedTuple):
    """The layout of a call's input."""

    is_batched: bool = True
    is_batch_first: bool = False
    packed: PackedSequence | None = None
    lengths: Tensor | None = None  # of the packed rows

    def sequence(self, y: Tensor) -> Any:
        """Outputs (..., T, B, F) in this layout."""
        if self.packed is not None:
            assert self.lengths is not None
            return repack(y, self.lengths, self.packed)
        return y.transpose(-3, -2) if self.is_batch_first else self.unbatched(y)

    def state(self, h_n: Tensor) -> Tensor:
        """States (K*D, B, H) in this layout."""
        if self.packed is not None and self.packed.unsorted_indices is not None:
            return h_n.index_select(1, self.packed.unsorted_indices)
        return self.unbatched(h_n)

    def unbatched(self, tensor: Tensor) -> Tensor:
        """Removes B from a tensor (..., B, F) if the input was unbatched."""
        return tensor if self.is_batched else tensor.squeeze(-2)


class Arranged(NamedTuple):
    """The arguments of a call, time-major and batched, and their original layout."""

    input: Tensor
    hx: Tensor | None
    call: Call
    layout: Layout


def arranged(
    input: Tensor | PackedSequence, hx: Tensor | None, call: Call, batch_first: bool, states: tuple[int, int]
) -> Arranged:
    """The arguments of `GRU.forward`, time-major and batched; `states` is (K*D, H).

    Raises:
        InputError, TypeError: a wrong argument; shapes are reported in the user's layout.
    """
    if isinstance(input, PackedSequence):
        return _from_packed(input, hx, call, states)
    if not isinstance(input, Tensor):
        raise TypeError(f"input must be a Tensor or a PackedSequence, got {type(input).__name__}")
    if hx is not None:
        check_tensor("hx", hx)
    if input.dim() not in (2, 3):
        raise InputError(f"GRU: Expected input to be 2D or 3D, got {input.dim()}D instead")
    batched = input.dim() == 3
    if hx is not None and hx.dim() != input.dim():
        kind = "batched 3-D" if batched else "unbatched 2-D"
        raise InputError(f"For {kind} input, hx should also be {input.dim()}-D but got {hx.dim()}-D tensor")
    if not batched:
        return _from_unbatched(input, hx, call, states)
    if not batch_first:
        return Arranged(input, hx, call, Layout())
    flags = {"mask": call.mask, "reset": call.reset}
    for name, flag in flags.items():
        if flag is not None:
            check_step_flag(name, flag, B=input.shape[0], T=input.shape[1])
            flags[name] = flag.t()
    return Arranged(input.transpose(0, 1), hx, call._replace(**flags), Layout(is_batch_first=True))


def _from_unbatched(input: Tensor, hx: Tensor | None, call: Call, states: tuple[int, int]) -> Arranged:
    lengths, mask, reset, reset_state = call
    if lengths is not None:
        lengths = as_lengths(lengths).reshape(-1)
        if differ(lengths.shape, (1,)):
            raise InputError(f"an unbatched input has one length, got {len(lengths)}")
    for name, flag in (("mask", mask), ("reset", reset)):
        if flag is not None:
            check_step_flag(name, flag, T=len(input))
    if reset_state is not None:
        check_tensor("reset_state", reset_state)
        if differ(reset_state.shape, states):
            raise InputError(f"Expected reset_state of shape {states}, got {tuple(reset_state.shape)}")
    hx, mask, reset, reset_state = (None if t is None else t.unsqueeze(1) for t in (hx, mask, reset, reset_state))
    return Arranged(input.unsqueeze(1), hx, Call(lengths, mask, reset, reset_state), Layout(is_batched=False))


def _from_packed(packed: PackedSequence, hx: Tensor | None, call: Call, states: tuple[int, int]) -> Arranged:
    if given := [name for name, value in call._asdict().items() if value is not None]:
        raise InputError(
            f"{', '.join(given)} requires a padded input, got a PackedSequence: "
            "pad_packed_sequence gives the padded input and its lengths"
        )
    if in_onnx_export():
        raise InputError(
            "a PackedSequence cannot be exported to ONNX: pass the padded input and lengths=, which computes the same "
            "without sorting"
        )
    if hx is not None:
        check_tensor("hx", hx)
    if packed.data.dim() != 2:
        raise InputError(f"a PackedSequence must hold 2-dimensional data (N, I), got {tuple(packed.data.shape)}")
    if hx is not None and packed.sorted_indices is not None:
        if hx.dim() != 3 or hx.shape[1] != len(packed.sorted_indices):
            expected = (states[0], len(packed.sorted_indices), states[1])
            raise InputError(f"Expected hidden size {expected}, got {list(hx.shape)}")
        hx = hx.index_select(1, packed.sorted_indices)
    x, lengths = unpack(packed)
    return Arranged(x, hx, Call(lengths), Layout(packed=packed, lengths=lengths))
