"""The exchange between programs that share a tile (`kernels/triton/exchange.py`), as a model explored exhaustively.

Each program takes the others' parts of slot i one by one, computes, and writes its own part of slot i + 1. A store is
seen by the others at any later time and in any order; every interleaving is followed. "data": a part is waited for
until it is not the filling. "counter": parts are taken once the counter says that all programs have written; a program
adds one after its part, seen by nobody before the part is (release).
"""

import pytest

FILLING = None


def outcomes(
    programs: int, steps: int, slots: int, exchange: str, waits: bool = True, releases: bool = True, early: int = 0
) -> set[str]:
    """All that can happen: "done", "stale" (a part of another step was taken), "filling" (or of none), "stuck"."""
    memory = tuple(tuple(0 if slot == 0 else FILLING for _ in range(programs)) for slot in range(slots))
    start = (tuple((0, frozenset()) for _ in range(programs)), memory, 0, frozenset())
    seen, open_states, found = {start}, [start], set()
    while open_states:
        progress, memory, count, stores = open_states.pop()
        following = []
        for store in stores:  # becomes visible
            slot, program, step = store
            rest = stores - {store}
            if slot == "count":
                if not (releases and any(other[1] == program and other[0] != "count" for other in rest)):
                    following.append((progress, memory, count + 1, rest))
                continue
            parts = (*memory[slot][:program], step, *memory[slot][program + 1 :])
            following.append((progress, (*memory[:slot], parts, *memory[slot + 1 :]), count, rest))
        for program, (step, taken) in enumerate(progress):
            if step == steps or (exchange == "counter" and waits and count < programs * (step - early)):
                continue
            for other in set(range(programs)) - taken:
                value = memory[step % slots][other]
                if value is FILLING and waits and exchange == "data":
                    continue
                if value != step:
                    found.add("filling" if value is FILLING else "stale")
                    continue
                now, later = (step, taken | {other}), stores
                if len(now[1]) == programs:
                    now, later = (step + 1, frozenset()), stores | {((step + 1) % slots, program, step + 1)}
                    if exchange == "counter":
                        later |= {("count", program, step + 1)}
                following.append(((*progress[:program], now, *progress[program + 1 :]), memory, count, later))
        if not following:
            found.add("done" if all(step == steps for step, _ in progress) else "stuck")
        for state in following:
            if state not in seen:
                seen.add(state)
                open_states.append(state)
    return found


@pytest.mark.parametrize("exchange", ["data", "counter"])
@pytest.mark.parametrize("programs, steps", [(2, 3), (3, 2), (3, 3)])
def test_a_slot_a_step_always_ends_right(exchange, programs, steps):
    assert outcomes(programs, steps, steps + 1, exchange) == {"done"}


@pytest.mark.parametrize("steps, slots", [(3, 2), (4, 3)])
def test_data_in_a_slot_used_again_is_caught(steps, slots):
    """The planted fault: a slot that still holds an earlier step is taken for the one awaited."""
    assert "stale" in outcomes(2, steps, slots, "data")


def test_a_counter_would_do_with_two_slots_but_not_with_one():
    """A program that counts a step has taken the slot before; with one slot a part is overwritten while needed."""
    assert outcomes(2, 3, 2, "counter") == {"done"}
    assert "stale" in outcomes(2, 3, 1, "counter")


@pytest.mark.parametrize("exchange", ["data", "counter"])
def test_a_reader_that_does_not_wait_is_caught(exchange):
    assert "filling" in outcomes(2, 3, 4, exchange, waits=False)


@pytest.mark.parametrize("fault", [{"releases": False}, {"early": 1}], ids=str)
def test_a_counter_that_runs_ahead_of_its_data_is_caught(fault):
    """The planted faults: a count seen before the part it stands for, and a wait for one step too few."""
    assert "filling" in outcomes(2, 3, 4, "counter", **fault)
