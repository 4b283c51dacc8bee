"""The exchange between programs that share a tile (`kernels/split.py`), as a small model explored exhaustively.

Each program waits for the others' part of slot i, element by element, computes, and writes its own part of slot
i + 1. A store is seen by the others at any later time and in any order; every interleaving is followed.
"""

import pytest

FILLING = None


def outcomes(programs: int, steps: int, slots: int, waits: bool = True) -> set[str]:
    """All that can happen: "done", "stale" (a part of another step was taken), "filling" (or of none), "stuck"."""
    memory = tuple(tuple(0 if slot == 0 else FILLING for _ in range(programs)) for slot in range(slots))
    start = (tuple((0, frozenset()) for _ in range(programs)), memory, frozenset())
    seen, open_states, found = {start}, [start], set()
    while open_states:
        progress, memory, stores = open_states.pop()
        following = []
        for store in stores:  # becomes visible
            slot, program, step = store
            parts = (*memory[slot][:program], step, *memory[slot][program + 1 :])
            following.append((progress, (*memory[:slot], parts, *memory[slot + 1 :]), stores - {store}))
        for program, (step, taken) in enumerate(progress):
            if step == steps:
                continue
            for other in set(range(programs)) - taken:
                value = memory[step % slots][other]
                if value is FILLING and waits:
                    continue
                if value != step:
                    found.add("filling" if value is FILLING else "stale")
                    continue
                now, later = (step, taken | {other}), stores
                if len(now[1]) == programs:
                    now, later = (step + 1, frozenset()), stores | {((step + 1) % slots, program, step + 1)}
                following.append(((*progress[:program], now, *progress[program + 1 :]), memory, later))
        if not following:
            found.add("done" if all(step == steps for step, _ in progress) else "stuck")
        for state in following:
            if state not in seen:
                seen.add(state)
                open_states.append(state)
    return found


@pytest.mark.parametrize("programs, steps", [(2, 3), (3, 2), (3, 3)])
def test_a_slot_a_step_always_ends_right(programs, steps):
    assert outcomes(programs, steps, slots=steps + 1) == {"done"}


@pytest.mark.parametrize("steps, slots", [(3, 2), (4, 3)])
def test_a_slot_used_again_is_caught(steps, slots):
    """The planted fault: a slot that still holds an earlier step is taken for the one awaited."""
    assert "stale" in outcomes(2, steps, slots=slots)


def test_a_reader_that_does_not_wait_is_caught():
    """The planted fault: what has not come is read."""
    assert "filling" in outcomes(2, 3, slots=4, waits=False)
