"""The tables of runs that say their threads: by CPU time on one thread, and by wall time on all.

Each is worth something else: CPU time on one thread is what the code needs, whatever else the machine does; wall time
on all threads is what a user waits. A run with some providers or one number of threads has the columns that it has.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from benchmarks.measuring import ceilings, peak
from benchmarks.measuring.cases import Case
from benchmarks.measuring.environment import threads_in_words
from benchmarks.publishing.tables import PACKED, PADDED, TIMED, figure, geometric_mean, name, reached, shape, table
from benchmarks.results import Cell, Row, Run, cells

NN_GRU = "nn.GRU"  # the faster of packed and padded, where there are both
AGAINST = (NN_GRU, "onnxruntime", "openvino")
ORDER = (PACKED, PADDED, "onnxruntime", "openvino")  # then the others
KINDS = {  # (mode, whether rows have lengths of their own): title
    ("inference", False): "inference",
    ("training", False): "training",
    ("step", False): "one step of all layers",
    ("inference", True): "inference, rows of different lengths",
    ("training", True): "training, rows of different lengths",
}
RATIOS = "Each ratio is the other library's time divided by grucore's; below 1, in bold, grucore is slower."
LENGTHS = "Lengths are from 1 to T, unless IMDB's are named. The summary uses the faster of nn.GRU packed and padded."


class View(NamedTuple):
    """A number of threads, and the column to compare there."""

    threads: int
    column: str

    @property
    def title(self) -> str:
        """The heading of its columns."""
        return "CPU" if self.column == "ms_cpu_p50" else "wall"

    @property
    def meaning(self) -> str:
        """The meaning of its title."""
        return f"*{self.title}* is {self.title} time with {threads_in_words(self.threads)}."


Group = dict[Case, dict[int, Cell]]  # of each case its cells by number of threads


def machines(rows: Iterable[Row]) -> dict[Run, list[Row]]:
    """Gathers the rows that say their threads by machine, software, commit and instruction set."""
    found: dict[Run, list[Row]] = {}
    for row in rows:
        if row.threads is not None:
            found.setdefault(row.run.machine, []).append(row)
    return found


def heading(machine: Run) -> str:
    """Says what its tables were measured on."""
    kernels = f"native kernels with {machine.instruction_set}" if machine.instruction_set else "without native kernels"
    return f"{machine.device}, {kernels}"


def views(rows: Iterable[Row]) -> list[View]:
    """Returns what can be compared: CPU time on one thread if there was one, and wall time on the most."""
    counts = {row.threads for row in rows if row.threads and row.ms_p50 and row.mode != "epoch"}
    on_one = [View(1, "ms_cpu_p50")] if 1 in counts else []
    return [*on_one, View(max(counts), "ms_p50")] if counts else []


def explained(rows: list[Row]) -> str:
    """Says what the numbers of the tables are."""
    return " ".join([RATIOS, *(view.meaning for view in views(rows))])


def groups(rows: Iterable[Row]) -> dict[str, Group]:
    """Returns the cells of each kind that has any, by its title."""
    found: dict[str, Group] = {title: {} for title in KINDS.values()}
    for cell in cells(rows):
        if title := KINDS.get((cell.mode, cell.case.lengths != "full")):
            threads = next(iter(cell.rows.values())).threads or 1
            found[title].setdefault(cell.case, {})[threads] = cell
    return {title: group for title, group in found.items() if group}


def ratio(each: Mapping[int, Cell], view: View, provider: str) -> float | None:
    """Returns how many times as long as grucore a provider takes in one case."""
    if (cell := each.get(view.threads)) is None:
        return None
    return cell.ratio(cell.baseline_by(view.column) if provider == NN_GRU else provider, view.column)


def share(each: Mapping[int, Cell], view: View, limit: float | None) -> float | None:
    """Returns the percentage of one core's peak that grucore reaches in one case, by CPU time on one thread."""
    cell = each.get(view.threads)
    ms = cell.value(cell.ours, view.column) if cell else None
    if cell is None or not ms or not limit or view.column != "ms_cpu_p50":
        return None
    return 100 * ceilings.work(cell.case, cell.mode)[0] / ms / 1e9 / limit


def in_words(case: Case) -> str:
    """Describes a case, with its lengths if they are IMDB's, and its dtype if it is not float32."""
    return shape(case) + ", IMDB's" * (case.lengths == "imdb") + f", {case.dtype}" * (case.dtype != "float32")


