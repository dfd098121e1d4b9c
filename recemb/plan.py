"""What a method holds for a data set and a budget, worked out without allocating any table."""

import dataclasses
from collections.abc import Sequence

from recemb.budget import parse_budget
from recemb.datasets import Feature
from recemb.models.base import ModelConfig
from recemb.options import RecembError
from recemb.tables.base import TableConfig, TableSpec, total_full_bytes


def table_specs(features: Sequence[Feature], model: ModelConfig) -> list[TableSpec]:
    """Describe one logical table for each categorical feature, of the width and start that the model asks for."""
    return [
        TableSpec(
            name=feature.name,
            num_embeddings=feature.num_embeddings,
            embedding_dim=model.embedding_dim,
            counts=feature.counts,
            max_length=getattr(feature, "max_length", 1),
            init_std=model.init_std,
            raw_ids=getattr(feature, "raw", False),
        )
        for feature in features
    ]


def sized(table: TableConfig, budget: str | int | float | None, specs: Sequence[TableSpec]) -> TableConfig:
    """Size a table method for a budget, or leave it as configured where there is none.

    Raises:
        RecembError: the budget cannot be met, or the method's own options say already how large the tables are.
    """
    if budget is None:
        return table
    for size in dataclasses.fields(table):
        # Sizes are the options whose default is None.
        if size.default is None and getattr(table, size.name) is not None:
            raise RecembError(
                f"budget={budget} and table.{size.name}={getattr(table, size.name)} both say how large "
                "the tables are; give one of them."
            )
    return table.fit(specs, parse_budget(budget, total_full_bytes(specs)))
