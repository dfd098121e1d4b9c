"""An inspection as lines for a terminal."""

import textwrap
from collections.abc import Iterator, Sequence

from recemb.budget import format_bytes
from recemb.inspection.findings import RARE, findings, sharing_findings
from recemb.inspection.inspection import Inspection
from recemb.inspection.records import DatasetFacts, FeatureFacts
from recemb.inspection.sharing import FeatureSharing, Occupancy, PlanSharing, Sharing
from recemb.plan import Plan
from recemb.plan_text import WIDTH
from recemb.report.words import NONE, percent, times_smaller

LONGEST_NAME = 20

FACTS_HEAD = ("feature", "ids", "bytes", "90 % in", "rare", "unseen", "drift", "psi", "tells", "±")
SHARING_HEAD = ("feature", "rows", "ids a row", "most", "no row", "shares", "foreign", "own train", "valid", "test")

FACTS_LEGEND = (
    f"90 % in: ids that hold 90 % of the training cells. rare: training cells of values seen fewer than {RARE} times. "
    "unseen: test cells without an id. drift: divergence of the ids in test from training, in bits, above that of "
    "random splits. psi: population stability index. tells: nats that validation logloss falls by, knowing this "
    "feature alone, and its standard error."
)
SHARING_LEGEND = (
    "ids a row: mean over rows in use, and the most. no row: training cells whose id has none. shares: training cells "
    "whose id shares a row. foreign: updates to a cell's rows that come from other ids. own: cells whose id has a "
    "vector of its own."
)


def inspection_text(inspection: Inspection) -> str:
    """Write an inspection as aligned tables, one line a feature and the largest first, each with sentences after it."""
    facts = inspection.facts
    lines = [facts_title(facts), "", *_aligned([FACTS_HEAD, *map(facts_row, facts.largest_first)])]
    lines += [*_wrapped(FACTS_LEGEND), "", *_paragraphs(findings(facts))]
    if inspection.plan is not None and inspection.sharing is not None:
        order = {feature.name: place for place, feature in enumerate(facts.largest_first)}
        features = sorted(
            (one for one in inspection.sharing.features if one.name in order), key=lambda one: order[one.name]
        )
        rows = [SHARING_HEAD, *map(sharing_row, features), total_row(inspection.sharing)]
        lines += ["", *_wrapped(plan_title(inspection.plan)), "", *_aligned(rows), *_wrapped(SHARING_LEGEND), ""]
        lines += _paragraphs(sharing_findings(inspection.sharing))
    return "\n".join(line.rstrip() for line in lines)


def facts_title(facts: DatasetFacts) -> str:
    """Name the data set and the size of its splits."""
    rows = facts.rows
    return (
        f"{facts.dataset}: {rows['train']:,} training, {rows['valid']:,} validation and {rows['test']:,} test rows, "
        f"{sum(one.ids for one in facts.features):,} ids in {len(facts.features)} features"
    )


def plan_title(plan: Plan) -> str:
    """Name the method, its budget and what it comes to."""
    budget = "no budget" if plan.budget is None else f"budget={plan.budget}"
    totals = plan.totals
    smaller = f", {times_smaller(totals.kept)} smaller" if totals.kept < 1 else ""
    return (
        f"table={plan.table['name']}, {budget}, {plan.precision}: {format_bytes(totals.bytes)} of "
        f"{format_bytes(totals.full_bytes)}{smaller}"
    )


def facts_row(feature: FeatureFacts) -> tuple[str, ...]:
    """Write the cells of a feature, as `FACTS_HEAD` names them."""
    drift, label = feature.drift, feature.label
    return (
        feature.name,
        f"{feature.ids:,}",
        format_bytes(feature.full_bytes),
        f"{next(point.ids for point in feature.ids_for if point.cells == 0.9):,}",
        percent(feature.tail(RARE).cells),
        percent(feature.unseen["test"]),
        NONE if drift is None else f"{drift.excess:.3f}",
        NONE if drift is None else f"{drift.psi:.3f}",
        NONE if label.logloss_gain is None else f"{label.logloss_gain:.4f}",
        NONE if label.standard_error is None else f"{label.standard_error:.4f}",
    )


def sharing_row(feature: FeatureSharing) -> tuple[str, ...]:
    """Write the cells of a feature under a plan, as `SHARING_HEAD` names them."""
    return (feature.name, *_of_rows(feature.occupancy), *_of_cells(feature))


def total_row(sharing: PlanSharing) -> tuple[str, ...]:
    """Write the cells of all features together."""
    return ("all", *_of_rows(sharing.occupancy), *_of_cells(sharing.total))


def _of_rows(occupancy: Occupancy) -> tuple[str, ...]:
    return (f"{occupancy.rows:,}", f"{occupancy.mean:.2f}", f"{occupancy.most:,}")


def _of_cells(sharing: Sharing) -> tuple[str, ...]:
    shares = (sharing.without_row, sharing.collides, sharing.foreign_updates, *sharing.own_vector.values())
    return tuple(map(percent, shares))


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Put the first column left and numbers right."""
    rows = [(_cut(name), *cells) for name, *cells in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _cut(name: str) -> str:
    # Names of features often begin alike.
    half = (LONGEST_NAME - 1) // 2
    return name if len(name) <= LONGEST_NAME else f"{name[:half]}…{name[-half:]}"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, break_on_hyphens=False)


def _paragraphs(sentences: Sequence[str]) -> Iterator[str]:
    for sentence in sentences:
        yield from textwrap.wrap(sentence, WIDTH, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)
