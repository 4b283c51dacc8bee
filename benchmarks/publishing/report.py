"""Writes `benchmarks/RESULTS.md`, its plots and the blocks of other pages from committed raw results.

    python -m benchmarks.publishing.report                  of benchmarks/results
    python -m benchmarks.publishing.report DIR [DIR ...]    of others: DIR/RESULTS.md and its plots, or --output PAGE

No figure is typed by hand. A folder holds what `benchmarks.measuring.run`, `.imdb_epoch` and, under `ceilings/`,
`accuracy/` and `quantised/`, `.ceilings`, `.accuracy`, `.quantised` and `.quantised_imdb` wrote. Figures in other pages
are in blocks: see `blocks.py`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.measuring import ceilings
from benchmarks.publishing import accuracy, blocks, grid, plots, quantised
from benchmarks.publishing.tables import (
    LENGTHS,
    PACKED,
    PADDED,
    TIMED,
    figure,
    geometric_mean,
    name,
    reached,
    rows_of,
    shape,
    table,
)
from benchmarks.results import Cell, Row, Run, cells, read

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
DATA = {"sample": "synthetic sample"}
INTRODUCTION = (
    "Each figure is the median of runs that alternate between libraries in one process, on fresh random inputs, with "
    "the input projection included; those with threads of their own (OpenVINO, Keras, with several threads "
    "onnxruntime) run after the others, one by one. Training is forward and backward. *Times as fast as* is the other "
    "library's time divided by grucore's: above 1, grucore is faster. For rows of different lengths nn.GRU gets a "
    "PackedSequence "
    "(*packed*), or a padded batch whose padding is cleared afterwards (*padded*); ratios use the faster one that was "
    "measured. *Products only* computes only the layer's matrix products, one by one. FlashRNN and TorchRL are built "
    "for GPUs; on a CPU their plain PyTorch form runs. The results of every GRU were compared with float64 before it "
    "was timed. Made by `python -m benchmarks.publishing.report` from the CSV files in `results/`."
)


def timings(group: list[Cell]) -> list[str]:
    """Makes the table of one mode: milliseconds, and grucore's speed-up over each other provider."""
    ours, with_lengths = group[0].ours, group[0].case.lengths != "full"
    titles = {PACKED: "nn.GRU packed", PADDED: "nn.GRU padded"} if with_lengths else {PACKED: "nn.GRU"}
    titles[ours] = "grucore"
    others = dict.fromkeys(row.provider for row in rows_of(group) if row.ms_p50 and row.provider not in titles)
    header = ["T x B, I -> H", "dtype", *(f"{title} ms" for title in titles.values())]
    header += ["times as fast as nn.GRU", *(f"as {name(p)}" for p in others)]
    lines = []
    for cell in group:
        line = [shape(cell.case), "tf32" if cell.precision == "tf32" else cell.case.dtype]
        line += [figure(cell.value(p)) if p in cell.rows else "not measured" for p in titles]
        lines.append(line + [figure(cell.ratio(p)) for p in (cell.baseline, *others)])
    return table(header, lines, rows_of(group))


def summary(found: list[Cell]) -> list[str]:
    """Makes the table of grucore's speed-up over nn.GRU, over the shapes of each mode."""
    lines = []
    for title, group in parts(found):
        if ratios := [ratio for cell in group if (ratio := cell.ratio(cell.baseline))]:
            numbers = (geometric_mean(ratios), min(ratios), max(ratios))
            lines.append([title, *(f"{number:.2f}" for number in numbers), str(len(ratios))])
    header = ["grucore: times as fast as nn.GRU", "geometric mean", "worst", "best", "shapes"]
    return table(header, lines, rows_of(cell for cell in found if cell.mode in TIMED)) if lines else []


def parts(found: list[Cell]) -> Iterable[tuple[str, list[Cell]]]:
    """Yields the timed cells by kind of lengths and mode, each with a title."""
    for lengths, words in LENGTHS.items():
        for mode in TIMED:
            group = [cell for cell in found if (cell.mode, cell.case.lengths) == (mode, lengths)]
            title = f"{mode}, {words}" if mode != "step" else "one step of all layers"
            if lengths != "full":
                padded = any(cell.value(PADDED) for cell in group)
                title += " (the faster of nn.GRU packed and padded)" * padded
                title += " (nn.GRU packed; padded not measured)" * (not padded)
            if group:
                yield title, group


