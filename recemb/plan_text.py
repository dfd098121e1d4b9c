"""A plan as lines for a terminal."""

import textwrap
from collections.abc import Iterator

from recemb.budget import format_bytes
from recemb.plan import Plan, PlannedFeature

WIDTH = 100
"""Columns of the terminal that the lines fit in."""

_HEAD = ("feature", "ids", "holds", "rows", "width", "bytes")
_FEATURE, _HOLDS = 0, 2  # the columns of text, the others are numbers


def plan_text(plan: Plan) -> str:
    """Write a plan as an aligned table of at most `WIDTH` columns, long names shortened, and a summary."""
    lines = [*_header(plan), "", *_aligned([_HEAD, *_rows(plan), *_sums(plan)]), "", *_summary(plan)]
    return "\n".join(line.rstrip() for line in lines)


def _header(plan: Plan) -> list[str]:
    options = [f"{name}={_shown(value)}" for name, value in plan.table.items() if name != "name"]
    budget = "no budget"
    if plan.budget_bytes is not None:
        budget = f"budget {plan.budget} = {plan.budget_bytes:,} bytes ({format_bytes(plan.budget_bytes)})"
    held = "" if plan.precision == "fp32" else f", rows in {plan.precision}"
    if other := sorted({table.held for table in plan.tables} - {plan.precision}):
        held += f" ({', '.join(other)} where rows are so narrow that this takes no more bytes)"
    return [
        line
        for text in (
            f"table={plan.table['name']} for dataset={plan.dataset}, vectors {plan.embedding_dim} wide, {budget}{held}",
            f"options: {' '.join(options)}",
            *([f"frequencies: {plan.frequencies}"] if plan.frequencies else []),
        )
        for line in textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    ]


def _rows(plan: Plan) -> Iterator[tuple[str, ...]]:
    """Give a line for everything a feature holds, and then one for each table that several features share."""
    for feature in plan.features:
        first = (feature.name, f"{feature.ids:,}")
        for line in _held(plan, feature):
            yield (*first, *line)
            first = ("", "")
    for table in plan.tables:
        if len(table.features) > 1:
            shared = f"shared by {len(table.features)}"
            yield (shared, "", table.name, f"{table.rows:,}", f"{table.width:,}", f"{table.bytes:,}")


def _held(plan: Plan, feature: PlannedFeature) -> Iterator[tuple[str, ...]]:
    tables = {table.name: table for table in plan.tables}
    for name in dict.fromkeys(feature.tables):
        table, times = tables[name], feature.tables.count(name)
        called = f"{name} × {times}" if times > 1 else name
        if len(table.features) > 1:
            yield (called, "", f"{table.width:,}", "shared")
        else:
            yield (called, f"{table.rows:,}", f"{table.width:,}", f"{table.bytes:,}")
    parameters = {parameter.name: parameter for parameter in plan.parameters}
    for name in feature.parameters:
        shape = "×".join(f"{size:,}" for size in parameters[name].shape)
        yield (name, "", shape, f"{parameters[name].bytes:,}")


def _sums(plan: Plan) -> Iterator[tuple[str, ...]]:
    totals = plan.totals
    yield ("",) * len(_HEAD)
    yield ("total", f"{totals.ids:,}", "rows", f"{totals.rows:,}", "", f"{totals.rows_bytes:,}")
    if totals.parameters_bytes:
        yield ("", "", "projections", "", "", f"{totals.parameters_bytes:,}")
    if totals.constants_bytes:
        yield ("", "", "constants", "", "", f"{totals.constants_bytes:,}")
    if totals.bytes != totals.rows_bytes:
        yield ("", "", "all", "", "", f"{totals.bytes:,}")


def _summary(plan: Plan) -> list[str]:
    totals = plan.totals
    times = 1 / totals.kept
    compared = f"{times:.3g}x smaller than" if times > 1 else "as large as" if times == 1 else f"{totals.kept:.3g}x"
    learned = "training decides within the budget what is kept; shown are the most frequent ids, at full width"
    return [
        *([learned] if plan.learned else []),
        f"{totals.trained:,} parameters, of {totals.full_trained:,} in full tables",
        f"kept {totals.kept:.6g}: {format_bytes(totals.bytes)}, {compared} the full tables' "
        f"{format_bytes(totals.full_bytes)} ({totals.full_bytes:,} bytes)",
    ]


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Put cells into columns, texts left and numbers right; the two columns of text share what numbers leave."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    left = WIDTH - 2 * (len(widths) - 1) - sum(widths) + widths[_FEATURE] + widths[_HOLDS]
    widths[_FEATURE] = min(widths[_FEATURE], max(left // 3, left - widths[_HOLDS]))
    widths[_HOLDS] = min(widths[_HOLDS], left - widths[_FEATURE])
    return ["  ".join(_cell(cell, column, widths[column]) for column, cell in enumerate(row)) for row in rows]


def _cell(text: str, column: int, width: int) -> str:
    if column not in (_FEATURE, _HOLDS):
        return text.rjust(width)
    if len(text) > width:
        # Names differ at both ends: a feature's at the first, its tables' at the last.
        text = f"{text[: width - width // 2 - 1]}…{text[-(width // 2) :]}"
    return text.ljust(width)


def _shown(value: object) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value).replace(" ", "")
