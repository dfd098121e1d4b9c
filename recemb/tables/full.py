"""The uncompressed table, and the same table narrower.

Every other method is measured against it. With a budget below 1 the vectors themselves become narrower (`width`), and
the backbone with them, as a practitioner would do by hand.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from recemb.budget import largest_within
from recemb.options import RecembError, option
from recemb.tables.base import Approximation, CompressedTable, Layout, TableConfig, TableSpec
from recemb.tables.registry import register


@dataclass(kw_only=True)
class FullConfig(TableConfig):
    """Options of the uncompressed table."""

    width: int | None = option(None, "width of the vectors; the model's embedding_dim when not given")

    def __post_init__(self) -> None:
        self.check_at_least(width=1)

    def layout(self, specs: Sequence[TableSpec]) -> Layout:
        """Hold every id's own row."""
        for spec in specs:
            if self.width is not None and self.width > spec.embedding_dim:
                raise RecembError(
                    f"table.width={self.width} is wider than the vectors of table {spec.name}, which the model wants "
                    f"{spec.embedding_dim} wide (model.embedding_dim)."
                )
        widths = [self.width or spec.embedding_dim for spec in specs]
        return Layout(
            tables=[spec.physical(spec.num_embeddings, width) for spec, width in zip(specs, widths, strict=True)],
            lookups=[[index] for index in range(len(specs))],
            dims=widths,
        )

    def fit(self, specs: Sequence[TableSpec], budget_bytes: int) -> Self:
        """Take the widest vectors that the budget allows."""

        def bytes_at(width: int) -> int:
            return dataclasses.replace(self, width=width).layout(specs).serving_bytes

        widest = min(spec.embedding_dim for spec in specs)
        return dataclasses.replace(self, width=largest_within(budget_bytes, bytes_at, 1, widest, "table=full"))

    def approximate(self, specs: Sequence[TableSpec], vectors: Sequence[Tensor], seed: int = 0) -> Approximation:
        """Take the vectors as they are."""
        if any(width != vector.shape[1] for width, vector in zip(self.layout(specs).dims, vectors, strict=True)):
            raise RecembError(
                "table=full gets smaller by narrower vectors only, which a trained backbone cannot take; "
                "choose another precision or another table."
            )
        return Approximation(FullTable(self, specs), list(vectors))


@register("full", FullConfig, summary="every id has a row of its own; narrower vectors under a budget")
class FullTable(CompressedTable):
    """Looks ids up as they are."""

    def remap(self, ids: Tensor, lookup: Tensor) -> Tensor:
        """The row of an id is the id."""
        return ids
