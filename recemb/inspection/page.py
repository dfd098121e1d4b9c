"""Writes an inspection as one HTML page that opens anywhere, offline and without a server, a picture, and JSON."""

import base64
import hashlib
import html
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from recemb.budget import format_bytes
from recemb.inspection import figure, text
from recemb.inspection.findings import findings, sharing_findings
from recemb.inspection.inspection import Inspection
from recemb.inspection.records import DatasetFacts, FeatureFacts
from recemb.inspection.sharing import FeatureSharing
from recemb.options import RecembError
from recemb.report.charts import FONTS, drawing
from recemb.report.styles import PIXELS
from recemb.report.words import percent

_WIDE, _NARROW = 1120, 340  # CSS pixels, as of the report


def write_inspection(inspection: Inspection, folder: Path) -> Path:
    """Write inspect.html, inspect.json and inspect.png; with a plan sharing.png too.

    Nothing is written before all of it is made, and every file appears whole or not at all.

    Returns:
        The page.

    Raises:
        RecembError: the folder cannot be written.
    """
    contents = {
        "inspect.html": render_page(inspection).encode(),
        "inspect.json": (json.dumps(inspection.to_dict(), indent=2, allow_nan=False) + "\n").encode(),
        "inspect.png": _png(lambda: figure.draw_overview(inspection.facts)),
    }
    if inspection.sharing is not None:
        contents["sharing.png"] = _png(lambda: figure.draw_overview(inspection.facts, inspection.sharing))
    with _writing_to(folder):
        for name, content in contents.items():
            unfinished = folder / f".{name}.{os.getpid()}"
            try:
                unfinished.write_bytes(content)
                unfinished.replace(folder / name)
            finally:
                unfinished.unlink(missing_ok=True)
    return folder / "inspect.html"


def make_folder(folder: Path) -> None:
    """Make the folder that an inspection shall be written to, so that hours of counting are not in vain.

    Raises:
        RecembError: it cannot be written.
    """
    with _writing_to(folder):
        probe = folder / f".{os.getpid()}"
        try:
            probe.touch()
        finally:
            probe.unlink(missing_ok=True)


@contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise RecembError(
            f"cannot write the inspection to {folder}: {error.strerror}; choose another --out."
        ) from error


