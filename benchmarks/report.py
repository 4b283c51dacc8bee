"""Writes `benchmarks/RESULTS.md`, its plots and the README's tables from committed raw results.

    python -m benchmarks.report                  of benchmarks/results
    python -m benchmarks.report DIR [DIR ...]    of other results: DIR/RESULTS.md and its plots, or --output PAGE

No figure is typed by hand. A folder holds what `benchmarks.run`, `.imdb_epoch` and, under `ceilings/`, `.ceilings`
wrote. In the README a table stands between `<!-- NAME -->` and `<!-- /NAME -->`.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from benchmarks import ceilings, plots
from benchmarks.cases import Case
from benchmarks.run import COLUMNS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BASELINE, PRODUCTS = "torch", "products"
LENGTHS = {
    "full": "all rows of one length",
    "uniform": "lengths from 1 to T (nn.GRU on a PackedSequence)",
    "imdb": "IMDB's lengths (nn.GRU on a PackedSequence)",
}
TIMED = ("training", "inference", "step")
NAMES = {"torch": "nn.GRU", "torch-lstm": "nn.LSTM", "torch-compile": "torch.compile", "products": "products alone"}


class Cell(NamedTuple):
    """One case in one mode on one device, with a row for each provider."""

    device: str
    mode: str
    precision: str
    case: Case
    rows: dict[str, dict[str, str]]

    def value(self, provider: str, column: str = "ms_p50") -> float | None:
        """A provider's figure, None where it has none."""
        text = self.rows.get(provider, {}).get(column, "")
        return float(text) if text else None

    @property
    def ours(self) -> str:
        """The provider that is ours."""
        return next((name for name in ("grucore-triton", "grucore-reference") if self.value(name)), "grucore-reference")

    def ratio(self, provider: str) -> float | None:
        """A provider's time divided by ours: above 1, grucore is faster."""
        theirs, ours = self.value(provider), self.value(self.ours)
        return theirs / ours if theirs and ours else None


def read(folders: Iterable[Path]) -> list[dict[str, str]]:
    """The rows of every CSV in the folders.

    Raises:
        ValueError: a folder without CSV files, or a file with other columns.
    """
    rows = []
    for folder in folders:
        files = sorted(folder.glob("*.csv"))
        if not files:
            raise ValueError(f"{folder} holds no .csv file: expected what `python -m benchmarks.run --out` writes")
        for file in files:
            with file.open(newline="") as stream:
                reader = csv.DictReader(stream)
                if reader.fieldnames != COLUMNS:
                    raise ValueError(f"{file} has columns {reader.fieldnames}, expected {COLUMNS}")
                rows += list(reader)
    return rows


def cells(rows: list[dict[str, str]]) -> list[Cell]:
    """The cells that the rows of sequences make, in their order."""
    found: dict[tuple, Cell] = {}
    for row in rows:
        if row["mode"] == "epoch":
            continue
        sizes = [int(row[name]) for name in ("T", "B", "I", "H", "layers")]
        case = Case(*sizes, row["bidirectional"] == "True", row["lengths"], row["dtype"])
        key = (row["device"], row["mode"], row["precision"], case)
        found.setdefault(key, Cell(*key, {})).rows[row["provider"]] = row
    return list(found.values())


def geometric_mean(values: list[float]) -> float:
    """exp of the mean logarithm."""
    return math.exp(sum(map(math.log, values)) / len(values))


def table(header: list[str], lines: Iterable[Iterable[str]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *lines)]


def name(provider: str) -> str:
    """How the page calls a provider."""
    return "grucore" if provider.startswith("grucore") else NAMES.get(provider, provider)


def shape(case: Case) -> str:
    """A case in a word or two."""
    stack = f", {case.layers} layers" * (case.layers > 1) + ", both ways" * case.bidirectional
    return f"{case.T} x {case.B}, {case.I} -> {case.H}{stack}"


def figure(value: float | None, digits: int = 3) -> str:
    """A number, short; "-" for none."""
    return "-" if value is None else f"{value:.{digits}g}" if value < 1000 else f"{value:,.0f}"


