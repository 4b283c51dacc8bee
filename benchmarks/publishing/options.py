"""Makes the table of what options cost that torch.nn.GRU does not have, for docs/performance.md."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.measuring.options import KERAS, NATIVE, PLAIN, STEPWISE
from benchmarks.publishing.tables import figure, shape, table
from benchmarks.results import Row

MODES = ("inference", "training")


def summary(rows: Sequence[Row]) -> str:
    """Makes a table for each shape: milliseconds, how often those of a plain layer, and what others take."""
    lines: list[str] = []
    for case in dict.fromkeys(row.case for row in rows):
        of_case = [row for row in rows if row.case == case]
        ms = {(row.mode, row.provider, row.note): row.ms_cpu_p50 for row in of_case}
        header = [shape(case)]
        header += [f"{mode} {what}" for mode in MODES for what in ("ms", "/ plain", "step by step / native")]
        header.append("training Keras / native")
        body = []
        for name in dict.fromkeys(row.note for row in of_case):
            line = [name]
            for mode in MODES:
                native, plain, steps = (
                    ms.get(key) for key in ((mode, NATIVE, name), (mode, NATIVE, PLAIN), (mode, STEPWISE, name))
                )
                line += [figure(native), _ratio(native, plain), _ratio(steps, native)]
            line.append(_ratio(ms.get(("training", KERAS, name)), ms.get(("training", NATIVE, name))))
            body.append(line)
        lines += ["", *table(header, body)]
    machine = f"{rows[0].device}, float32, torch {rows[0].torch}"
    commits, dates = (", ".join(sorted({getattr(row, name) for row in rows})) for name in ("commit", "date"))
    measured = f"medians of the process's time, on one core. Commit {commits}, measured {dates}."
    return "\n".join([f"{machine}; {measured}", *lines])


def _ratio(a: float | None, b: float | None) -> str:
    return "-" if a is None or b is None else f"{a / b:.2f}"
