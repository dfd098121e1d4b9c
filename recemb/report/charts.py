"""Draws quality against serving bytes: one figure, rendered as SVG for the page or as a picture for a README."""

import html
import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle

from recemb.budget import format_bytes
from recemb.report.figure import draw
from recemb.report.grouping import Point, Section
from recemb.report.kept_figure import draw_kept
from recemb.report.reliability_figure import draw_reliability
from recemb.report.structure import Structure
from recemb.report.styles import INK, MUTED, PICTURE, PIXELS, TITLES, Layout, Style
from recemb.report.words import kept_share, seeds, times_smaller, with_spread

FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def svg_chart(section: Section, metric: str, layout: Layout, styles: Mapping[str, Style]) -> str:
    """Draw a chart as an `<svg>` element for a page: its points are links to `#anchor`, its ids are its own.

    Args:
        section: what to draw.
        metric: "auc" or "logloss".
        layout: size.
        styles: of every series, see `styles_for`.
    """
    prefix = f"{section.anchor}-{metric}-{layout.name}"
    text = _slim(_svg(lambda: draw(section, metric, layout, styles), prefix))
    text = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', text)
    text = re.sub(r'(href="#|url\(#)(?!point-)', rf"\1{prefix}-", text)
    text = _named(text, "group", f"{TITLES[metric]} against serving bytes, {section.name}")
    tips = {point.anchor: html.escape(f"{point.label}: {_tip(point, metric)}") for point in section.points}

    def link(found: re.Match[str]) -> str:
        tip = tips[found["anchor"]]
        # The halo is what a finger hits; matplotlib would open links in a new tab.
        halo = f'<circle class="halo" cx="{found["x"]}" cy="{found["y"]}" r="11" fill="transparent"/>'
        return f'<a href="#{found["anchor"]}" aria-label="{tip}"><title>{tip}</title>{halo}{found["use"]}'

    return re.sub(
        r'<a xlink:href="#(?P<anchor>point-[^"]+)"[^>]*>\s*(?P<use><use [^>]*?x="(?P<x>[^"]+)" y="(?P<y>[^"]+)")',
        link,
        text,
    )


def svg_of_kept(structure: Structure, style: Style, name: str) -> str:
    """Draw what pruning kept as an `<svg>` element for a page; `name` says of what."""
    text = _slim(_svg(lambda: draw_kept(structure, style), name))
    return _named(text, "img", f"What {name} keeps of each feature: the table says it in numbers")


def svg_of_reliability(section: Section, points: Sequence[Point], styles: Mapping[str, Style], layout: Layout) -> str:
    """Draw reliability diagrams of some points as one `<svg>` element for a page."""
    prefix = f"{section.anchor}-reliability-{layout.name}"
    text = _slim(_svg(lambda: draw_reliability(section, points, styles, layout), prefix))
    text = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', text)
    text = re.sub(r'(href="#|url\(#)', rf"\1{prefix}-", text)
    return _named(text, "img", f"Reliability diagrams, {section.name}: the table says the errors in numbers")


def _named(text: str, role: str, name: str) -> str:
    """Put a name that screen readers read in place of the size in inches."""
    viewbox, *_ = re.findall(r'viewBox="[^"]+"', text)  # the first is the drawing's, others are in somebody's names
    return f'<svg {viewbox} role="{role}" aria-label="{html.escape(name, quote=True)}">{text[text.index(">") + 1 :]}'


def _slim(text: str) -> str:
    """Leave out of an SVG document what it does not need inside of a page."""
    text = text[text.index("<svg") :].replace(f" font-family: {FONTS};", "")  # the page's own fonts
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", text)
    text = re.sub(r' transform="rotate\(-0 [^"]*"', "", text)
    text = re.sub(r"\n\s+", "\n", text)
    text = re.sub(r"<g>\n(<text [^>]*>[^<]*</text>)\n</g>", r"\1", text)
    return re.sub(r"<g */>\n?", "", text)


def svg_mark(style: Style) -> str:
    """Draw the marker of a series as a small `<svg>` element, for the table."""
    marker = MarkerStyle(style.marker)
    (polygon,) = marker.get_path().transformed(marker.get_transform()).to_polygons()
    outline = np.asarray(polygon)
    reach = np.abs(outline).max()
    corners = " ".join(f"{8 + 6 * x / reach:.1f},{8 - 6 * y / reach:.1f}" for x, y in outline)
    return (
        '<svg class="mark" viewBox="0 0 16 16" aria-hidden="true">'
        f'<polygon points="{corners}" fill="{style.fill}" stroke="{style.color}" stroke-width="1.6"/></svg>'
    )


def picture(section: Section, styles: Mapping[str, Style]) -> tuple[bytes, bytes]:
    """Draw AUC against bytes for a README.

    Returns:
        The picture as PNG (at twice its size, for sharp screens) and as SVG.
    """
    with drawing(section.anchor):
        buffer = io.BytesIO()
        draw(section, "auc", PICTURE, styles, links=False).savefig(
            buffer, format="png", dpi=2 * PIXELS, metadata={"Software": None}
        )
    svg = _svg(lambda: draw(section, "auc", PICTURE, styles, links=False), section.anchor)
    return buffer.getvalue(), svg.encode()


def _tip(point: Point, metric: str) -> str:
    name = "AUC" if metric == "auc" else "logloss"
    share = f", kept {kept_share(point.kept)}, {times_smaller(point.kept)} smaller" if point.kept else ""
    size = format_bytes(point.bytes_serving.mean)
    return f"{name} {with_spread(getattr(point, metric))}, {seeds(point.auc)}, {size}{share}"


def _svg(make: Callable[[], Figure], salt: str) -> str:
    with drawing(salt):
        buffer = io.StringIO()
        nameless = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        make().savefig(buffer, format="svg", metadata=nameless)
    text = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    return text.replace("'DejaVu Sans'", FONTS)


@contextmanager
def drawing(salt: str) -> Iterator[None]:
    """Make what matplotlib draws depend on the numbers alone: no matplotlibrc, no dates, no random ids."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "svg.hashsalt": salt,
                "svg.fonttype": "none",  # text stays text: it can be read, searched and takes the reader's font
                "font.family": ["DejaVu Sans"],  # comes with matplotlib; wider than most, so its measures are safe
                "text.parse_math": False,  # names are not formulas, whatever dollar signs they hold
                "axes.edgecolor": MUTED,
                "text.color": INK,
            }
        )
        # The reader's browser has the characters that the measuring font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield
