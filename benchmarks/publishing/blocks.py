"""The figures in pages that people write: each block is between `<!-- NAME -->` and `<!-- /NAME -->`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.publishing import accuracy, grid, options
from benchmarks.publishing.tables import figure, geometric_mean, shape, table
from benchmarks.results import Row, cells, read

IMDB_RESULTS = Path("examples", "imdb", "results")
OPTIONS_RESULTS = Path("benchmarks", "results", "options")
COMPARISON = Path("docs", "comparison.md")
# Validation loss and accuracy, as far as the published run of `book` printed them.
PUBLISHED_EPOCHS = {1: (0.70, 0.4946), 2: (0.71, 0.4978), 3: (0.71, 0.5272)}
PUBLISHED_EPOCHS |= {37: (0.86, 0.8628), 38: (0.88, 0.8630), 39: (0.90, 0.8632), 40: (0.92, 0.8628)}
PUBLISHED_TEST = (0.35, 0.8562)


def pages(root: Path, rows: list[Row], errors: Sequence[accuracy.Row]) -> dict[Path, str]:
    """Returns every page that has blocks, by its path, with its blocks made again."""
    runs = [json.loads(file.read_text()) | {"file": file.name} for file in sorted((root / IMDB_RESULTS).glob("*.json"))]
    blocks = {
        "README.md": {"reasons": reasons(rows, root), "cpu-speed": cpu_speed(rows), "imdb": imdb(runs)},
        "docs/numerics.md": {"accuracy": accuracy.summary(errors)},
        "docs/performance.md": {"options": options.summary(read([root / OPTIONS_RESULTS]))},
        "examples/imdb/README.md": {
            "imdb-results": imdb_results(runs),
            "imdb-ablations": imdb_ablations(root),
            "imdb-book": imdb_book(json.loads((root / IMDB_RESULTS / "book-cpu.json").read_text())),
        },
    }
    return {root / page: _with_blocks((root / page).read_text(), made) for page, made in blocks.items()}


def reasons(rows: list[Row], root: Path) -> str:
    """Makes the README's reasons to use the library, a figure in each."""
    machines = [of_machine for of_machine in grid.machines(rows).values() if grid.has_cells(of_machine)]
    kinds = ("inference", "training", "training, rows of different lengths")
    inference, training, lengths = (min(_mean(of_machine, kind) for of_machine in machines) for kind in kinds)
    shapes = len(grid.groups(machines[0])["inference"])
    rows = [row for row in rows if row.threads is not None]  # of CPUs
    memory = next(cell for cell in cells(rows) if cell.mode == "memory")
    ours, theirs = (memory.value(provider, "peak_mib") for provider in ("grucore-auto", "torch"))
    claims = len(re.findall(r"^\| [^|]+ \| [^|]*\]\(\.\./tests", (root / COMPARISON).read_text(), re.MULTILINE))
    return f"""\
- **Faster on CPUs.** {inference:.1f} times as fast as `nn.GRU` in inference, {training:.1f} in training: geometric
  means of {shapes} shapes, by CPU time on one thread; the lower of {len(machines)} processors.
- **Variable lengths without packing.** `lengths=`, `mask=` and `reset=` work on a padded batch in any order. Training
  on such batches takes `nn.GRU` {lengths:.1f} times as long.
- **Less memory on CPUs.** A training step on {shape(memory.case)} peaks at {figure(ours)} MiB, not {figure(theirs)}:
  most gates are recomputed, not saved.
- **What `nn.GRU` lacks, or has only on some devices.** Gradients of gradients, `torch.func`, full-graph compilation,
  export with free sizes, layer normalisation, int8 weights. [{claims} claims]({COMPARISON}), each with a test."""


def _mean(of_machine: list[Row], kind: str) -> float:
    view, group = grid.views(of_machine)[0], grid.groups(of_machine)[kind]
    return geometric_mean([ratio for each in group.values() if (ratio := grid.ratio(each, view, grid.NN_GRU))])


def cpu_speed(rows: list[Row]) -> str:
    """Makes the README's table of CPU speed, one per machine."""
    lines = []
    for machine, of_machine in grid.machines(rows).items():
        if grid.has_cells(of_machine):
            lines += ["", f"{grid.heading(machine)}, float32, torch {machine.torch}. {grid.explained(of_machine)}"]
            lines += ["", *grid.summary(of_machine)]
    return "\n".join(lines[1:])


def imdb(runs: list[dict[str, Any]]) -> str:
    """Makes the README's table of IMDB runs: the test accuracy of each."""
    lines = []
    for run in runs:
        file = f"[{Path(run['file']).stem}]({IMDB_RESULTS.as_posix()}/{run['file']})"
        lines.append([_preset(run), _layer(run), f"{_summary(run)['test_accuracy']:.4f}", file])
    return "\n".join(table(["preset", "layer", "test accuracy", "run"], lines))


