"""An explanation as HTML: one file, nothing from outside, no scripts. What people typed is escaped by Jinja.

page.html holds the words and their order, page.css the looks, in light and dark. Shades are classes, not style
attributes, so that the policy below can forbid every style but page.css itself.
"""

from __future__ import annotations

import base64
import hashlib
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

if TYPE_CHECKING:
    from explain import Explanation

FOLDER = Path(__file__).parent
STYLE = (FOLDER / "page.css").read_text(encoding="utf-8")
_DIGEST = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY = f"default-src 'none'; style-src 'sha256-{_DIGEST}'; form-action 'self'; base-uri 'none'"
SHADES = 8  # of a contribution's colour
PALEST = 0.1  # log-odds: the full colour never means less than this, or else noise would shine
LEVELS = 10  # of a gate's strip
LISTED = 12  # flips, at most
STRONGEST = 5  # words of each side


def render(explanation: Explanation | None = None, **form: object) -> str:
    """The page.

    Args:
        explanation: what to show; None for the empty form.
        form: for the demo: `form` true, the `text` in it, its `max_length`, a line `about` the model, a `message`.
    """
    parts = {"form": False, "message": None} | form
    return _TEMPLATE.render(style=Markup(STYLE), policy=POLICY, e=explanation, **parts, **_shown(explanation))


def _shown(explanation: Explanation | None) -> dict[str, Any]:
    """What the template shows of an explanation, reckoned beforehand."""
    if explanation is None:
        return {}
    values = explanation.contributions.tolist()
    largest = max(PALEST, *map(abs, values))
    running = explanation.running.tolist()
    numbers = {i: number for number, i in enumerate(_largest_flips(explanation), 1)}
    gates = _gates(explanation)
    tokens = [
        {
            "at": i + 1,
            "word": visible(explanation.words[i]),
            "known": explanation.known[i],
            "value": value,
            "shade": round(SHADES * abs(value) / largest),
            "ngrams": None if explanation.ngrams is None else explanation.ngrams[i].item(),
            "gates": [gate["values"][i] for gate in gates],
            "strips": [(gate["name"], gate["levels"][i]) for gate in gates],
            "running": running[i],
            "before": running[i - 1] if i else None,
            "flip": numbers.get(i),
        }
        for i, value in enumerate(values)
    ]
    by_value = sorted((token for token in tokens if token["shade"]), key=lambda token: token["value"])
    return {
        "tokens": tokens,
        "gates": gates,
        "largest": largest,
        "flips": [tokens[i] for i in numbers],
        "strongest": {
            "positive": [token for token in by_value[::-1][:STRONGEST] if token["value"] > 0],
            "negative": [token for token in by_value[:STRONGEST] if token["value"] < 0],
        },
        "curve": _steps(running),
        "shades": SHADES,
        "levels": LEVELS,
    }


def _gates(explanation: Explanation) -> list[dict[str, Any]]:
    """A row for each gate and direction: values, None where the GRU does not read, and their levels for the strips."""
    rows = []
    unread = [None] * explanation.unread
    for name, gate in (("reset", explanation.reset), ("update", explanation.update)):
        low, high = gate.min().item(), gate.max().item()
        for direction, row in zip(explanation.directions, gate.tolist(), strict=True):
            levels = [round(LEVELS * (value - low) / (high - low)) if high > low else LEVELS // 2 for value in row]
            title, path = f"{name} {direction}".strip(), _steps(row, explanation.unread)
            rows.append({"name": name, "title": title, "low": low, "high": high, "path": path})
            rows[-1] |= {"values": [*unread, *row], "levels": [*unread, *levels]}
    return rows


def _largest_flips(explanation: Explanation) -> list[int]:
    """The flips that moved the running prediction most, in the order of the text."""
    running = explanation.running
    by_size = sorted(explanation.flips, key=lambda i: -abs(running[i] - running[i - 1]).item())
    return sorted(by_size[:LISTED])


def _steps(values: Sequence[float], first: int = 0) -> str:
    """An SVG path through values from 0 to 1, a step a token from token `first` on, in a box T wide and 100 high."""
    heights = [f"{100 * (1 - value):.1f}" for value in values]
    return f"M{first} {heights[0]}" + "".join(f"V{height}H{i}" for i, height in enumerate(heights, first + 1))


def visible(word: str, longest: int = 40) -> str:
    """The word with control characters as symbols, cut where it is very long."""
    if len(word) > longest:
        word = word[: longest - 1] + "…"
    return "".join(
        (chr(0x2400 + ord(c)) if ord(c) < 0x20 else "\ufffd") if unicodedata.category(c) == "Cc" else c for c in word
    )


def signed(value: float, digits: int = 2) -> str:
    """With its sign, a real minus."""
    return f"{value:+.{digits}f}".replace("-", "\u2212")


def percent(probability: float) -> str:
    """Never 0 or 100."""
    if probability < 0.001:
        return "under 0.1 %"
    if probability > 0.999:
        return "over 99.9 %"
    return f"{100 * probability:.1f} %"


_environment = Environment(
    loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
_environment.filters |= {"signed": signed, "percent": percent}
_TEMPLATE = _environment.get_template("page.html")
