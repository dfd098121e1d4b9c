"""Pictures of an inspection: coverage curves, and bars that put features below each other and measures side by side."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

from recemb.budget import format_bytes
from recemb.inspection.records import DatasetFacts, FeatureFacts
from recemb.inspection.sharing import FeatureSharing, Occupancy, PlanSharing
from recemb.report.styles import BAND, GRID, INK, MUTED, PIXELS
from recemb.report.words import NONE, percent, rounded

MOST_FEATURES = 40
"""In one picture, the largest: the table has them all."""

FONT, ROW, BAR, HEAD, GAP = 12, 19, 11, 40, 14  # pixels
_NAMES, _NUMBERS = 96, 58  # pixels of the names and of the numbers beside bars
_LINES = ("#0072b2", "#c24e00", "#00785f", "#a3398f", "#8a6100", "#3f37a8")  # apart for the common colour blindnesses
_DARK, _MIDDLE, _LIGHT = "#0b57a4", "#7aa6d4", "#c9dcf0"


class Layer(NamedTuple):
    """Bars of one colour, a value a feature; None draws nothing."""

    values: Sequence[float | None]
    color: str


class Panel(NamedTuple):
    """One measure of every feature as bars from zero.

    Attributes:
        title: what it is.
        hint: a second line that says what the colours are.
        layers: bars over each other, longest first.
        texts: the number beside each bar.
        most: where the bars end; the longest bar when None.
    """

    title: str
    hint: str
    layers: Sequence[Layer]
    texts: Sequence[str]
    most: float | None = None


def fact_panels(features: Sequence[FeatureFacts]) -> list[Panel]:
    """Bytes, tails, drift and what tells the label."""
    whole = sum(one.full_bytes for one in features)
    tails = [[one.tail(bound).cells for one in features] for bound in (100, 10, 2)]
    drifts = [one.drift for one in features]
    gains = [one.label.logloss_gain for one in features]
    return [
        Panel(
            "Bytes of the full table",
            f"of {format_bytes(whole)}",
            [Layer([one.full_bytes for one in features], _DARK)],
            [format_bytes(one.full_bytes) for one in features],
        ),
        Panel(
            "Training cells of rare values",
            "seen < 100, < 10, < 2 times",
            [Layer(values, color) for values, color in zip(tails, (_LIGHT, _MIDDLE, _DARK), strict=True)],
            [percent(share) for share in tails[1]],
            1.0,
        ),
        Panel(
            "Test cells without an id",
            "values not seen, or too rarely",
            [Layer([one.unseen["test"] for one in features], _DARK)],
            [percent(one.unseen["test"]) for one in features],
            1.0,
        ),
        Panel(
            "Drift to test, bits",
            "light: by chance alone",
            [
                Layer([None if drift is None else drift.bits for drift in drifts], _DARK),
                Layer([None if drift is None else min(drift.expected, drift.bits) for drift in drifts], _LIGHT),
            ],
            [NONE if drift is None else f"{drift.excess:.3f}" for drift in drifts],
        ),
        Panel(
            "Tells of the label, nats",
            "validation logloss gained",
            [Layer([None if gain is None else max(gain, 0.0) for gain in gains], _DARK)],
            [NONE if gain is None else f"{gain:.4f}".replace("-", "−") for gain in gains],
        ),
    ]


def sharing_panels(features: Sequence[FeatureSharing]) -> list[Panel]:
    """Collisions, foreign updates and vectors of their own."""

    def panel(title: str, hint: str, shares: Sequence[float | None], under: Sequence[float | None] = ()) -> Panel:
        layers = [Layer(under, _LIGHT)] if under else []
        return Panel(title, hint, [*layers, Layer(shares, _DARK)], [percent(share) for share in shares], 1.0)

    everywhere = [one.collides_everywhere for one in features]
    without = [one.without_row for one in features]
    return [
        panel("Cells that share all rows", "light: at least one", everywhere, [one.collides for one in features]),
        panel("Updates from other ids", "of those to a cell's rows", [one.foreign_updates for one in features]),
        *([panel("Cells without a row", "they read zeros", without)] if any(without) else []),
        panel("Training cells, own vector", "which no other id has", [one.own_vector["train"] for one in features]),
        panel("Test cells, own vector", "which no other id has", [one.own_vector["test"] for one in features]),
    ]


def draw_panels(names: Sequence[str], panels: Sequence[Panel], width: int) -> Figure:
    """Draw panels side by side, or below each other where the width has room for one only."""
    narrow = width < 600
    rows, columns = (len(panels), 1) if narrow else (1, len(panels))
    height = rows * (HEAD + ROW * len(names) + GAP)
    figure = _figure(width, height)
    one = (width - (0 if narrow else _NAMES)) / columns
    for place, panel in enumerate(panels):
        left = _NAMES if narrow else _NAMES + place * one
        top = place * height / rows if narrow else 0.0
        span = (left, (width if narrow else left + one - GAP) - _NUMBERS)
        _panel(figure, panel, names if narrow or place == 0 else [], span, top, len(names))
    return figure


def _panel(
    figure: Figure, panel: Panel, names: Sequence[str], span: tuple[float, float], top: float, count: int
) -> None:
    width, height = figure.get_size_inches() * PIXELS
    left, right = span
    area = (left / width, 1 - (top + HEAD + ROW * count) / height, (right - left) / width, ROW * count / height)
    values = [value for layer in panel.layers for value in layer.values if value is not None]
    most = panel.most or max(values, default=0.0) or 1.0
    axes = figure.add_axes(area, xlim=(0, most), ylim=(count - 0.5, -0.5))
    axes.set_axis_off()
    for layer in (Layer([most] * count, GRID), *panel.layers):
        # Strokes of one path, which take little room in a page.
        ends = [(x, place) for place, value in enumerate(layer.values) if value for x in (0.0, min(value, most))]
        if ends:
            path = Path(ends, [Path.MOVETO, Path.LINETO] * (len(ends) // 2))
            axes.add_artist(PathPatch(path, ec=layer.color, fc="none", lw=BAR, capstyle="butt"))
    for place, text in enumerate(panel.texts):
        _text(axes, 1, place, text, _NUMBERS - 4, "right")
    for place, name in enumerate(names):
        _text(axes, 0, place, name, -(_NAMES - 2), "left")
    for line, (text, color) in enumerate(((panel.title, INK), (panel.hint, MUTED))):
        figure.text(left / width, 1 - (top + 14 + 15 * line) / height, text, fontsize=FONT, color=color, va="baseline")


def _text(axes: Axes, x: float, y: float, text: str, shift: float, side: str) -> None:
    axes.annotate(
        text, (x, y), (shift, 0), xycoords=("axes fraction", "data"), textcoords="offset points", ha=side, va="center",
        fontsize=FONT, color=INK, annotation_clip=False,
    )  # fmt: skip


def draw_coverage(facts: DatasetFacts, width: int, height: int) -> Figure:
    """Draw which share of the training cells the most frequent ids hold; the largest features in colour."""
    figure = _figure(width, height)
    axes = figure.add_axes((54 / width, 46 / height, 1 - 70 / width, 1 - 62 / height))
    features = facts.largest_first[:MOST_FEATURES]
    for feature in reversed(features[len(_LINES) :]):
        axes.plot(*_curve(feature), color="#c3c8d0", lw=1)
    for feature, color in zip(features, _LINES, strict=False):
        axes.plot(*_curve(feature), color=color, lw=1.8, label=feature.name)
    axes.set_xscale("log")
    axes.set_xlim(1, max(2, *(feature.ids for feature in features)))
    axes.set_ylim(0, 1.01)
    axes.xaxis.set_major_locator(LogLocator(numticks=12))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda ids, _: rounded(ids)))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    _dress(axes)
    axes.set_xlabel("most frequent ids of the feature", fontsize=FONT, color=MUTED)
    axes.set_title("Share of training cells that they hold", fontsize=FONT, color=INK, loc="left")
    if len(features) > 1:
        axes.legend(loc="best", fontsize=FONT, frameon=True, framealpha=0.9, edgecolor="none", labelcolor=INK)
    return figure


def _curve(feature: FeatureFacts) -> tuple[list[int], list[float]]:
    return [point.ids for point in feature.coverage], [point.cells for point in feature.coverage]


def draw_occupancy(occupancy: Occupancy, width: int, height: int) -> Figure:
    """Draw how many rows are read by how many ids."""
    figure = _figure(width, height)
    axes = figure.add_axes((54 / width, 46 / height, 1 - 70 / width, 1 - 76 / height))
    bins = list(_bins(occupancy))
    axes.bar(range(len(bins)), [rows for _, rows in bins], color=_DARK, width=0.7)
    for place, (_, rows) in enumerate(bins):
        axes.annotate(
            rounded(rows), (place, rows), (0, 3), textcoords="offset points", ha="center", fontsize=FONT, color=INK
        )
    axes.set_xticks(range(len(bins)), [name for name, _ in bins])
    axes.set_xlim(-0.6, max(len(bins), 4) - 0.4)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda rows, _: rounded(rows)))
    _dress(axes)
    axes.margins(y=0.12)
    axes.set_xlabel("ids that read the row", fontsize=FONT, color=MUTED)
    axes.set_title("Rows of all tables", fontsize=FONT, color=INK, loc="left", pad=10)
    return figure


def _bins(occupancy: Occupancy) -> Iterator[tuple[str, int]]:
    if occupancy.unused:
        yield "0", occupancy.unused
    for entry in occupancy.histogram:
        high, low = entry["at_most"], entry["at_most"] // 2 + 1
        yield rounded(high) if low >= high else f"{rounded(low)}–{rounded(high)}", entry["rows"]


def draw_overview(facts: DatasetFacts, sharing: PlanSharing | None = None) -> Figure:
    """Draw the bars of the facts, or where there is a plan those of what it shares, as one picture of their own."""
    features = facts.largest_first[:MOST_FEATURES]
    names = [cut(one.name) for one in features]
    if sharing is None:
        return draw_panels(names, fact_panels(features), 1120)
    by_name = {one.name: one for one in sharing.features}
    return draw_panels(names, sharing_panels([by_name[one.name] for one in features]), 1120)


def cut(name: str, most: int = 13) -> str:
    """Cut a name to what its column has room for, in the middle: names of features often begin alike."""
    half = (most - 1) // 2
    return name if len(name) <= most else f"{name[:half]}…{name[-half:]}"


def _dress(axes: Axes) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(BAND)
    axes.grid(True, axis="y", color=GRID, lw=1)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=FONT, length=0, labelcolor=INK)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width / PIXELS, height / PIXELS), dpi=PIXELS, facecolor="white")
    FigureCanvasAgg(figure)
    return figure
