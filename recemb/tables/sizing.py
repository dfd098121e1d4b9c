"""What several methods share when they choose sizes: small tables stay whole, the others get the rows that are left."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from recemb.budget import largest_within
from recemb.tables.base import TableConfig, TableSpec

_Config = TypeVar("_Config", bound=TableConfig)


def fit_rows(config: _Config, specs: Sequence[TableSpec], budget_bytes: int, most: int, what: str) -> _Config:
    """Choose the `rows` and the `threshold` of a config for a budget.

    Tables of at most `threshold` ids stay whole while they take no more than half of the budget; where they would take
    more, the threshold is lowered.

    Args:
        config: has the options `rows`, which sizes what is compressed, None for nothing, and `threshold`.
        specs: the logical tables.
        budget_bytes: the budget, in bytes.
        most: the largest `rows` that makes sense.
        what: the method, for the error.

    Returns:
        A copy with both set; with `rows` None where the budget pays for whole tables.

    Raises:
        RecembError: no rows fit; the sentence names the least possible budget.
    """

    def with_options(**options: Any) -> _Config:
        return dataclasses.replace(config, **options)

    whole = with_options(rows=None)
    if whole.layout(specs).serving_bytes <= budget_bytes:
        return whole

    def bytes_at(rows: int, threshold: int) -> int:
        return with_options(rows=rows, threshold=threshold).layout(specs).serving_bytes

    wanted: int = config.threshold  # type: ignore[attr-defined]
    threshold = _affordable_threshold(specs, wanted, budget_bytes, lambda t: bytes_at(1, t))
    rows = largest_within(budget_bytes, lambda n: bytes_at(n, threshold), 1, most, what)
    return with_options(rows=rows, threshold=threshold)


def _affordable_threshold(
    specs: Sequence[TableSpec], threshold: int, budget_bytes: int, least_bytes: Callable[[int], int]
) -> int:
    """Lower a threshold, below which tables stay whole, until a budget can pay for them.

    Tables of a few ids cost next to nothing whole, and every id of theirs is seen often. Whole tables may take up to
    half of the budget, and the others must fit beside them.

    Args:
        specs: the logical tables.
        threshold: tables of at most this many ids should stay whole.
        budget_bytes: the budget, in bytes.
        least_bytes: the fewest serving bytes at a threshold.

    Returns:
        The largest threshold, at most the given one, that fits; 0 where none does.
    """
    sizes = sorted({spec.num_embeddings for spec in specs if spec.num_embeddings <= threshold}, reverse=True)
    for candidate in [threshold, *sizes[1:]]:
        whole = sum(spec.full_bytes for spec in specs if spec.num_embeddings <= candidate)
        if 2 * whole <= budget_bytes and least_bytes(candidate) <= budget_bytes:
            return candidate
    return 0


def smallest_first(specs: Sequence[TableSpec]) -> list[int]:
    """Order tables by their number of ids; the order in which a size that tables have in whole steps is raised."""
    return sorted(range(len(specs)), key=lambda index: specs[index].num_embeddings)


def running_ids(specs: Sequence[TableSpec]) -> list[int]:
    """Ids of the smallest table, of the two smallest, ..."""
    return list(itertools.accumulate(specs[index].num_embeddings for index in smallest_first(specs)))


def fit_table_by_table(
    config: _Config, size: str, specs: Sequence[TableSpec], budget_bytes: int, last: int, what: str
) -> _Config:
    """Raise a size as far as a budget allows, by one for one table after the other, smallest first.

    Args:
        config: has the option `size`, None for whole tables; 3.4 gives 4 to the smallest tables, to 40 % of the ids.
        size: its name.
        specs: the logical tables.
        budget_bytes: the budget, in bytes.
        last: the most that the size is raised above 1, in tables that are given one more.
        what: the method, for the error.

    Returns:
        A copy with the size set; None where the budget pays for whole tables.

    Raises:
        RecembError: not even 1 fits; the sentence names the least possible budget.
    """
    whole = dataclasses.replace(config, **{size: None})
    if whole.layout(specs).serving_bytes <= budget_bytes:
        return whole
    total = sum(spec.num_embeddings for spec in specs)
    # Half an id more than the tables that shall have one more, so that rounding cannot leave one out.
    shares = [0.0, *((ids + 0.5) / total for ids in running_ids(specs)[:-1])]

    def sized(step: int) -> _Config:
        return dataclasses.replace(config, **{size: 1 + step // len(specs) + shares[step % len(specs)]})

    return sized(largest_within(budget_bytes, lambda n: sized(n).layout(specs).serving_bytes, 0, last, what))
