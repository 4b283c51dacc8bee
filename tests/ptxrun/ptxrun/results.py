"""The file of results: a JSON object per layer, plan or kind of fault, with a digest of its sources."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import contract
import oracle
import torch
import triton

import grucore.kernels
from grucore.kernels.triton.plan import TABLE


def digest() -> str:
    """The digest of everything that a result depends on."""
    folders = [Path(__file__).parent, Path(grucore.kernels.__file__).parent]
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.suffix in (".py", ".json")]
    files += [*sorted((folders[0] / "core").iterdir()), Path(contract.__file__), Path(oracle.__file__)]
    contents = b"\0".join(path.read_bytes() for path in files)
    return hashlib.sha256(contents + f"{triton.__version__} {torch.__version__}".encode()).hexdigest()[:16]


def read(path: Path, digest: str) -> dict[str, dict[str, Any]]:
    """The results of these sources by name; those of other sources are removed from the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().splitlines() if path.exists() else []
    kept = {result["name"]: result for result in map(json.loads, lines) if result["sources"] == digest}
    path.write_text("".join(json.dumps(result) + "\n" for result in kept.values()))
    return kept


def summary(results: list[dict[str, Any]]) -> str:
    """The errors, and the totals."""
    layers = [result for result in results if result["what"] == "layers"]
    launches: Counter[str] = Counter()
    worst: dict[str, float] = {}
    for result in layers:
        launches.update(result["launches"])
        for quantity, error in result["worst"].items():
            key = f"{result['dtype']} {quantity}"
            worst[key] = max(error, worst.get(key, 0.0))
    rows = {row for result in layers for row in result["rows"]}
    planted, caught = (sum(result.get(name, 0) for result in results) for name in ("planted", "caught"))
    kinds: Counter[str] = Counter()
    for result in results:
        kinds[result["kind"]] += result.get("planted", 0)
    nowhere = sorted(kind for kind, places in kinds.items() if kind and not places)
    wrong = [f"{result['name']}\n{result['wrong']}" for result in results if result["wrong"]]
    totals = [
        f"{len(results)} results, {len(wrong)} wrong, {sum(result['seconds'] for result in results):,.0f} s",
        f"{len(layers)} runs of layers, {sum(result['instructions'] for result in layers):,} warp instructions",
        f"{sum(launches.values())} launches: {', '.join(f'{n} {name}' for name, n in sorted(launches.items()))}",
        f"rows of plans.json executed: {len(rows)} of {len(TABLE)}",
        f"worst errors: {', '.join(f'{key} {error:.1e}' for key, error in sorted(worst.items()))}",
        f"planted faults caught: {caught} of {planted}; found no place: {', '.join(nowhere) or 'none'}",
    ]
    return "\n".join([*wrong, *totals])
