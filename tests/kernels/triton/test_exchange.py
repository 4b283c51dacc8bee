"""The exchange between programs that share a tile, as a model read from the source and explored exhaustively.

The operations of a program and their order are read from the source. In the model each program runs them one by one, a
store is seen by the others at any later time and in any order, and every interleaving is followed. A count is seen by
nobody before the program's earlier stores where it is a release behind a barrier; an await holds back the loads after
it where it is an acquire.
"""

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from grucore.kernels.triton import exchange as exchange_module

SOURCES = {
    name: (Path(exchange_module.__file__).parent / f"{name}.py").read_text()
    for name in ("exchange", "forward", "backward", "launch")
}
KERNELS = ["forward", "backward"]
FILLING = None


class Protocol(NamedTuple):
    """The protocol in the source."""

    operations: tuple[str, ...]  # of one step, in order
    awaited: str  # the step that is awaited, in terms of i
    waits: bool  # whether await_group waits for a count, and holds back what comes after it
    polls: bool  # whether receive waits for data
    counts: bool  # whether signal counts
    releases: bool  # whether what is stored before is seen before the count
    slots: str  # their number, in terms of chunk.steps


def functions(source: str) -> dict[str, ast.FunctionDef]:
    """All functions and methods by name."""
    return {node.name: node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)}


def running(statements: list[ast.stmt], exchange: str) -> list[ast.stmt]:
    """The statements that run on a GPU under a protocol."""
    found = []
    for statement in statements:
        test = ast.unparse(statement.test) if isinstance(statement, ast.If) else ""
        if "EXCHANGE" in test or "INTERPRETED" in test:
            holds = eval(test, {"EXCHANGE": exchange, "INTERPRETED": False})
            found += running(statement.body if holds else statement.orelse, exchange)
        else:
            found.append(statement)
    return found


def protocol(exchange: str, kernel: str, sources: dict[str, str] = SOURCES) -> Protocol:
    """Reads it."""
    defined = functions(sources["exchange"])
    await_group, receive, signal = (
        running(defined[name].body, exchange) for name in ("await_group", "receive", "signal")
    )
    waiting = "\n".join(map(ast.unparse, await_group))
    signalled = [ast.unparse(statement) for statement in signal]
    counted = [line for line in signalled if line.startswith("tl.atomic_add(counter_ptr, 1")]
    loop = next(
        node
        for node in ast.walk(functions(sources[kernel])[f"_gru_{kernel}_kernel"])
        if isinstance(node, ast.For) and any(called(n) == "signal" for n in ast.walk(node))
    )
    calls = sorted((n.lineno, n.col_offset, n) for n in ast.walk(loop) if called(n) in defined)
    names = [called(node) for *_, node in calls]
    shape = next(
        node.value.elts[0]
        for node in ast.walk(functions(sources["launch"])["slots"])
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "shape"
    )
    return Protocol(
        operations=tuple(name for name, before in zip(names, ["", *names], strict=False) if name != before),
        awaited=next(ast.unparse(node.args[1]) for *_, node in calls if called(node) == "await_group"),
        waits=all(part in waiting for part in ("target = step * PROGRAMS", "ld.acquire.gpu", "@waiting bra again")),
        polls=any(isinstance(node, ast.While) and "filling" in ast.unparse(node.test) for node in receive),
        counts=bool(counted),
        releases=bool(counted)
        and "sem='release'" in counted[0]
        and "tl.debug_barrier()" in signalled[: signalled.index(counted[0])],
        slots=ast.unparse(shape),
    )


def called(node: ast.AST) -> str:
    """The name of a function that is called, "" of anything else."""
    return node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""