def unavailable(found: list[Cell]) -> list[str]:
    """Lists once each why tried providers have no figure; those that are not installed were not tried."""
    notes = dict.fromkeys((row.provider, row.note) for row in rows_of(found) if row.note)
    lines = [[name(provider), note] for provider, note in notes if not note.startswith("import ")]
    title = ["", "### Why some cells have no figure", ""]
    return [*title, *table(["provider", "reason"], lines, rows_of(found))] if lines else []


def fresh(found: list[Cell]) -> list[str]:
    """Makes the tables of what was measured in fresh processes."""
    lines = []
    titles = {"first": ("Time to the first result", "ms_p50", "ms"), "memory": ("Peak memory", "peak_mib", "MiB")}
    for mode, (title, column, unit) in titles.items():
        for cell in found:
            if cell.mode == mode:
                measured = [[name(p), figure(value)] for p in cell.rows if (value := cell.value(p, column))]
                lines += ["", f"### {title}: {shape(cell.case)}, {cell.case.dtype}", ""]
                lines += ["Forward and backward, or inference for a library that does not train.", ""]
                lines += table(["provider", unit], measured, cell.rows.values())
    return lines


def epochs(rows: list[Row]) -> list[str]:
    """Makes the table of the IMDB example's epochs."""
    rows = [row for row in rows if row.mode == "epoch" and row.ms_p50]
    lines = [[r.note, DATA.get(r.data, r.data), name(r.provider), figure((r.ms_p50 or 0) / 1e3)] for r in rows]
    title = ["", "### An epoch of the IMDB example, end to end", ""]
    return [*title, *table(["preset", "data", "layer", "seconds"], lines, rows)] if rows else []


def report(
    rows: list[Row],
    limits: Mapping[Run, Mapping[str, float]],
    pictures: list[str],
    errors: Sequence[accuracy.Row] = (),
    of_quantised: Sequence[str] = (),
) -> str:
    """Makes the page as Markdown, a section for each run, so that no table mixes machines or commits.

    Runs that say their threads come first, those on one machine together (`grid`); then older ones, and those of GPUs.
    """
    lines = ["# Results", "", INTRODUCTION]
    for machine, of_machine in grid.machines(rows).items():
        found = cells(of_machine)
        lines += grid.section(machine, of_machine, limits)
        most = max(row.threads or 1 for row in of_machine)
        lines += fresh(cells(row for row in of_machine if row.threads == most))
        lines += [*epochs(of_machine), *unavailable(found)]
    for run in dict.fromkeys(row.run for row in rows if row.threads is None):
        of_run = [row for row in rows if row.run == run]
        found = cells(of_run)
        software = f"torch {run.torch}, triton {run.triton}" + f", cuDNN {run.cudnn}" * bool(run.cudnn)
        lines += ["", f"## {run.device}, commit {run.commit}", "", f"{software}.", "", *summary(found)]
        if run in limits:
            lines += reached(limits[run])
        for title, group in parts(found):
            lines += ["", f"### {title[0].upper()}{title[1:]}", "", *timings(group)]
        lines += [*fresh(found), *epochs(of_run), *unavailable(found)]
    lines += [*of_quantised, *accuracy.section(errors)]
    for picture in pictures:
        lines += ["", f"![{Path(picture).stem.replace('-', ' ')}]({picture})"]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Writes the pages and their pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--output", type=Path, help="the page; its plots go next to it")
    options = parser.parse_args()
    folders = options.folders or [RESULTS]
    page = options.output or (folders[0] if options.folders else ROOT / "benchmarks") / "RESULTS.md"
    try:
        rows = read(folders)
        limits = {k: v for folder in folders for k, v in ceilings.read(folder / "ceilings").items()}
    except ValueError as error:
        sys.exit(f"error: {error}")
    errors = [row for each in folders for row in accuracy.read(each / "accuracy")]
    folder = page.parent / "plots"
    pictures = [str(path.relative_to(page.parent)) for path in plots.save(cells(rows), limits, folder)]
    of_quantised = [line for each in folders for line in quantised.section(*quantised.read(each / "quantised"))]
    pages = {page: report(rows, limits, pictures, errors, of_quantised)}
    if not (options.folders or options.output):
        pages |= blocks.pages(ROOT, rows, errors)
    for path, text in pages.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(path)


if __name__ == "__main__":
    main()
