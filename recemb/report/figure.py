"""One chart as a matplotlib figure: quality against serving bytes, with every series, its spread and the front."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, ScalarFormatter

from recemb.budget import format_bytes
from recemb.report.grouping import FULL, Point, Section
from recemb.report.labels import Box
from recemb.report.naming import add_legend, label_lines, mark, measure, set_margins, short
from recemb.report.styles import BAND, GRID, INK, LEFT, MUTED, PIXELS, RIGHT, STEPS, TITLES, TOP, Layout, Style
from recemb.report.words import fineness, score


def draw(section: Section, metric: str, layout: Layout, styles: Mapping[str, Style], links: bool = True) -> Figure:
    """Draw a section, with names beside the lines where all find room, or else with a legend below.

    Args:
        section: what to draw.
        metric: "auc" or "logloss".
        layout: size.
        styles: of every series.
        links: whether every point links to `#anchor`.
    """
    series: dict[str, list[Point]] = {}
    for point in sorted(section.points, key=lambda point: point.bytes_serving.mean):
        series.setdefault(point.series, []).append(point)
    named = {name: points for name, points in series.items() if name != FULL}  # its horizontal line names it
    for direct in (True, False):
        figure = Figure(figsize=(layout.width / PIXELS, layout.height / PIXELS), dpi=PIXELS, facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        set_margins(figure, axes, layout, legend=0)
        _scales(axes, section, metric, layout, named if direct else {})
        taken = _references(axes, section, metric, layout)
        front = _front(axes, section, metric)
        for name, points in series.items():
            _line(axes, points, metric, styles[name], links)
        if direct and label_lines(axes, named, metric, styles, layout, taken, [front]):
            return figure
    add_legend(figure, axes, [point.series for point in section.points], styles, layout)
    return figure


def _scales(axes: Axes, section: Section, metric: str, layout: Layout, series: Mapping[str, Sequence[Point]]) -> None:
    sizes = [math.log2(point.bytes_serving.mean) for point in section.points]
    low, high = min(sizes), max(sizes)
    # Names stand at the left ends of lines, where lines fan out: make room for the longest that starts at the edge.
    edge = [name for name, points in series.items() if math.log2(points[0].bytes_serving.mean) < low + 0.3]
    name_width = max((measure(axes, short(name), layout.font)[0] for name in edge), default=0.0) + 16
    share = min(name_width / (layout.width - LEFT - RIGHT), 0.4)
    high += max((high - low) * 0.05, 0.5)
    low -= max((high - low) * share / (1 - share), 0.5)
    full = max((run.bytes_full or 0 for point in section.points for run in point.runs), default=0)
    phase = round(math.log2(full)) if full else 0  # puts a tick at the full table, so that both axes agree
    axes.set_xscale("log", base=2)
    axes.set_xlim(2**low, 2**high)
    axes.set_ylim(*_quality_limits(section, metric))
    axes.xaxis.set_major_locator(FixedLocator(_powers(low, high, layout.ticks, phase)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: format_bytes(size)))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
    axes.tick_params(labelsize=layout.font, colors=MUTED, length=0, pad=6, labelcolor=INK)
    axes.grid(True, color=GRID, linewidth=1)
    axes.set_axisbelow(True)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel("serving bytes of the embedding tables (log scale)", fontsize=layout.font, color=MUTED, labelpad=7)
    axes.annotate(
        TITLES[metric],
        (0, 1),
        (-LEFT + 6, TOP - 10),
        xycoords="axes fraction",
        textcoords="offset points",
        va="top",
        fontsize=layout.font + 1,
        fontweight="bold",
    )
    if full:
        _times_smaller(axes, full, layout, low, high, phase)


def _times_smaller(axes: Axes, full: int, layout: Layout, low: float, high: float, phase: int) -> None:
    """Write along the top how many times smaller than the full table each tick of bytes is."""
    unit = " smaller" if layout.width > 600 else ""
    for size in _powers(low, high, layout.ticks, phase):
        times = 2.0**phase / size
        if times < 1 or not 2**low <= full / times <= 2**high:
            continue
        axes.annotate(
            "full" if times == 1 else f"{times:,.0f}x{unit}",
            (full / times, 1),
            (0, 5),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            fontsize=layout.font - 1,
            color=MUTED,
        )
        top = axes.get_xaxis_transform()
        axes.plot([full / times] * 2, [1, 1.012], color=MUTED, lw=1, transform=top, clip_on=False)


def _powers(low: float, high: float, most: int, phase: int = 0) -> list[float]:
    """List powers of two between two exponents, `phase` plus whole steps, at the finest step that leaves `most`."""
    step = 1
    while len(found := [e for e in range(math.ceil(low), math.floor(high) + 1) if (e - phase) % step == 0]) > most:
        step += 1
    return [2.0**exponent for exponent in found]


def _quality_limits(section: Section, metric: str) -> tuple[float, float]:
    spreads = [getattr(point, metric) for point in section.points]
    ends = [value.mean + side * (value.std or 0.0) for value in spreads for side in (-1, 1)]
    low, high = min(ends), max(ends)
    span = max(high - low, 1e-4)
    if section.ceiling:
        ceiling = getattr(section.ceiling, metric)
        # A far ceiling would squeeze all points together: it then stands at the edge, marked as off the scale.
        if low - span <= ceiling <= high + span:
            low, high = min(low, ceiling), max(high, ceiling)
            span = max(high - low, 1e-4)
    return low - 0.09 * span, high + 0.09 * span


def _references(axes: Axes, section: Section, metric: str, layout: Layout) -> list[Box]:
    """Draw the baseline with its band and the ceiling; return where their names stand, in pixels."""
    taken = []
    low, high = axes.get_ylim()
    if section.full:
        full = getattr(section.full, metric)
        words = "full table"
        if section.analysis.baseline == FULL and metric in section.analysis.resolution:
            words = _band(axes, section, metric, [section.full], words, layout.width > 600)
        elif full.std is not None and not section.analysis.resolution:
            axes.axhspan(full.mean - full.std, full.mean + full.std, color=BAND, lw=0, zorder=0.5)
            words = "full table, mean ± std"
        axes.axhline(full.mean, color=MUTED, lw=1, zorder=1)
        side = _freer_side(axes, section, metric, full.mean, words, layout)
        taken.append(_name_line(axes, full.mean, words, layout, side))
    if section.analysis.baseline != FULL and metric in section.analysis.resolution:
        bases = {point.anchor: point for point in section.analysis.against.values()}
        words = _band(axes, section, metric, list(bases.values()), str(section.analysis.baseline), layout.width > 600)
        if len(bases) == 1:
            (base,) = bases.values()
            level = getattr(base, metric).mean
            axes.axhline(level, color=MUTED, lw=1, ls=(0, (2, 2)), zorder=1)
            taken.append(
                _name_line(axes, level, words, layout, _freer_side(axes, section, metric, level, words, layout))
            )
    if section.ceiling:
        ceiling = getattr(section.ceiling, metric)
        shown = min(max(ceiling, low + 0.004 * (high - low)), high - 0.004 * (high - low))
        axes.axhline(shown, color=INK, lw=1.2, ls=(0, (6, 4)), zorder=1)
        words = f"best reachable {score(ceiling)}" + ("" if shown == ceiling else ", off the scale")
        taken.append(_name_line(axes, shown, words, layout, at_left=False))
    return taken


def _band(axes: Axes, section: Section, metric: str, bases: Sequence[Point], name: str, wide: bool) -> str:
    """Shade what cannot be told apart from the baseline, along its own points where it is a series; name it."""
    reach = section.analysis.resolution[metric]
    places = sorted((base.bytes_serving.mean, getattr(base, metric).mean) for base in bases)
    if len(places) == 1:
        ((_, level),) = places
        axes.axhspan(level - reach, level + reach, color=BAND, lw=0, zorder=0.5)
    else:
        sizes, levels = zip(*places, strict=True)
        lower, upper = [level - reach for level in levels], [level + reach for level in levels]
        axes.fill_between(sizes, lower, upper, color=BAND, lw=0, zorder=0.5)
    return f"{name} ± {fineness(reach)}" + (": not told apart" if wide else "")


def _freer_side(axes: Axes, section: Section, metric: str, level: float, words: str, layout: Layout) -> bool:
    """Whether a name at the left end of a horizontal line covers no more markers than at the right end."""
    width, height = measure(axes, words, layout.font - 1)
    left, _, right, _ = axes.bbox.extents
    places = [(point.bytes_serving.mean, getattr(point, metric).mean) for point in section.points]
    pixels = axes.transData.transform([*places, (places[0][0], level)])
    near = [x for x, y in pixels[:-1] if abs(y - pixels[-1][1]) < height + 10]
    return sum(x < left + width + 10 for x in near) <= sum(x > right - width - 10 for x in near)


def _name_line(axes: Axes, level: float, words: str, layout: Layout, at_left: bool) -> Box:
    """Write words above a horizontal line, or below it where the top of the chart is near."""
    size = layout.font - 1
    x, y = axes.transAxes.transform((0 if at_left else 1, 0))[0], axes.transData.transform((1, level))[1]
    width, height = measure(axes, words, size)
    above = y + height + 8 < axes.transAxes.transform((0, 1))[1]
    axes.annotate(
        words,
        (0 if at_left else 1, level),
        (4 if at_left else -4, 4 if above else -4),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="left" if at_left else "right",
        va="bottom" if above else "top",
        fontsize=size,
        color=MUTED,
        zorder=5,
    )
    left = x + 4 if at_left else x - 4 - width
    bottom = y + 2 if above else y - height - 6
    return Box(left, bottom, left + width, bottom + height + 4)


def _front(axes: Axes, section: Section, metric: str) -> list[tuple[float, float]]:
    """Draw the Pareto front, the best that a given number of bytes buys; return its corners in pixels."""
    on_front = [point for point in section.points if point.anchor in section.front(metric)]
    corners = sorted((point.bytes_serving.mean, getattr(point, metric).mean) for point in on_front)
    corners.append((axes.get_xlim()[1], corners[-1][1]))
    steps = [corners[0]]
    for size, quality in corners[1:]:
        steps += [(size, steps[-1][1]), (size, quality)]
    sizes, qualities = zip(*steps, strict=True)
    axes.plot(sizes, qualities, color=STEPS, lw=4, zorder=1.5, solid_joinstyle="miter")
    return [(float(x), float(y)) for x, y in axes.transData.transform(steps)]


def _line(axes: Axes, points: Sequence[Point], metric: str, style: Style, links: bool) -> None:
    sizes = [point.bytes_serving.mean for point in points]
    axes.plot(sizes, [getattr(p, metric).mean for p in points], color=style.color, ls=style.dash, lw=1.6, zorder=2.5)
    for point, size in zip(points, sizes, strict=True):
        quality = getattr(point, metric)
        if quality.std:
            ends = (quality.mean - quality.std, quality.mean + quality.std)
            axes.plot([size, size], ends, color=style.color, lw=1.4, zorder=2.6)
        if point.bytes_serving.std:
            ends = (max(size - point.bytes_serving.std, 1), size + point.bytes_serving.std)
            axes.plot(ends, [quality.mean] * 2, color=style.color, lw=1.4, zorder=2.6)
        (marker,) = axes.plot([size], [quality.mean], **mark(style), zorder=3)
        if links:
            marker.set_url(f"#{point.anchor}")