def outcomes(source: Protocol, programs: int, steps: int, slots: int | None = None) -> set[str]:
    """The possible outcomes: "done", "stale" (a part of another step was read), "filling" (or of none), "stuck"."""
    slots = slots or eval(source.slots, {"chunk": SimpleNamespace(steps=steps)})
    awaited = [programs * eval(source.awaited, {"i": step}) for step in range(steps)]
    memory = tuple(tuple(0 if slot == 0 else FILLING for _ in range(programs)) for slot in range(slots))
    start = (tuple((0, 0, frozenset()) for _ in range(programs)), memory, 0, ())
    seen, open_states, found = {start}, [start], set()
    while open_states:
        progress, memory, count, stores = open_states.pop()
        following = []
        for k, (slot, program, step) in enumerate(stores):  # in the order of issue; any becomes visible
            rest = stores[:k] + stores[k + 1 :]
            if slot == "count":
                if not (source.releases and any(p == program and s != "count" for s, p, _ in stores[:k])):
                    following.append((progress, memory, count + 1, rest))
                continue
            parts = (*memory[slot][:program], step, *memory[slot][program + 1 :])
            following.append((progress, (*memory[:slot], parts, *memory[slot + 1 :]), count, rest))
        for program, (step, at, taken) in enumerate(progress):
            if step == steps:
                continue
            operation, later = source.operations[at], stores
            done = (step, at + 1, taken) if at + 1 < len(source.operations) else (step + 1, 0, frozenset())
            choices = [done]
            if operation == "await_group" and source.waits and count < awaited[step]:
                continue
            if operation == "receive":
                choices = []
                for other in set(range(programs)) - taken:
                    value = memory[step % slots][other]
                    if value is FILLING and source.polls:
                        continue
                    if value != step:
                        found.add("filling" if value is FILLING else "stale")
                        continue
                    whole = len(taken) + 1 == programs
                    choices.append((*done[:2], frozenset()) if whole else (step, at, taken | {other}))
            elif operation == "store":
                later = (*stores, ((step + 1) % slots, program, step + 1))
            elif operation == "signal" and source.counts:
                later = (*stores, ("count", program, step + 1))
            for choice in choices:
                following.append(((*progress[:program], choice, *progress[program + 1 :]), memory, count, later))
        if not following:
            found.add("done" if all(step == steps for step, _, _ in progress) else "stuck")
        for state in following:
            if state not in seen:
                seen.add(state)
                open_states.append(state)
    return found


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("exchange", ["data", "counter"])
@pytest.mark.parametrize("programs, steps", [(2, 3), (3, 2)])
def test_the_source_always_ends_right(exchange, kernel, programs, steps):
    source = protocol(exchange, kernel)
    assert source.polls if exchange == "data" else source.waits and source.releases
    assert outcomes(source, programs, steps) == {"done"}


FAULTS = {  # a protocol, a file, what it says, what a mistake would make of it, and what then can happen
    "a count before the part": (
        "counter",
        "forward",
        "store(out_ptrs, sent, mask, dtype, EXCHANGE, UPCAST)\n            signal(counter_ptr, EXCHANGE)",
        "signal(counter_ptr, EXCHANGE)\n            store(out_ptrs, sent, mask, dtype, EXCHANGE, UPCAST)",
        "filling",
    ),
    "no release": ("counter", "exchange", 'sem="release"', 'sem="relaxed"', "filling"),
    "no barrier": ("counter", "exchange", "        tl.debug_barrier()\n", "", "filling"),
    "a barrier too late": (
        "counter",
        "exchange",
        '        tl.debug_barrier()\n        tl.atomic_add(counter_ptr, 1, sem="release", scope="gpu")',
        '        tl.atomic_add(counter_ptr, 1, sem="release", scope="gpu")\n        tl.debug_barrier()',
        "filling",
    ),
    "no acquire": ("counter", "exchange", "ld.acquire.gpu", "ld.relaxed.gpu", "filling"),
    "one step too few awaited": (
        "counter",
        "forward",
        "await_group(counter_ptr, i,",
        "await_group(counter_ptr, i - 1,",
        "filling",
    ),
    "one step too many awaited": (
        "counter",
        "forward",
        "await_group(counter_ptr, i,",
        "await_group(counter_ptr, i + 1,",
        "stuck",
    ),
    "no count": ("counter", "exchange", "tl.atomic_add(counter_ptr, 1", "tl.atomic_add(counter_ptr, 0", "stuck"),
    "data that is not awaited": ("data", "exchange", "while (tl.max(bits)", "if (tl.max(bits)", "filling"),
    "slots that are used again": ("data", "launch", "(chunk.steps + 1, *", "(2, *", "stale"),
}


@pytest.mark.parametrize("exchange, file, right, wrong, outcome", FAULTS.values(), ids=FAULTS)
def test_a_fault_in_the_source_is_found(exchange, file, right, wrong, outcome):
    assert right in SOURCES[file]
    source = protocol(exchange, KERNELS[0], SOURCES | {file: SOURCES[file].replace(right, wrong)})
    assert outcome in outcomes(source, 2, 3)


def test_a_counter_would_do_with_two_slots_but_not_with_one():
    """A program that counts a step has taken the slot before; with one slot a part is overwritten while needed."""
    source = protocol("counter", KERNELS[0])
    assert outcomes(source, 2, 3, slots=2) == {"done"}
    assert "stale" in outcomes(source, 2, 3, slots=1)
