"""What pruning kept as a matplotlib figure: for each feature the share of ids with a row, and how wide the rows are."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from recemb.report.naming import measure
from recemb.report.structure import Kept, Structure
from recemb.report.styles import BAND, INK, MUTED, PIXELS, Style
from recemb.report.values import label
from recemb.report.words import aligned, few_digits, percent, rounded

WIDTH, HEAD, ROW, FONT = 360, 24, 18, 12  # pixels; the width of a phone, so that one drawing serves all screens
BAR, MARK = 10, 14  # pixels that a bar and a mark are high
NAME, IDS, SHARE, FLOATS, NUMBER = 84, 40, 46, 64, 36  # pixels of columns; of names at most, and shares take the rest
GAP = 8
MOST_FEATURES = 60  # in one drawing: a longer one says no more, and the table has them all

Span = tuple[float, float]  # left and right in pixels


def draw_kept(structure: Structure, style: Style) -> Figure:
    """Draw two bars a feature: the share of its ids that keep a row, and how many floats of a row are kept.

    Both scales are linear and both bars lie on a light one of all there was, so that what is dark is what is left. A
    mark on the first says which share of the training cells these ids cover, which is mostly far more than of the ids.
    """
    features = list(structure.per_table.items())[:MOST_FEATURES]
    tables = [kept for _, kept in features]
    height = HEAD + ROW * len(features)
    figure = Figure(figsize=(WIDTH / PIXELS, height / PIXELS), dpi=PIXELS)
    figure.patch.set_visible(False)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0), xlim=(0, WIDTH), ylim=(height, 0))
    axes.set_axis_off()
    names = [_fit(axes, label(name)) for name, _ in features]
    ids = round(max(measure(axes, name, FONT)[0] for name in names)) + IDS
    floats = WIDTH - NUMBER - FLOATS
    _write(axes, 0, names, "left")
    _write(axes, ids, [rounded(kept.ids) for kept in tables], "right", head="ids")
    _shares(axes, tables, (ids + GAP, floats - GAP - SHARE), style)
    _floats(axes, tables, (floats, floats + FLOATS), style)
    return figure


def _shares(axes: Axes, tables: Sequence[Kept], span: Span, style: Style) -> None:
    left, right = span
    _bars(axes, [span] * len(tables), BAND)
    ends = [left + (right - left) * kept.share for kept in tables]
    # A bar that is there can be seen, however short.
    dark = [(left, max(end, left + 1)) if kept.kept else None for end, kept in zip(ends, tables, strict=True)]
    _bars(axes, dark, style.color)
    marks = [None if kept.cells is None else left + (right - left) * kept.cells for kept in tables]
    _bars(axes, [None if mark is None else (mark - 1, mark + 1) for mark in marks], INK, MARK)
    _write(axes, left, [], "left", head="keep a row")
    _write(axes, right + SHARE, [percent(kept.share) for kept in tables], "right")


def _floats(axes: Axes, tables: Sequence[Kept], span: Span, style: Style) -> None:
    left, right = span
    dims = [kept.dim for kept in tables]
    one = (right - left) / max(dims)
    _bars(axes, [(left, left + one * dim) for dim in dims], BAND)
    _bars(axes, [(left, left + one * kept.width) if kept.kept else None for kept in tables], style.color)
    _write(axes, left, [], "left", head=f"of {few_digits(dims[0])} floats" if len(set(dims)) == 1 else "floats a row")
    _write(axes, WIDTH, aligned([kept.width if kept.kept else None for kept in tables]), "right")


def _bars(axes: Axes, spans: Sequence[Span | None], color: str, height: int = BAR) -> None:
    """Draw one bar a row, none where there is no span: strokes of one path, which take little room in a page."""
    ends = [(round(x, 1), HEAD + ROW * (row + 0.5)) for row, span in enumerate(spans) if span is not None for x in span]
    if ends:
        path = Path(ends, [Path.MOVETO, Path.LINETO] * (len(ends) // 2))
        axes.add_artist(PathPatch(path, ec=color, fc="none", lw=height, capstyle="butt", clip_on=False))


def _write(axes: Axes, x: float, texts: Sequence[str], side: str, head: str = "") -> None:
    """Write one text a row below the head of their column."""
    axes.text(x, HEAD - 10, head, fontsize=FONT, color=MUTED, ha=side)
    for row, text in enumerate(texts):
        axes.text(x, HEAD + ROW * (row + 0.5) + 4, text, fontsize=FONT, color=INK, ha=side)


def _fit(axes: Axes, name: str) -> str:
    """Cut a name to what its column has room for, in the middle: names of features often begin alike."""
    cuts = [name, *(f"{name[:length]}…{name[-length:]}" for length in range(len(name) // 2, 0, -1))]
    return next((cut for cut in cuts if measure(axes, cut, FONT)[0] <= NAME), "…")
