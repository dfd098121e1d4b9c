"""What charts look like: sizes, colours, markers, and which series gets which."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from recemb.report.grouping import BASELINES, Section

INK, MUTED, GRID, BAND, STEPS = "#1c1c1e", "#5f6368", "#e8eaed", "#e3e7ee", "#c3c8d0"
PIXELS = 72  # per inch: one unit of the SVG is one CSS pixel when a chart is shown at its own size
TITLES = {"auc": "Test AUC (higher is better)", "logloss": "Test logloss (lower is better)"}
LONGEST_LABEL = 34  # characters
LEFT, RIGHT, TOP, BOTTOM, LEGEND_ROW = 60, 16, 58, 52, 20  # margins in pixels


class Layout(NamedTuple):
    """Size of a rendering and of its text in CSS pixels, and how many ticks fit on the axis of bytes."""

    name: str
    width: int
    height: int
    font: int
    ticks: int


class Style(NamedTuple):
    """How a series is drawn, the same in every chart of a report."""

    color: str
    marker: str
    fill: str
    dash: Any


WIDE = Layout("wide", 1120, 440, 13, 10)
NARROW = Layout("narrow", 340, 380, 12, 4)
PICTURE = Layout("picture", 860, 440, 13, 8)

# The four baselines, then the colours and markers that other methods take in turn: dark enough for text on white,
# apart for the common colour blindnesses, and never told apart by colour alone.
_BASELINE_LOOKS = ((INK, "*"), ("#6b7280", "o"), ("#0072b2", "s"), ("#c24e00", "^"))
_COLORS = ("#00785f", "#a3398f", "#8a6100", "#3f37a8", "#9b1c3f", "#4f6b00", "#0b7285")
_MARKERS = ("D", "v", "P", "X", "<", "p", ">", "h", "d")
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))


def styles_for(sections: Sequence[Section]) -> dict[str, Style]:
    """Choose a look for every series of a report; variants of one method share colour and marker."""
    methods = {point.method for section in sections for point in section.points}
    looks = dict(zip(BASELINES, _BASELINE_LOOKS, strict=True))
    for number, method in enumerate(sorted(methods - looks.keys())):
        looks[method] = (_COLORS[number % len(_COLORS)], _MARKERS[number % len(_MARKERS)])
    styles = {}
    for method in sorted(methods):
        color, marker = looks[method]
        counts = Counter(p.series for section in sections for p in section.points if p.method == method and p.variant)
        longest_first = sorted(counts, key=lambda series: (-counts[series], series))
        styles[method] = Style(color, marker, color, _DASHES[0])
        for number, series in enumerate(longest_first):
            fill = color if number % 2 == 0 else "white"
            styles[series] = Style(color, marker, fill, _DASHES[number % len(_DASHES)])
    return styles
