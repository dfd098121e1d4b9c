"""Reliability diagrams as a matplotlib figure: the share of ones against the predicted probability."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from recemb.report.calibration import Calibration
from recemb.report.grouping import Point, Section
from recemb.report.naming import measure
from recemb.report.styles import GRID, INK, MUTED, PIXELS, Layout, Style

PANEL = {"wide": 224, "narrow": 332}  # pixels of a square panel with its margins
_LEFT, _BOTTOM, _TOP, _RIGHT = 44, 42, 40, 10
MOST_PANELS = 8


def worth_drawing(section: Section) -> list[Point]:
    """Choose points for the diagrams: the baseline, the points on the front of AUC, and the worst calibrated one."""
    known = [point for point in section.points if point.anchor in section.analysis.calibration]
    worst = max(known, key=lambda point: section.analysis.calibration[point.anchor].error, default=None)
    anchors = {other.anchor for other in section.analysis.against.values()}
    bases = [point for point in known if point.anchor in anchors] if len(anchors) == 1 else []
    chosen = [*bases, *(point for point in known if point.anchor in section.front("auc"))]
    chosen = list({point.anchor: point for point in chosen}.values())[:MOST_PANELS]
    if worst is not None and worst not in chosen:
        chosen = [*chosen[: MOST_PANELS - 1], worst]
    return chosen


def draw_reliability(section: Section, points: Sequence[Point], styles: Mapping[str, Style], layout: Layout) -> Figure:
    """Draw one panel a point; a bar spans what 95 of 100 shares would, were the probabilities right."""
    found = [section.analysis.calibration[point.anchor] for point in points]
    high = min(max(float(max(each.predicted.max(), each.observed.max())) for each in found) * 1.08, 1.0)
    side = PANEL[layout.name]
    columns = max(min(layout.width // side, len(points)), 1)
    rows = math.ceil(len(points) / columns)
    width, height = layout.width, rows * side
    figure = Figure(figsize=(width / PIXELS, height / PIXELS), dpi=PIXELS, facecolor="white")
    FigureCanvasAgg(figure)
    for index, (point, each) in enumerate(zip(points, found, strict=True)):
        left, top = (index % columns) * side, (index // columns) * side
        box = (
            (left + _LEFT) / width,
            1 - (top + side - _BOTTOM) / height,
            (side - _LEFT - _RIGHT) / width,
            (side - _BOTTOM - _TOP) / height,
        )
        _panel(figure, box, point, each, styles[point.series], layout, high)
    return figure


def _panel(
    figure: Figure,
    box: tuple[float, float, float, float],
    point: Point,
    found: Calibration,
    style: Style,
    layout: Layout,
    high: float,
) -> None:
    axes = figure.add_axes(box, xlim=(0, high), ylim=(0, high))
    axes.grid(True, color=GRID, linewidth=1)
    axes.set_axisbelow(True)
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)
    axes.plot([0, high], [0, high], color=MUTED, lw=1, ls=(0, (5, 3)))
    reach = 1.96 * np.sqrt(found.predicted * (1 - found.predicted) / found.rows)
    for x, span in zip(found.predicted, reach, strict=True):
        axes.plot([x, x], [max(x - span, 0), min(x + span, high)], color=GRID, lw=5, solid_capstyle="butt")
    axes.plot(found.predicted, found.observed, color=style.color, lw=1.4, marker=style.marker, ms=4, mfc=style.fill)
    size = layout.font - 1
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10], prune="both"))
    axes.tick_params(labelsize=size, colors=MUTED, length=0, pad=4, labelcolor=INK)
    axes.set_xlabel("mean predicted probability", fontsize=size, color=MUTED, labelpad=3)
    axes.annotate(
        _fit(axes, point.label, size, PANEL[layout.name] - _RIGHT - 8), (0, 1), (8 - _LEFT, 22),
        xycoords="axes fraction", textcoords="offset points", fontsize=size, fontweight="bold", color=INK,
    )  # fmt: skip
    axes.annotate(
        f"error {found.error:.4f}, ratio {found.ratio:.3f}", (0, 1), (8 - _LEFT, 6),
        xycoords="axes fraction", textcoords="offset points", fontsize=size, color=MUTED,
    )  # fmt: skip


def _fit(axes: Axes, name: str, size: float, room: float) -> str:
    cuts = [name, *(f"{name[:length]}…" for length in range(len(name) - 1, 0, -1))]
    return next((cut for cut in cuts if 1.12 * measure(axes, cut, size)[0] <= room), "…")
