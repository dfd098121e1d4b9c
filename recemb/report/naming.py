"""Says which line of a chart is which: names beside the lines, or a legend below the chart."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D

from recemb.report.grouping import Point
from recemb.report.labels import Box, Line, place_labels
from recemb.report.styles import BOTTOM, INK, LEFT, LEGEND_ROW, LONGEST_LABEL, PIXELS, RIGHT, TOP, Layout, Style


def set_margins(figure: Figure, axes: Axes, layout: Layout, legend: int) -> None:
    """Set the margins in pixels, with `legend` rows below an area for the lines that keeps its size."""
    height = layout.height + legend * LEGEND_ROW
    figure.set_size_inches(layout.width / PIXELS, height / PIXELS)
    bottom = BOTTOM + legend * LEGEND_ROW
    axes.set_position(
        (
            LEFT / layout.width,
            bottom / height,
            1 - (LEFT + RIGHT) / layout.width,
            1 - (bottom + TOP) / height,
        )
    )


def mark(style: Style) -> dict[str, Any]:
    """Give the arguments of a matplotlib line that is one marker."""
    edge = "white" if style.fill == style.color else style.color
    size = 15 if style.marker == "*" else 9
    return {
        "marker": style.marker,
        "ms": size,
        "mfc": style.fill,
        "mec": edge,
        "mew": 1 if edge == "white" else 1.6,
        "ls": "",
    }


def label_lines(
    axes: Axes,
    series: Mapping[str, Sequence[Point]],
    metric: str,
    styles: Mapping[str, Style],
    layout: Layout,
    taken: Sequence[Box],
    others: Sequence[Sequence[tuple[float, float]]],
) -> bool:
    """Write every series' name beside it; write none and return False where not all find room."""
    lines = []
    for name, points in series.items():
        places = [(point.bytes_serving.mean, getattr(point, metric).mean) for point in points]
        pixels = [(float(x), float(y)) for x, y in axes.transData.transform(places)]
        lines.append(Line(pixels, measure(axes, short(name), layout.font)))
    left, bottom, right, top = axes.bbox.extents
    found = place_labels(lines, Box(left - 4, bottom + 2, right + RIGHT - 2, top), taken, others)
    if found is None:
        return False
    for (name, points), line, place in zip(series.items(), lines, found, strict=True):
        point = points[place.point]
        to_left = place.dx + line.label_size[0] <= 0  # keep the end that is next to the marker in its place
        axes.annotate(
            short(name),
            (point.bytes_serving.mean, getattr(point, metric).mean),
            (place.dx + (line.label_size[0] if to_left else 0), place.dy + line.label_size[1] / 2),
            textcoords="offset points",
            ha="right" if to_left else "left",
            va="center_baseline",
            fontsize=layout.font,
            color=styles[name].color,
            zorder=4,
        )
    return True


def add_legend(figure: Figure, axes: Axes, names: Sequence[str], styles: Mapping[str, Style], layout: Layout) -> None:
    """Name every series below the chart, in columns; matplotlib's own legend drops names that begin with "_"."""
    names = list(dict.fromkeys(names))
    column = max(measure(axes, short(name), layout.font)[0] for name in names) + 36
    columns = max(int((layout.width - 16) // column), 1)
    rows = math.ceil(len(names) / columns)
    set_margins(figure, axes, layout, legend=rows)
    height = layout.height + rows * LEGEND_ROW
    for index, name in enumerate(names):
        x, y = 12 + (index % columns) * column, (rows - index // columns) * LEGEND_ROW - 10
        style = styles[name]
        ends, level = [x / layout.width, (x + 22) / layout.width], [y / height] * 2
        figure.add_artist(Line2D(ends, level, color=style.color, ls=style.dash, lw=1.6))
        figure.add_artist(Line2D([(x + 11) / layout.width], level[:1], **mark(style)))
        figure.text(
            (x + 29) / layout.width, y / height, short(name), fontsize=layout.font, color=INK, va="center_baseline"
        )


def short(name: str) -> str:
    """Cut a name to what a chart has room for."""
    return name if len(name) <= LONGEST_LABEL else name[: LONGEST_LABEL - 1] + "…"


def measure(axes: Axes, words: str, size: float) -> tuple[float, float]:
    """Width and height of a text in pixels."""
    canvas: Any = axes.figure.canvas  # Agg's, the one that measures
    renderer = canvas.get_renderer()
    width, height, _ = renderer.get_text_width_height_descent(words, FontProperties(size=size), ismath=False)
    return float(width), float(height)
