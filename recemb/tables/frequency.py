"""Keep the rows of the most frequent ids; all other ids of a feature share one row.

The baseline that a cleverer method has to beat: on real click logs most distinct values are seen once or twice, so
dropping their rows costs little and often regularises. Also known as frequency capping or minimum-count filtering.
The ids to keep are chosen over all tables together, so a row goes where it is used most.
"""

import bisect
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from recemb.budget import largest_within
from recemb.options import option
from recemb.tables.base import Approximation, CompressedTable, Layout, TableConfig, TableSpec
from recemb.tables.projection import with_shared_row
from recemb.tables.registry import register


@dataclass(kw_only=True)
class FrequencyConfig(TableConfig):
    """Options of frequency truncation."""

    keep: int | None = option(None, "ids that keep a row of their own, over all tables; all of them when not given")

    def __post_init__(self) -> None:
        self.check_at_least(keep=0)

    def layout(self, specs: Sequence[TableSpec]) -> Layout:
        """Hold one row for out-of-vocabulary and rare ids (row 0) and one for each kept id."""
        candidates = sum(spec.num_embeddings - 1 for spec in specs)
        kept = most_frequent(specs, candidates if self.keep is None else min(self.keep, candidates))
        return Layout(
            tables=[
                spec.physical(1 + kept_ids, spec.embedding_dim) for spec, kept_ids in zip(specs, kept, strict=True)
            ],
            lookups=[[index] for index in range(len(specs))],
            dims=[spec.embedding_dim for spec in specs],
            constants={} if sum(kept) == candidates else {"rows": torch.tensor([1 + count for count in kept])},
        )

    def fit(self, specs: Sequence[TableSpec], budget_bytes: int) -> Self:
        """Keep as many ids as the budget has rows for."""

        def bytes_at(keep: int) -> int:
            return dataclasses.replace(self, keep=keep).layout(specs).serving_bytes

        everything = dataclasses.replace(self, keep=None)
        if everything.layout(specs).serving_bytes <= budget_bytes:
            return everything
        candidates = sum(spec.num_embeddings - 1 for spec in specs)
        return dataclasses.replace(self, keep=largest_within(budget_bytes, bytes_at, 0, candidates, "table=frequency"))

    def approximate(self, specs: Sequence[TableSpec], vectors: Sequence[Tensor], seed: int = 0) -> Approximation:
        """Keep the rows of kept ids; the shared row is the mean of those that share it."""
        method = FrequencyTable(self, specs)
        tables = zip(specs, vectors, method.layout.tables, strict=True)
        rows = [with_shared_row(vector, spec.popularity, table.rows) for spec, vector, table in tables]
        return Approximation(method, rows)


def most_frequent(specs: Sequence[TableSpec], keep: int) -> list[int]:
    """Choose how many ids of each table belong to the `keep` most frequent of all tables.

    Ids are numbered by descending frequency, so the answer per table is a count. Equal frequencies are taken from the
    tables in turn. Where some table's frequencies are unknown, every table keeps equally many ids.

    Returns:
        For each table the number of kept ids, id 0 not counted; they add up to `keep`.
    """
    sizes = [spec.num_embeddings - 1 for spec in specs]
    counts = [spec.counts[1:].numpy() for spec in specs if spec.counts is not None]
    if len(counts) < len(specs):
        counts = []

    def seen_at_least(count: int) -> list[int]:
        if not counts:  # without counts the rank is all that is known: rank r stands for count -r
            return [min(size, -count) for size in sizes]
        return [_seen_at_least(count, seen) for seen in counts]

    low = 0 if counts else -max(sizes)
    high = 1 + max((int(seen[0]) for seen in counts if len(seen)), default=0)
    # The smallest count at which no more than `keep` ids are left; the next lower count is the one with ties.
    while low < high:
        middle = (low + high) // 2
        if sum(seen_at_least(middle)) <= keep:
            high = middle
        else:
            low = middle + 1
    kept = seen_at_least(low)
    tied = [more - now for more, now in zip(seen_at_least(low - 1), kept, strict=True)]
    left = keep - sum(kept)
    for index in sorted(range(len(specs)), key=tied.__getitem__):
        tables_left = sum(1 for ties in tied if ties > 0)
        if tied[index] == 0 or left == 0:
            continue
        taken = min(tied[index], -(-left // tables_left))
        kept[index] += taken
        left -= taken
        tied[index] = 0
    return kept


def _seen_at_least(count: int, descending: np.ndarray) -> int:
    """How many of these descending counts are at least `count`; bisects in place, the counts of a table being many."""
    return bisect.bisect_right(range(len(descending)), -count, key=lambda rank: -int(descending[rank]))


@register("frequency", FrequencyConfig, summary="the most frequent ids keep their rows, all others share one row")
class FrequencyTable(CompressedTable):
    """Sends ids past the last kept one to row 0, the row of out-of-vocabulary values."""

    rows: Tensor

    def remap(self, ids: Tensor, lookup: Tensor) -> Tensor:
        """Kept ids keep their number, all others become 0."""
        if not self.layout.constants:
            return ids
        return torch.where(ids < self.rows[lookup], ids, 0)