def timings(group: Group, compared: list[View], limit: float | None) -> list[str]:
    """Makes the table of one kind, with the geometric mean and the minimum of each column under it."""
    rows = [row for each in group.values() for cell in each.values() for row in cell.rows.values()]
    tried = dict.fromkeys(row.provider for row in rows if not row.provider.startswith("grucore"))
    providers = [*(p for p in ORDER if p in tried), *(p for p in tried if p not in ORDER)]
    packed = "nn.GRU packed" if any(case.lengths != "full" for case in group) else NN_GRU
    titles: list[str] = []
    columns: list[list[str]] = []
    for view in compared:
        times = [cell.value(cell.ours, view.column) if (cell := e.get(view.threads)) else None for e in group.values()]
        titles.append(f"{view.title}: grucore ms")
        columns.append([*map(figure, times), "", ""])
        figures = {f"{view.title}: % of peak": ([share(each, view, limit) for each in group.values()], False)}
        for p in providers:
            title = packed if p == PACKED else name(p)
            values = [ratio(each, view, p) for each in group.values()]
            figures[f"{view.title}: {title} / grucore"] = (
                values,
                p != "products",
            )  # which are not a GRU
        for title, (values, marks) in figures.items():
            if known := [value for value in values if value is not None]:
                under = [geometric_mean(known), min(known)]
                titles.append(title)
                columns.append([_marked(value, marks) for value in [*values, *under]])
    labels = [*map(in_words, group), "geometric mean", "minimum"]
    lines = [list(line) for line in zip(labels, *columns, strict=True)]
    return table(["T x B, I -> H", *titles], lines, rows)


def _marked(value: float | None, marks: bool) -> str:
    return f"**{figure(value)}**" if marks and value is not None and value < 1 else figure(value)


def summary(rows: list[Row]) -> list[str]:
    """Makes the table of geometric means and minima by kind, and says where grucore loses most."""
    compared, lines, others = views(rows), [], []
    worst: tuple[float, str] | None = None
    for title, group in groups(rows).items():
        line = {}
        for view, other in itertools.product(compared, AGAINST):
            found = {case: r for case, each in group.items() if (r := ratio(each, view, other))}
            if not found:
                continue
            mean, least = (_marked(of(list(found.values())), True) for of in (geometric_mean, min))
            line[view, other] = f"{mean} ({least})"
            for case, value in found.items():
                where = f"{title}, {in_words(case)}, compared with {name(other)} by {view.title}"
                worst = min(worst or (value, where), (value, where))
        if line:
            lines.append((title, line, len(group)))
            others += [key for key in line if key not in others]
    if not lines:
        return ["No case has both a time of grucore and one of another."]
    columns = sorted(others, key=lambda key: (compared.index(key[0]), AGAINST.index(key[1])))
    header = ["geometric mean (minimum)", "shapes", *(f"{view.title}: {name(other)}" for view, other in columns)]
    body = [[title, str(count), *(line.get(key, "-") for key in columns)] for title, line, count in lines]
    made = table(header, body, [row for row in rows if row.mode in ("inference", "training", "step")])
    if worst:
        says = "Where grucore loses most" if worst[0] < 1 else "grucore loses nowhere; where it is closest"
        made += ["", f"{says}: {worst[1]}, {figure(worst[0])}."]
    return made


def has_cells(rows: Iterable[Row]) -> bool:
    """Whether there are shapes to compare."""
    return any(row.mode in TIMED for row in rows)


def section(machine: Run, rows: list[Row], limits: Mapping[Run, Mapping[str, float]]) -> list[str]:
    """Makes a machine's tables, with its peak if it was measured."""
    bare = machine._replace(instruction_set="", commit="")  # limits are the machine's; their rows name the sets
    same = (values for run, values in limits.items() if run.machine._replace(commit="") == bare)
    known = {what: v for values in same for what, v in values.items()}
    bound = peak.peak_of(known, machine.instruction_set)
    software = f"torch {machine.torch}, triton {machine.triton}"
    lines = ["", f"## {heading(machine)}, commit {machine.commit}"]
    if not has_cells(rows):  # only an epoch
        return [*lines, "", f"{software}."]
    lines += ["", f"{software}. {explained(rows)} {LENGTHS}", "", *summary(rows)]
    lines += reached(known)
    if bound:
        what = "fused multiply-adds in registers" if bound[0].startswith(peak.PEAK) else "products of 128 x 128"
        lines += ["", f"The peak of one core, measured with {what}, is {1e3 * bound[1]:.4g} GFLOP/s."]
    for title, group in groups(rows).items():
        made = timings(group, views(rows), bound[1] if bound else None)
        lines += ["", f"### {title[0].upper()}{title[1:]}", "", *made]
    return lines