def imdb_results(runs: list[dict[str, Any]]) -> str:
    """Makes the example's table of IMDB runs, with what each part contributes."""
    lines = []
    for run in runs:
        summary = _summary(run)
        of_each = summary.get("test_accuracy_of_each_gru")
        best = sorted(set(summary["best_epoch"])) if of_each else [summary["best_epoch"]]
        line = [_preset(run), _layer(run), f"{summary['test_accuracy']:.4f}"]
        line.append(f"{' or '.join(map(str, best))} of {summary['epochs']}")
        line.append(", ".join(f"{accuracy:.4f}" for accuracy in of_each) if of_each else "-")
        each = [summary.get(f"test_accuracy_{part}") for part in ("gru", "ngrams")]
        line += ["-" if accuracy is None else f"{accuracy:.4f}" for accuracy in each]
        gain = [summary.get(f"test_gain_{name}") for name in ("over_ngrams", "standard_error")]
        line.append("-" if gain[0] is None else f"{100 * gain[0]:+.2f} ± {100 * gain[1]:.2f}")
        line.append(f"{summary['device']}, {summary['threads']} threads" if "threads" in summary else summary["device"])
        lines.append([*line, summary["commit"], f"[{run['file']}](results/{run['file']})"])
    titles = ["preset", "layer", "test accuracy", "from epoch", "each GRU", "mean of GRUs", "n-grams"]
    titles += ["points that GRUs add to n-grams", "on", "commit", "file"]
    return "\n".join(table(titles, lines))


def imdb_ablations(root: Path) -> str:
    """Makes the example's table of changed recipes: validation losses and accuracies, each recipe itself first."""
    folder = root / IMDB_RESULTS
    recipes = {preset: folder / f"{preset}-cpu.json" for preset in ("best", "semi")}
    lines = []
    for preset, recipe in recipes.items():
        expected = json.loads(recipe.read_text())["config"]
        for file in (recipe, *sorted(folder.glob(f"ablations/{preset}-*.json"))):
            run = json.loads(file.read_text())
            names = (expected.keys() | run["config"].keys()) - {"reviews", "data", "teacher", "bucketed"}  # older runs
            pairs = {name.replace("_", " "): (expected.get(name), run["config"].get(name)) for name in sorted(names)}
            changed = {name: new for name, (old, new) in pairs.items() if old != new}
            shown = {float: "{:.4g}", type(None): "none"}
            changes = [f"{name} {shown.get(type(new), '{}').format(new)}" for name, new in changed.items()]
            line = [preset, ", ".join(changes) or f"the recipe, GRUs: {expected['members']}"]
            for part in ("_ngrams", "_gru", ""):
                line.append(", ".join(f"{run[f'validation_{name}{part}']:.4f}" for name in ("loss", "accuracy")))
            link = file.relative_to(folder).as_posix()
            seconds = [f"{run[name]:.0f}" if name in run else "-" for name in ("pretraining_seconds", "seconds")]
            lines.append([*line, *seconds, f"[{file.name}](results/{link})"])
    titles = ["preset", "change", "n-grams: loss, accuracy", "mean of GRUs", "prediction"]
    titles += ["seconds of pre-training", "of the GRUs", "file"]
    return "\n".join(table(titles, lines))


def imdb_book(run: dict[str, Any]) -> str:
    """Makes the example's table of validation in epochs of `book`, next to what the published run printed."""
    ours = {each["epoch"]: (each["validation_loss"], each["validation_accuracy"]) for each in run["metrics"]}
    best, lines = run["best_epoch"], []
    for epoch in sorted({best, *PUBLISHED_EPOCHS, *range(5, len(ours) + 1, 5)}):
        title = f"{epoch}, the lowest" if epoch == best else str(epoch)
        lines.append([title, *_pairs(ours.get(epoch), PUBLISHED_EPOCHS.get(epoch))])
    lines.append(["test", *_pairs((run["test_loss"], run["test_accuracy"]), PUBLISHED_TEST)])
    titles = ["epoch", "loss", "accuracy", "published loss", "published accuracy"]
    return "\n".join(table(titles, lines))


def _pairs(*pairs: tuple[float, float] | None) -> list[str]:
    return [cell for pair in pairs for cell in (("-", "-") if pair is None else (f"{pair[0]:.2f}", f"{pair[1]:.4f}"))]


def _summary(run: dict[str, Any]) -> dict[str, Any]:
    return run.get("summary", run)  # older files have the configuration next to the summary


def _preset(run: dict[str, Any]) -> str:
    return run["config"]["preset"]


def _layer(run: dict[str, Any]) -> str:
    return {"grucore": "grucore.GRU", "torch": "torch.nn.GRU"}[run["config"]["gru"]]


def _with_blocks(page: str, blocks: dict[str, str]) -> str:
    for name, text in blocks.items():
        page = with_block(page, name, text)
    return page


def with_block(page: str, name: str, text: str) -> str:
    """Returns the page with the text between a name's two marks replaced.

    Raises:
        ValueError: the page has no such marks.
    """
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(page):
        raise ValueError(f"the page must hold <!-- {name} --> and <!-- /{name} -->")
    return pattern.sub(lambda marks: f"{marks[1]}{text}\n{marks[2]}", page)
