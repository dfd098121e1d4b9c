"""Two factors: the table E (V, D) is the product of tall rows A (V, r) and a small projection B (r, D).

Lan et al., "ALBERT: A Lite BERT for Self-supervised Learning of Language Representations", ICLR 2020, arXiv 1909.11942,
section 3.1 (factorized embedding parameterization). The plainest way to make a table smaller, and hard to beat at
moderate ratios.

Differs from the usual code: B starts with orthogonal rows, such that vectors start with the variance of a full table's;
a budget is spent column by column, so ranks of different tables may differ by one, smaller tables first; a table
that two factors would not make smaller stays whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from recemb.options import RecembError, option
from recemb.tables.base import Approximation, CompressedTable, Layout, TableConfig, TableSpec
from recemb.tables.projection import factorized, narrower, projection, widened
from recemb.tables.registry import register
from recemb.tables.sizing import fit_table_by_table, running_ids, smallest_first


@dataclass(kw_only=True)
class LowRankConfig(TableConfig):
    """Options of low-rank tables."""

    rank: float | None = option(
        None, "r, floats of an id; 3.4 gives 4 to the smallest tables, to 40 % of the ids at most, and 3 to the others"
    )

    def __post_init__(self) -> None:
        if self.rank is not None and not 1 <= self.rank < 2**31:
            raise RecembError(f"table.rank is {self.rank}; it must be at least 1.")

    def ranks_of(self, specs: Sequence[TableSpec]) -> list[int]:
        """Give the rank of each table; D stands for a whole table."""
        if self.rank is None:
            return [spec.embedding_dim for spec in specs]
        widest = max(spec.embedding_dim for spec in specs)
        if self.rank > widest:
            raise RecembError(
                f"table.rank={self.rank:g} is more than the width of the vectors, {widest} (model.embedding_dim)."
            )
        more = (self.rank - int(self.rank)) * sum(spec.num_embeddings for spec in specs)
        ranks = [0] * len(specs)
        for index, ids in zip(smallest_first(specs), running_ids(specs), strict=True):
            spec = specs[index]
            ranks[index] = narrower(spec.num_embeddings, int(self.rank) + (ids <= more), spec.embedding_dim)
        return ranks

    def layout(self, specs: Sequence[TableSpec]) -> Layout:
        """Hold the tall factor as rows, the small one as a projection."""
        ranks = self.ranks_of(specs)
        return Layout(
            tables=[spec.physical(spec.num_embeddings, rank) for spec, rank in zip(specs, ranks, strict=True)],
            lookups=[[index] for index in range(len(specs))],
            dims=[spec.embedding_dim for spec in specs],
            parameters=[
                projection(f"projection:{spec.name}", spec, index, rank)
                for index, (spec, rank) in enumerate(zip(specs, ranks, strict=True))
                if rank < spec.embedding_dim
            ],
        )

    def fit(self, specs: Sequence[TableSpec], budget_bytes: int) -> Self:
        """Take the largest ranks: one more for one table after the other, smallest first."""
        widest = max(spec.embedding_dim for spec in specs)
        return fit_table_by_table(self, "rank", specs, budget_bytes, (widest - 1) * len(specs), "table=low_rank")

    def approximate(self, specs: Sequence[TableSpec], vectors: Sequence[Tensor], seed: int = 0) -> Approximation:
        """Factorize each table by its singular values, popular ids counting more."""
        method = LowRankTable(self, specs)
        weights = []
        for spec, vector, table in zip(specs, vectors, method.layout.tables, strict=True):
            if table.dim < spec.embedding_dim:
                vector, matrix = factorized(vector, spec.popularity, table.dim)
                method.get_parameter(f"projection:{spec.name}").data.copy_(matrix)
            weights.append(vector)
        return Approximation(method, weights)


@register(
    "low_rank",
    LowRankConfig,
    summary="two factors: narrow rows and one projection per feature",
    paper="Lan et al., ALBERT, ICLR 2020, arXiv 1909.11942, section 3.1",
)
class LowRankTable(CompressedTable):
    """Looks the tall factor's row up and multiplies it by the small factor."""

    def remap(self, ids: Tensor, lookup: Tensor) -> Tensor:
        """The row of an id is the id."""
        return ids

    def combine(self, rows: list[Tensor], spec_index: int) -> Tensor:
        """Project the row, unless it is as wide as the vector."""
        return widened(rows[0], self.matrix(spec_index))

    @property
    def widens_linearly(self) -> bool:
        """Rows are multiplied with matrices."""
        return True

    def matrix(self, table: int) -> Tensor | None:
        """The small factor; None where the table is whole."""
        return self._parameters.get(f"projection:{self.specs[table].name}")