def timings(group: list[Cell], limits: dict[str, float] | None) -> list[str]:
    """The table of one mode: every provider's milliseconds, the ratios, and the floor."""
    providers = [p for p in dict.fromkeys(p for cell in group for p in cell.rows) if p not in (BASELINE, group[0].ours)]
    providers = [p for p in providers if any(cell.value(p) for cell in group)]
    header = ["T x B, I -> H", "dtype", "nn.GRU ms", "grucore ms", "nn.GRU / grucore"]
    header += [f"{name(p)} / grucore" for p in providers] + ["grucore / floor"] * (limits is not None)
    lines = []
    for cell in group:
        ours = cell.value(cell.ours)
        kind = "tf32" if cell.precision == "tf32" else cell.case.dtype
        line = [shape(cell.case), kind, figure(cell.value(BASELINE)), figure(ours)]
        line += [figure(cell.ratio(p)) for p in (BASELINE, *providers)]
        if limits is not None:
            floor = ceilings.floor_ms(cell.case, cell.mode, cell.precision, limits)
            line.append("-" if ours is None else figure(ours / floor))
        lines.append(line)
    return table(header, lines)


def summary(group: list[Cell]) -> list[str] | None:
    """Mean, worst and best of nn.GRU / grucore, and how many cells; None where there are none."""
    ratios = [ratio for cell in group if (ratio := cell.ratio(BASELINE))]
    if not ratios:
        return None
    return [f"{v:.2f}" for v in (geometric_mean(ratios), min(ratios), max(ratios))] + [str(len(ratios))]


def parts(found: list[Cell]) -> Iterable[tuple[str, list[Cell]]]:
    """The timed cells of a device by mode and kind of lengths, each with a title."""
    for lengths, words in LENGTHS.items():
        for mode in TIMED:
            group = [cell for cell in found if (cell.mode, cell.case.lengths) == (mode, lengths)]
            if group:
                yield f"{mode}, {words}" if mode != "step" else "one step of all layers", group


def unavailable(found: list[Cell]) -> list[str]:
    """Why providers have no figure, each reason once."""
    reasons: dict[tuple[str, str], None] = {}
    for cell in found:
        for provider, row in cell.rows.items():
            if row["note"]:
                reasons[provider, row["note"]] = None
    return table(["provider", "without a figure because"], ([name(p), note] for p, note in reasons))


def fresh(found: list[Cell]) -> list[str]:
    """The tables of what a process of its own shows."""
    lines = []
    titles = {"first": ("Time to the first result", "ms_p50", "ms"), "memory": ("Peak memory", "peak_mib", "MiB")}
    for mode, (title, column, unit) in titles.items():
        for cell in found:
            if cell.mode == mode:
                measured = [(p, value) for p in cell.rows if (value := cell.value(p, column))]
                lines += ["", f"### {title}: {shape(cell.case)}, {cell.case.dtype}", ""]
                lines += table(["provider", unit], ([name(p), figure(value)] for p, value in measured))
    return lines


def epochs(rows: list[dict[str, str]]) -> list[str]:
    """The table of the IMDB example's epochs on one device."""
    rows = [row for row in rows if row["mode"] == "epoch"]
    if not rows:
        return []
    lines = [[row["note"], name(row["provider"]), figure(float(row["ms_p50"]) / 1e3)] for row in rows if row["ms_p50"]]
    return ["", "### An epoch of the IMDB example, end to end", "", *table(["what", "layer", "seconds"], lines)]


def report(rows: list[dict[str, str]], limits: dict[str, dict[str, float]], pictures: list[str]) -> str:
    """The page as Markdown."""
    lines = [
        "# Results",
        "",
        "Medians of alternating runs in one process, on random data that changes from run to run, the product of all "
        "inputs included; training is forward and backward. A ratio above 1 means that grucore is faster. *Products "
        "alone* is nothing but the layer's matrix products, made one by one. The *floor* is the longest of three "
        "times that no layer can undercut: its products at the machine's measured rate, its bytes at the measured "
        "bandwidth, and T times the measured time of a step that has nothing to compute. Providers were held against "
        "float64 before they were timed. Made by `python -m benchmarks.report` from the CSV files in `results/`.",
    ]
    for device in dict.fromkeys(row["device"] for row in rows):
        of_device = [row for row in rows if row["device"] == device]
        found = cells(of_device)
        first = of_device[0]
        cudnn = f", cuDNN {first['cudnn']}" if first["cudnn"] else ""
        lines += ["", f"## {device}", "", f"torch {first['torch']}, triton {first['triton']}{cudnn}, commit "]
        lines[-1] += f"{first['commit']}, {first['date']}."
        lines += ["", *table(["nn.GRU / grucore", "geometric mean", "worst", "best", "shapes"], _summaries(found))]
        if device in limits:
            ceiling_cells = ", ".join(f"{what} {figure(value)}" for what, value in limits[device].items())
            lines += ["", f"Ceilings (10^12 operations/s, GB/s, us): {ceiling_cells}."]
        for title, group in parts(found):
            lines += ["", f"### {title[0].upper()}{title[1:]}", "", *timings(group, limits.get(device))]
        lines += [*fresh(found), *epochs(of_device)]
        lines += ["", "### Providers without a figure", "", *unavailable(found)]
    for picture in pictures:
        lines += ["", f"![{Path(picture).stem.replace('-', ' ')}]({picture})"]
    return "\n".join(lines) + "\n"


