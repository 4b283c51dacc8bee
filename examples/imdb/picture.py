"""An explanation as a picture: the same as the page shows, for who has no browser at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.patches import Rectangle
from page import PALEST, percent, signed, visible

if TYPE_CHECKING:
    from explain import Explanation

COLUMNS = 92  # characters a line
CELL = 0.1  # inches, of a character
LINE = 0.36  # inches
PANEL = 1.15
LEFT, RIGHT, TOP, GAP, BOTTOM = 0.7, 0.3, 0.95, 0.5, 0.45
FONT = "DejaVu Sans Mono"  # comes with matplotlib; a character is 0.602 of its size wide
POSITIVE, NEGATIVE, RESET, UPDATE = "#3f95e6", "#ef8a2f", "#0e8f7f", "#7d55c7"


def save_picture(explanation: Explanation, path: str) -> None:
    """Words with contributions and gates, the running prediction, contributions and gates, as PNG."""
    lines = _lines(explanation.words)
    text_height = LINE * (lines[-1][1] + 1)
    width = LEFT + CELL * COLUMNS + RIGHT
    height = TOP + text_height + 3 * (GAP + PANEL) + BOTTOM
    figure = Figure(figsize=(width, height), facecolor="white")

    def axes(top: float, size: float) -> Axes:
        return figure.add_axes((LEFT / width, 1 - (top + size) / height, CELL * COLUMNS / width, size / height))

    label, probability = explanation.label, explanation.probability
    title = f"{label} {percent(probability if label == 'positive' else 1 - probability)}"
    colour = POSITIVE if label == "positive" else NEGATIVE
    figure.text(LEFT / width, 1 - 0.5 / height, title, fontsize=18, fontweight="bold", color=colour)
    total = f"contributions add up to {signed(explanation.contributions.sum().item())} log-odds"
    scores = f"from {signed(explanation.baseline)} (blank review) to {signed(explanation.score)}"
    left_out = f"; {explanation.left_out:,} tokens more are left out" if explanation.left_out else ""
    figure.text(LEFT / width, 1 - 0.75 / height, f"{total}, {scores}{left_out}", fontsize=9, color="dimgrey")
    _draw_words(axes(TOP, text_height), explanation, lines)

    tops = [TOP + text_height + GAP + i * (PANEL + GAP) for i in range(3)]
    running, contributions, gates = panels = [axes(top, PANEL) for top in tops]
    edges = range(len(explanation.words) + 1)
    heading: dict = {"loc": "left", "fontsize": 9, "color": "dimgrey"}
    running.stairs(explanation.running.tolist(), edges, baseline=None, color="black", linewidth=1.4)
    running.set_ylim(0, 1)
    running.set_title("had the review ended there: probability of positive; dotted: flips", **heading)
    for flip in explanation.flips:
        running.axvline(flip + 0.5, color="grey", linestyle=":", linewidth=1)
    values = explanation.contributions.tolist()
    colours = [POSITIVE if value > 0 else NEGATIVE for value in values]
    contributions.bar(edges[:-1], values, width=1, align="edge", color=colours)
    contributions.set_title("contribution, log-odds", **heading)
    for name, rows, colour in (("reset", explanation.reset, RESET), ("update", explanation.update, UPDATE)):
        for row, direction, dashes in zip(rows.tolist(), explanation.directions, ("-", "--") * len(rows), strict=False):
            style = {"color": colour, "linestyle": dashes, "linewidth": 1.4}
            gates.stairs(row, edges[explanation.unread :], baseline=None, label=f"{name} {direction}", **style)
    gates.set_ylim(0, 1)
    gates.set_title("gates, mean over units, which the strips under the words also show: dark is more", **heading)
    gates.set_xlabel("token", fontsize=8)
    gates.legend(fontsize=7, loc="upper right", ncols=2)
    for panel in panels:
        panel.set_xlim(0, len(explanation.words))
        panel.tick_params(labelsize=8)
    figure.savefig(path, dpi=100, format="png")


def _lines(words: list[str]) -> list[tuple[int, int]]:
    """Where each word stands: column and line."""
    places, column, line = [], 0, 0
    for word in words:
        size = len(visible(word))
        if column and column + size > COLUMNS:
            column, line = 0, line + 1
        places.append((column, line))
        column += size + 1
    return places


def _draw_words(axes: Axes, explanation: Explanation, places: list[tuple[int, int]]) -> None:
    """Each word on the colour of its contribution, the gates as strips under it."""
    axes.set(xlim=(0, COLUMNS), ylim=(places[-1][1] + 1, 0))
    axes.set_axis_off()
    glyphs = get_font(findfont(FONT)).get_charmap()
    largest = max(PALEST, explanation.contributions.abs().max().item())
    flips = set(explanation.flips)
    strips = [
        (colour, row.tolist(), gate.min().item(), max((gate.max() - gate.min()).item(), 1e-6))
        for gate, colour in ((explanation.reset, RESET), (explanation.update, UPDATE))
        for row in gate
    ]
    for i, (word, (column, line)) in enumerate(zip(explanation.words, places, strict=True)):
        shown = "".join(c if ord(c) in glyphs else "\ufffd" for c in visible(word))
        value = explanation.contributions[i].item() / largest
        back = _mixed(POSITIVE if value > 0 else NEGATIVE, 0.85 * abs(value))
        edge = "black" if i in flips else "none"
        axes.add_patch(Rectangle((column, line + 0.05), len(shown), 0.6, facecolor=back, edgecolor=edge, linewidth=0.8))
        size = CELL * 72 / 0.602
        axes.text(column, line + 0.52, shown, fontsize=size, family=FONT, parse_math=False)
        if i < explanation.unread:
            continue
        for k, (colour, values, low, spread) in enumerate(strips):
            thickness = 0.24 / len(strips)
            place = (column, line + 0.68 + k * thickness)
            shade = _mixed(colour, (values[i - explanation.unread] - low) / spread)
            axes.add_patch(Rectangle(place, len(shown), 0.7 * thickness, facecolor=shade))


def _mixed(colour: str, share: float) -> tuple[float, ...]:
    """The colour on white."""
    return tuple(1 - share * (1 - part) for part in to_rgb(colour))
