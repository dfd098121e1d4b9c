"""Explains a plan: a sentence for each feature, and for the choice among tables that were trained."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from recemb.advice.record import Candidate
from recemb.budget import format_bytes
from recemb.tables.allocation import ROUNDING, Held, Worth
from recemb.tables.auto import AutoConfig
from recemb.tables.base import TableSpec

_GROUPS = 3


def explain(candidate: Candidate, specs: Sequence[TableSpec], worths: Sequence[Worth] | None) -> list[dict[str, Any]]:
    """Say of each feature what it gets, and why; see `recemb.advice.record`.

    Args:
        candidate: what is chosen.
        specs: the logical tables, of its precision.
        worths: of each, where the plan was made from them.
    """
    layout = candidate.table.layout(specs)
    sizes = layout.bytes_per_table(specs)
    found: list[dict[str, Any]] = []
    everything = sum(worth.total() for worth in worths) if worths is not None else 0.0
    for index, spec in enumerate(specs):
        share = kept = None
        if isinstance(candidate.table, AutoConfig):
            runs = candidate.table.runs(spec)
            sentence = f"{_in_words(spec, runs)}."
            if worths is not None and everything > 0:
                share, kept = worths[index].total() / everything, kept_of(worths[index], runs)
                sentence = f"{_in_words(spec, runs)}; {_worth_in_words(share, kept)}."
        else:
            tables = [layout.tables[table] for table in dict.fromkeys(layout.lookups[index])]
            shared = any(table in other for n, other in enumerate(layout.lookups) if n != index
                         for table in layout.lookups[index])  # fmt: skip
            rows = sum(table.rows for table in tables)
            what = "which are learned in training, in the place of" if candidate.table.learns else (
                "shared with other features, for" if shared else "for"
            )  # fmt: skip
            sentence = f"{rows:,} rows of {candidate.method}, {what} {spec.num_embeddings:,} ids."
        found.append({"name": spec.name, "share": share, "kept": kept, "bytes": sizes[spec.name], "sentence": sentence})
    return found


def kept_of(worth: Worth, runs: Sequence[Held]) -> float:
    """Say which share of what a table's vectors are worth its rows keep; within a block, in proportion to its ids."""
    total = worth.total()
    if total <= 0:
        return 1.0
    ends = np.concatenate([[0], worth.stops])
    summed = np.concatenate([np.zeros((1, worth.losses.shape[1])), worth.losses.cumsum(axis=0)])
    kept, start = 0.0, 0
    for run in runs:
        here = [np.interp([start, run.stop], ends, column) for column in summed.T[: run.width]]
        kept += sum(float(high - low) for low, high in here) * (1 - ROUNDING[run.precision])
        start = run.stop
    return min(kept / total, 1.0)


def _in_words(spec: TableSpec, runs: Sequence[Held]) -> str:
    """Say which ids have rows, and how many of them how wide ones."""
    last, ids = runs[-1].stop, spec.num_embeddings
    if last == 1 and ids > 1:
        return f"none of {ids:,} ids has a row but the unknown's, which all read"
    who = f"all {ids:,} ids" if last == ids else f"{last:,} of {ids:,} ids{_traffic(spec, last)}"
    alike: Counter[tuple[int, str]] = Counter()
    start = 0
    for run in runs:
        alike[run.width, run.precision] += run.stop - start
        start = run.stop
    groups = sorted(alike.items(), reverse=True)
    named = [f"{count:,} of {width} in {precision}" for (width, precision), count in groups]
    if len(named) == 1:
        (width, precision), _ = groups[0]
        rows = f"of {width} number{'s' if width > 1 else ''} in {precision}"
    elif len(named) <= _GROUPS:
        rows = ", ".join(named)
    else:
        rows = f"{named[0]} to {named[-1]}"
    rest = "" if last == ids else "; the others read the unknown's"
    return f"{who} have rows: {rows}{rest}" if len(named) > 1 else f"{who} have rows {rows}{rest}"


def _traffic(spec: TableSpec, last: int) -> str:
    if spec.counts is None or not (total := int(spec.counts.sum())):
        return ""
    return f", the most frequent with {100 * int(spec.counts[:last].sum()) / total:.0f} % of its lookups,"


def _worth_in_words(share: float, kept: float) -> str:
    of_all = "less than 0.1 %" if share < 0.001 else f"{100 * share:.1f} %"
    return f"of all features' worth it has {of_all}, and keeps {100 * kept:.1f} % of that"


def because(best: int, candidates: Sequence[Candidate], tried: Sequence[dict[str, Any]], monitor: str) -> str:
    """Say why the table of the best trial is chosen, `tried` being the trials of the candidates within the budget."""
    chosen = f"{candidates[best].method} has valid {monitor} {tried[best]['valid'][monitor]:.4f}"
    others = [
        f"{one.method} {trial['valid'][monitor]:.4f}"
        for number, (one, trial) in enumerate(zip(candidates, tried, strict=True))
        if number != best and trial["valid"]
    ]
    if not others:
        return f"{chosen}; no other table within the budget was trained."
    return f"{chosen}, the best of {len(others) + 1} tables within the budget that were trained: {'; '.join(others)}."


def sizes_in_words(ids: int, features: int, table_bytes: int, full_bytes: int) -> str:
    """Say how large tables are."""
    return (
        f"{features} features, {ids:,} ids, {format_bytes(full_bytes)} as full tables; {format_bytes(table_bytes)} as "
        f"advised, {full_bytes / table_bytes:.3g}x smaller"
    )
