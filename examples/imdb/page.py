"""An explanation as HTML: one file, nothing from outside, no scripts. What people typed is escaped by Jinja.

page.html holds the words and their order, page.css the looks, in light and dark. Shades are classes, not style
attributes, so that the policy below can forbid every style but page.css itself.
"""

from __future__ import annotations

import base64
import hashlib
import unicodedata
from pathlib import Path
from typing import NamedTuple

from data import LABELS
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

FOLDER = Path(__file__).parent
STYLE = (FOLDER / "page.css").read_text(encoding="utf-8")
_DIGEST = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY = f"default-src 'none'; style-src 'sha256-{_DIGEST}'; form-action 'self'; base-uri 'none'"
SHADES, LEVELS = 8, 10  # of a contribution's colour, of a gate's strip
PALEST = 0.1  # log-odds: the full colour never means less than this, or else noise would shine


class Explanation(NamedTuple):
    """What a model made of a review of T tokens. Scores are log-odds of positive against negative."""

    words: list[str]
    known: list[bool]  # whether the vocabulary has it
    contributions: list[float]
    ngrams: list[float] | None  # the part of the contributions that the model's n-grams have, if it has any
    reset: list[list[float]]  # of the first GRU, mean over units: a row for each direction
    update: list[list[float]]
    places: list[int]  # how many tokens each beginning of the review has that was judged
    running: list[float]  # the probability of positive had the review ended there
    score: float
    error: float  # how far the contributions are from adding up to score less that of a blank review
    grus: int
    left_out: int  # tokens after those that were read

    @property
    def positive(self) -> bool:
        """The judgement."""
        return self.running[-1] >= 0.5


def render(explanation: Explanation | None = None, **form: object) -> str:
    """The page.

    Args:
        explanation: what to show; None for the empty form.
        form: for the demo: the `text` in it, its `max_length`, a line `about` the model, a `message`.
    """
    shown: dict[str, object] = {"form": bool(form), "message": None, "e": explanation} | form
    if explanation is not None:
        largest = max(PALEST, *map(abs, explanation.contributions))
        gates = []
        for name, rows in (("reset", explanation.reset), ("update", explanation.update)):
            low, high = min(map(min, rows)), max(map(max, rows))
            scaled = [[round(LEVELS * (value - low) / max(high - low, 1e-9)) for value in row] for row in rows]
            gates.append({"name": name, "low": low, "high": high, "rows": scaled})
        heights = [f"{100 * (1 - value):.1f}" for value in explanation.running]
        curve = f"M0 {heights[0]}" + "".join(
            f"V{height}H{place}" for height, place in zip(heights, explanation.places, strict=True)
        )
        shown |= {"largest": largest, "gates": gates, "curve": curve, "label": LABELS[explanation.positive]}
        shown["tokens"] = [
            {"word": visible(word), "known": known, "value": value, "shade": round(SHADES * abs(value) / largest)}
            for word, known, value in zip(explanation.words, explanation.known, explanation.contributions, strict=True)
        ]
    return _TEMPLATE.render(style=Markup(STYLE), policy=POLICY, **shown)


def visible(word: str, longest: int = 40) -> str:
    """A word to be shown: what cannot be seen, or turns the line around, as its number; cut where it is long."""
    shown = "".join(c if unicodedata.category(c)[0] != "C" else f"\\u{ord(c):04x}" for c in word)
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def percent(probability: float) -> str:
    """Never 0 or 100."""
    if not 0.001 <= probability <= 0.999:
        return "under 0.1 %" if probability < 0.5 else "over 99.9 %"
    return f"{100 * probability:.1f} %"


_environment = Environment(
    loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
_environment.filters |= {"percent": percent, "signed": lambda value: f"{value:+.2f}".replace("-", "\u2212")}
_TEMPLATE = _environment.get_template("page.html")