def _summaries(found: list[Cell]) -> Iterable[list[str]]:
    for title, group in parts(found):
        if numbers := summary(group):
            yield [title, *numbers]


def cpu_summary(rows: list[dict[str, str]]) -> str:
    """The README's sentence and table of CPU speed, for each processor."""
    lines = []
    for device in dict.fromkeys(row["device"] for row in rows if not row["cudnn"]):
        of_device = [row for row in rows if row["device"] == device]
        lines += ["", f"On {device}, float32, torch {of_device[0]['torch']}, nn.GRU's time divided by grucore's:", ""]
        lines += table(["", "geometric mean", "worst", "best", "shapes"], _summaries(cells(of_device)))
    return "\n".join(lines[1:])


def imdb_summary(folder: Path) -> str:
    """The README's table of IMDB runs, from the example's results."""
    lines = []
    for file in sorted(folder.glob("*.json")):
        run = json.loads(file.read_text())
        config, summary = run["config"], run["summary"]
        layer = {"grucore": "grucore.GRU", "torch": "torch.nn.GRU"}[config["gru"]]
        cells = [config["preset"], layer, f"{summary['test_accuracy']:.4f}"]
        if "runs" in run:  # of several seeds
            cells[2] += f" ± {summary['deviation']['test_accuracy']:.4f}, {len(run['runs'])} seeds"
            best = sorted({seed["summary"]["best_epoch"] for seed in run["runs"]})
            cells.append(f"{' or '.join(map(str, best))} of {config['epochs']}")
        else:
            cells.append(f"{summary['best_epoch']} of {summary['epochs']}")
        alone = [summary.get(f"test_accuracy_{path}") for path in ("gru", "ngrams")]
        cells += [*("-" if accuracy is None else f"{accuracy:.4f}" for accuracy in alone), summary["device"]]
        lines.append([*cells, f"[{file.name}](examples/imdb/results/{file.name})"])
    titles = ["preset", "layer", "test accuracy", "from epoch", "GRU alone", "n-grams alone", "on", "file"]
    return "\n".join(table(titles, lines))


def with_block(page: str, name: str, block: str) -> str:
    """The page with the text between a name's two marks replaced.

    Raises:
        ValueError: the page has no such marks.
    """
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(page):
        raise ValueError(f"the page must hold <!-- {name} --> and <!-- /{name} -->")
    return pattern.sub(lambda marks: f"{marks[1]}{block}\n{marks[2]}", page)


def readme(page: str, rows: list[dict[str, str]]) -> str:
    """The README with its tables made anew."""
    page = with_block(page, "cpu-speed", cpu_summary(rows))
    return with_block(page, "imdb-results", imdb_summary(ROOT / "examples" / "imdb" / "results"))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--output", type=Path, help="the page; its plots go beside it")
    options = parser.parse_args()
    folders = options.folders or [RESULTS]
    page = options.output or (folders[0] if options.folders else ROOT / "benchmarks") / "RESULTS.md"
    try:
        rows = read(folders)
        limits = {k: v for folder in folders for k, v in ceilings.read(folder / "ceilings").items()}
    except ValueError as error:
        sys.exit(f"error: {error}")
    folder = page.parent / "plots"
    pictures = [str(path.relative_to(page.parent)) for path in plots.save(cells(rows), limits, folder)]
    pages = {page: report(rows, limits, pictures)}
    if not (options.folders or options.output):
        pages[ROOT / "README.md"] = readme((ROOT / "README.md").read_text(), rows)
    for path, text in pages.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(path)


if __name__ == "__main__":
    main()