def render_page(inspection: Inspection) -> str:
    """Write the page, in the style of the report."""
    facts = inspection.facts
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    looks = resources.files("recemb.report")
    script = (looks / "page.js").read_text(encoding="utf-8")
    shown = facts.largest_first[: figure.MOST_FEATURES]
    names = [figure.cut(one.name) for one in shown]
    return environment.get_template("page.html.j2").render(
        title=f"{facts.dataset}: what its features ask of embedding tables",
        lead=text.facts_title(facts) + ".",
        style=Markup((looks / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        # With its hash in the page's own policy, no other script can run, whatever a name may have smuggled in.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        findings=findings(facts),
        circumstances=_circumstances(facts),
        panels=_renderings(
            lambda width: figure.draw_panels(names, figure.fact_panels(shown), width),
            "Features: the table has the numbers",
        ),
        panels_caption=_panels_caption(facts),
        coverage=_renderings(
            lambda width: figure.draw_coverage(facts, width, 380 if width > 600 else 320),
            "Share of training cells against the number of the most frequent ids",
        ),
        facts_legend=text.FACTS_LEGEND,
        sharing_legend=text.SHARING_LEGEND,
        features={"head": text.FACTS_HEAD, "rows": [_fact_cells(one) for one in facts.largest_first]},
        plan=_plan(inspection, shown, names),
    )


def _plan(inspection: Inspection, shown: Sequence[FeatureFacts], names: Sequence[str]) -> dict[str, Any] | None:
    plan, sharing = inspection.plan, inspection.sharing
    if plan is None or sharing is None:
        return None
    by_name = {one.name: one for one in sharing.features}
    ordered = [by_name[one.name] for one in inspection.facts.largest_first]
    drawn = ordered[: len(shown)]
    return {
        "title": text.plan_title(plan),
        "findings": sharing_findings(sharing),
        "panels": _renderings(
            lambda width: figure.draw_panels(names, figure.sharing_panels(drawn), width),
            "What features share: the table has the numbers",
        ),
        "occupancy": _renderings(
            lambda width: figure.draw_occupancy(sharing.occupancy, width, 300), "Rows by how many ids read them"
        ),
        "features": {"head": text.SHARING_HEAD, "rows": [_sharing_cells(one) for one in ordered]},
    }


def _circumstances(facts: DatasetFacts) -> list[tuple[str, str]]:
    ids = {"frequency": "numbered by training frequency", "none": "raw values"}
    return [
        ("Data", facts.dataset),
        ("Protocol", facts.protocol or "unknown"),
        ("Ids", ids.get(facts.vocabulary, facts.vocabulary)),
        ("Full tables", f"{format_bytes(facts.full_bytes)}, {facts.embedding_dim} wide"),
        *((f"Positive, {split}", percent(rate)) for split, rate in facts.positive_rate.items()),
        ("Fingerprint of the data", facts.fingerprint),
    ]


def _panels_caption(facts: DatasetFacts) -> str:
    many = len(facts.features) > figure.MOST_FEATURES
    which = f"The {figure.MOST_FEATURES} largest features" if many else "Features, the largest table first"
    return (
        f"{which}. A cell is a row's value of a feature. Numbers beside the rare values are of those seen fewer than "
        "10 times, numbers beside drift what it has above chance."
    )


Cell = tuple[str, float | None]


def _fact_cells(one: FeatureFacts) -> list[Cell]:
    drift, label = one.drift, one.label
    keys = [
        None,
        one.ids,
        one.full_bytes,
        one.ids_for[1].ids,
        one.tail(10).cells,
        one.unseen["test"],
        None if drift is None else drift.excess,
        None if drift is None else drift.psi,
        label.logloss_gain,
        label.standard_error,
    ]
    return list(zip(text.facts_row(one), keys, strict=True))


def _sharing_cells(one: FeatureSharing) -> list[Cell]:
    rows, shares = one.occupancy, (one.without_row, one.collides, one.foreign_updates, *one.own_vector.values())
    return list(zip(text.sharing_row(one), [None, rows.rows, rows.mean, rows.most, *shares], strict=True))


def _renderings(draw: Callable[[int], Figure], name: str) -> Iterator[tuple[str, Markup]]:
    """Draw for wide and for narrow screens."""
    for layout, width in (("wide", _WIDE), ("narrow", _NARROW)):
        yield layout, Markup(_svg(draw, width, name))


def _svg(draw: Callable[[int], Figure], width: int, name: str) -> str:
    """Draw an `<svg>` element for a page, with a name that screen readers read and ids of its own."""
    prefix = re.sub(r"[^a-z]+", "-", f"{name} {width}".lower()) + str(width)
    with drawing(prefix):
        buffer = io.StringIO()
        draw(width).savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawn = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", buffer.getvalue(), flags=re.DOTALL)
    drawn = re.sub(r"\n\s+", "\n", drawn)
    drawn = drawn[drawn.index("<svg") :].replace("'DejaVu Sans'", FONTS)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', drawn))
    drawn = re.sub(r' id="([^"]+)"', lambda found: f' id="{prefix}-{found[1]}"' if found[1] in used else "", drawn)
    drawn = re.sub(r'(href="#|url\(#)', rf"\1{prefix}-", drawn)
    viewbox, *_ = re.findall(r'viewBox="[^"]+"', drawn)
    return f'<svg {viewbox} role="img" aria-label="{html.escape(name)}">{drawn[drawn.index(">") + 1 :]}'


def _png(draw: Callable[[], Figure]) -> bytes:
    with drawing("png"):
        buffer = io.BytesIO()
        draw().savefig(buffer, format="png", dpi=2 * PIXELS, metadata={"Software": None})
    return buffer.getvalue()
