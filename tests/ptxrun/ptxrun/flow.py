"""Finds where the two sides of a branch meet again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Jump(NamedTuple):
    """The effect of an instruction on the flow of control."""

    target: int = -1  # where it may go on, -1 where that is only the next instruction
    always: bool = False  # it never continues with the next
    ends: bool = False


def joins(code: Sequence[Jump]) -> list[int]:
    """For each conditional jump the first instruction of its block's immediate postdominator; else -1."""
    starts = {0} | {jump.target for jump in code if jump.target >= 0}
    starts |= {n + 1 for n, jump in enumerate(code) if (jump.target >= 0 or jump.ends) and n + 1 < len(code)}
    blocks = sorted(starts)
    last = {block: end - 1 for block, end in zip(blocks, [*blocks[1:], len(code)], strict=True)}
    following = {
        block: {*([jump.target] if jump.target >= 0 else []), *([] if jump.always else [last[block] + 1])}
        for block in blocks
        for jump in [code[last[block]]]
    }
    after = {block: set(blocks) if following[block] else {block} for block in blocks}  # postdominators
    changed = True
    while changed:
        changed = False
        for block in reversed(blocks):
            if following[block]:
                new = {block} | set.intersection(*(after[f] for f in following[block]))
                changed |= new != after[block]
                after[block] = new
    result = [-1] * len(code)
    for block in blocks:
        jump, beyond = code[last[block]], after[block] - {block}
        if jump.target >= 0 and not jump.always and beyond:
            result[last[block]] = max(beyond, key=lambda b: len(after[b]))
    return result
