"""Fills the template of the report: one HTML file that opens anywhere, offline and without a server."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from recemb.budget import format_bytes
from recemb.report import words
from recemb.report.analysis import FULL, METRICS
from recemb.report.changes import Change, summary
from recemb.report.charts import svg_chart, svg_mark, svg_of_kept, svg_of_reliability
from recemb.report.findings import findings
from recemb.report.grouping import Point, Section
from recemb.report.kept_figure import MOST_FEATURES
from recemb.report.records import LeftOut, Run
from recemb.report.reliability_figure import worth_drawing
from recemb.report.structure import mean_stages, mean_structure
from recemb.report.styles import NARROW, WIDE, Style
from recemb.report.values import label

_HERE = Path(__file__).parent
_MOST_PARTS = 6  # columns of parts in the table; the smallest share one column beyond that
DEFAULT_TITLE = "Embedding tables: quality against bytes"


def render_page(
    sections: Sequence[Section],
    left_out: Sequence[LeftOut],
    styles: Mapping[str, Style],
    title: str | None = None,
    changes: Sequence[Change] = (),
    out: Path | None = None,
) -> str:
    """Write the page.

    Args:
        sections: what to compare, see `grouping.group`.
        left_out: runs that are in no chart, with reasons.
        styles: look of every series.
        title: heading of the page.
        changes: what changed from another folder of runs, shown first where there is any.
        out: folder that the page is for; files of runs inside of it are linked.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals["words"] = words
    environment.globals["format_bytes"] = format_bytes
    environment.globals["label"] = label
    environment.globals["link"] = partial(_link, out)
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    return environment.get_template("page.html.j2").render(
        title=title or DEFAULT_TITLE,
        style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        # With its hash in the page's own policy, no other script can run, whatever a record may have smuggled in.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        overview=words.overview(sections, left_out),
        sections=[_section(section, styles) for section in sections],
        left_out=left_out,
        changes=changes,
        what_changed=summary(changes),
    )


def _link(out: Path | None, run: Run, file: str) -> str | None:
    """Give the address of a file of a run from the page, None where the run is not below the page's folder."""
    if out is None or run.folder is None:
        return None
    at = run.folder.resolve() / file
    if not at.is_relative_to(out.resolve()) or not at.is_file():
        return None
    return quote(at.relative_to(out.resolve()).as_posix())


def _section(section: Section, styles: Mapping[str, Style]) -> dict[str, Any]:
    parts = _part_columns(section)
    return {
        "section": section,
        "facts": _facts(section),
        "findings": findings(section),
        "charts": {
            metric: [(layout.name, Markup(svg_chart(section, metric, layout, styles))) for layout in (WIDE, NARROW)]
            for metric in ("auc", "logloss")
        },
        "baseline": FULL if section.analysis.baseline in (None, FULL) else "baseline",
        "marks": {point.series: Markup(svg_mark(styles[point.series])) for point in section.points},
        "reliability": _reliability(section, styles),
        "parts": parts,
        "rows": [_row(section, point, parts, styles[point.series]) for point in section.points],
        "pruned": [kept for point in section.points if (kept := _kept(point, styles[point.series]))],
    }


def _reliability(section: Section, styles: Mapping[str, Style]) -> list[tuple[str, Markup]]:
    points = worth_drawing(section)
    if not points:
        return []
    return [(layout.name, Markup(svg_of_reliability(section, points, styles, layout))) for layout in (WIDE, NARROW)]


def _kept(point: Point, style: Style) -> dict[str, Any] | None:
    """Gather what pruning kept at a point, a mean over the runs that say so; None where none does."""
    structures = [run.structure for run in point.runs if run.structure]
    structure = mean_structure(structures)
    if structure is None:
        return None
    return {
        "point": point,
        "mark": Markup(svg_mark(style)),
        "sentence": words.what_was_kept(structure),
        "circumstances": words.how_it_was_pruned(structure, len(structures)),
        "tables": structure.per_table,
        "widths": words.aligned([kept.width if kept.kept else None for kept in structure.per_table.values()]),
        "drawn": MOST_FEATURES,
        "drawing": Markup(svg_of_kept(structure, style, point.label)),
        "stages": mean_stages([run.stages for run in point.runs]),
    }


def _row(section: Section, point: Point, parts: Sequence[str], style: Style) -> dict[str, Any]:
    held = point.mean_bytes("parts")
    named = {name: held.pop(name, None) for name in parts if name != OTHER}
    speeds = [run.rows_per_second for run in point.runs if run.rows_per_second is not None]
    return {
        "point": point,
        "mark": Markup(svg_mark(style)),
        "parts": [named[name] if name != OTHER else sum(held.values()) or None for name in parts],
        "all_parts": point.mean_bytes("parts"),
        "per_table": point.mean_bytes("per_table"),
        "other_bytes": point.mean_bytes("other_bytes"),
        "to_baseline": {metric: section.to_baseline(point, metric) for metric in METRICS},
        "compared": {metric: section.analysis.differences.get((point.anchor, metric)) for metric in METRICS},
        "calibration": section.analysis.calibration.get(point.anchor),
        "fronts": [
            name for name, metric in (("AUC", "auc"), ("logloss", "logloss")) if point.anchor in section.front(metric)
        ],
        "speed": sum(speeds) / len(speeds) if speeds else None,
    }


OTHER = "other parts"


def _part_columns(section: Section) -> list[str]:
    totals: dict[str, int] = {}
    for point in section.points:
        for name, size in point.mean_bytes("parts").items():
            totals[name] = totals.get(name, 0) + size
    names = sorted(totals, key=lambda name: (-totals[name], name))
    return names if len(names) <= _MOST_PARTS else [*names[: _MOST_PARTS - 1], OTHER]


def _facts(section: Section) -> list[tuple[str, str]]:
    run = section.first
    sizes = {run.bytes_full for point in section.points for run in point.runs if run.bytes_full}
    shared = "none"
    if run.min_count is None:
        shared = "unknown"
    elif run.min_count > 1:
        shared = f"seen fewer than {run.min_count} times in training"
    return [
        ("Data", run.dataset),
        ("Backbone", run.model),
        ("Protocol", run.protocol or "unknown"),
        ("Values that share one id", shared),
        ("Full tables", " or ".join(format_bytes(size) for size in sorted(sizes)) or "unknown"),
        ("Fingerprint of the data", run.fingerprint or "unknown"),
    ]
