"""Intended differences from torch.nn.GRU, each with the reason."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .compare import Outcome


def known(statement: str, want: Outcome, got: Outcome, what: str) -> str | None:
    """The reason for an intended difference, or None."""
    return next((reason for reason, applies in REASONS.items() if applies(statement, want, got, what)), None)


def _type_error_said(statement: str, want: Outcome, got: Outcome, what: str) -> bool:
    return type(want.error) is AttributeError and type(got.error) is TypeError and " must be a" in str(got.error)


def _in_place(statement: str, want: Outcome, got: Outcome, what: str) -> bool:
    return "modified by an inplace operation" in str(got.error) and ".mul_(" in statement


def _deleted(statement: str, want: Outcome, got: Outcome, what: str) -> bool:
    return statement.startswith("del gru.weight_ih_l0; out")


def _refused(statement: str, want: Outcome, got: Outcome, what: str) -> bool:
    return re.match(r"backend='\w+' cannot run: ", str(got.error)) is not None


def _weights_copied(statement: str, want: Outcome, got: Outcome, what: str) -> bool:
    return "modified by an inplace operation" in str(want.error) and got.error is None and "weight_hh_l0" in statement


def _heads_kept(statement: str, want: Outcome, got: Outcome, what: str) -> bool:
    return want.error is None and "has been modified inplace" in str(got.error) and "weight_hh_l0" in statement


def _dropout(statement: str, want: Outcome, got: Outcome, what: str) -> bool:
    return "dropout=" in statement and type(want.error) is TypeError and "dropout should be a number" in str(got.error)


def _autocast(statement: str, want: Outcome, got: Outcome, what: str) -> bool:
    return "autocast" in statement and what == "out[0]: torch.float32, and ours torch.bfloat16"


def _vmap(statement: str, want: Outcome, got: Outcome, what: str) -> bool:
    return "vmap" in statement and "Batching rule not implemented" in str(want.error)


REASONS: dict[str, Callable[[str, Outcome, Outcome, str], bool]] = {
    "torch.nn.GRU asks a list for its dim() and fails; ours says what was expected": _type_error_said,
    "torch.nn.GRU has copied its input where it is batch_first; ours keeps the input itself for backward": _in_place,
    "torch.nn.GRU keeps the weights for backward; ours, in two directions, a copy of them": _weights_copied,
    "ours keeps the weights of heads for backward; torch.nn.GRU here gets a dense copy of them": _heads_kept,
    "torch.nn.GRU goes on with the weights that it held before one was deleted": _deleted,
    "torch.nn.GRU converts dropout to a float before it checks it": _dropout,
    "torch.nn.GRU takes no part in torch.autocast on a CPU": _autocast,
    "torch.nn.GRU has no batching rule": _vmap,
    "an explicit backend says what it cannot do": _refused,
}
