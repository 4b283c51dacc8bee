"""Renders an explanation as one self-contained HTML file without scripts; Jinja escapes the user's text.

page.html has the content, page.css the style, in light and dark. Shades are classes, not style attributes, so that the
policy below can forbid all styles except page.css.
"""

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
PALEST = 0.1  # log-odds: the smallest value of the full colour, so that noise stays pale


class Explanation(NamedTuple):
    """The explanation of a prediction for a review of T tokens. Scores are log-odds of positive against negative."""

    words: list[str]
    known: list[bool]  # whether the vocabulary has it
    contributions: list[float]
    ngrams: list[float] | None  # the share of the model's n-grams in the contributions, if it has any
    reset: list[list[float]]  # of the first GRU, mean over units: one row per direction
    update: list[list[float]]
    places: list[int]  # the lengths of the review's prefixes that were predicted
    running: list[float]  # the probability of positive had the review ended there
    score: float
    error: float  # of the sum of the contributions, against score minus that of a blank review
    grus: int
    left_out: int  # number of tokens that were not read

    @property
    def positive(self) -> bool:
        """Whether the prediction is positive."""
        return self.running[-1] >= 0.5


def render(explanation: Explanation | None = None, **form: object) -> str:
    """Renders the page.

    Args:
        explanation: the explanation to show; None for the empty form.
        form: for the demo: its `text`, its `max_length`, a line `about` the model, a `message`.
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


def visible(word: str) -> str:
    """Makes a word displayable: invisible and bidirectional characters become numbers; long words are truncated."""
    shown = "".join(c if unicodedata.category(c)[0] != "C" else f"\\u{ord(c):04x}" for c in word)
    return shown if len(shown) <= 40 else shown[:39] + "…"


def percent(probability: float) -> str:
    """Formats a probability in percent, never as 0 or 100."""
    if not 0.001 <= probability <= 0.999:
        return "under 0.1 %" if probability < 0.5 else "over 99.9 %"
    return f"{100 * probability:.1f} %"


_environment = Environment(
    loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
_environment.filters |= {"percent": percent, "signed": lambda value: f"{value:+.2f}".replace("-", "\u2212")}
_TEMPLATE = _environment.get_template("page.html")
