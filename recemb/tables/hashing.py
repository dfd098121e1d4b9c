"""The hashing trick: a table of M rows, id → hash(id) mod M.

Weinberger, Dasgupta, Langford, Smola & Attenberg, "Feature Hashing for Large Scale Multitask Learning", ICML 2009,
arXiv 0902.2206. One table per feature, rows in proportion to the feature's number of ids, the usual baseline of the
compression literature.

Differs from the usual code: tables of at most `threshold` ids stay whole, since hashing them saves next to nothing (0
restores the plain baseline); the hash is salted by the table's name, not by its position.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from recemb.budget import largest_within
from recemb.hashing import hash_to_rows, salt_of
from recemb.options import RecembError, option
from recemb.tables.base import CompressedTable, Layout, PhysicalTable, TableConfig, TableSpec
from recemb.tables.registry import register
from recemb.tables.sizing import affordable_threshold


@dataclass(kw_only=True)
class HashingConfig(TableConfig):
    """Options of the hashing trick."""

    rows: int | None = option(None, "rows of all hashed tables together; as many as ids when not given")
    threshold: int = option(200, "tables of at most this many ids stay whole; a budget may lower it")

    def __post_init__(self) -> None:
        if self.rows is not None and self.rows < 1:
            raise RecembError(f"table.rows is {self.rows}; it must be at least 1.")
        if self.threshold < 0:
            raise RecembError(f"table.threshold is {self.threshold}; it must be at least 0.")

    def rows_of(self, specs: Sequence[TableSpec]) -> list[int]:
        """Rows of each table: whole where small, else in proportion to its number of ids, at least one."""
        hashed_ids = sum(spec.num_embeddings for spec in specs if spec.num_embeddings > self.threshold)
        rows = hashed_ids if self.rows is None else min(self.rows, hashed_ids)
        return [
            spec.num_embeddings
            if spec.num_embeddings <= self.threshold
            else max(1, spec.num_embeddings * rows // hashed_ids)
            for spec in specs
        ]

    def layout(self, specs: Sequence[TableSpec]) -> Layout:
        """Hold a table of M rows for each logical table; constants are M and the hash's salt."""
        rows = self.rows_of(specs)
        whole = [count == spec.num_embeddings and not spec.raw_ids for spec, count in zip(specs, rows, strict=True)]
        return Layout(
            tables=[
                PhysicalTable(spec.name, count, spec.embedding_dim, spec.init_std)
                for spec, count in zip(specs, rows, strict=True)
            ],
            lookups=[[index] for index in range(len(specs))],
            dims=[spec.embedding_dim for spec in specs],
            constants={}
            if all(whole)
            else {
                "rows": torch.tensor(rows),
                # A whole table is looked up by the id itself, which a salt of 0 stands for.
                "salts": torch.tensor(
                    [0 if keeps_all else salt_of(spec.name) for spec, keeps_all in zip(specs, whole, strict=True)]
                ),
            },
        )

    def fit(self, specs: Sequence[TableSpec], budget_bytes: int) -> Self:
        """Give the hashed tables what the whole ones leave.

        Whole tables may take up to half of the budget; where they would take more, the threshold is lowered.
        """
        whole = dataclasses.replace(self, rows=None)
        if whole.layout(specs).serving_bytes <= budget_bytes:
            return whole

        def bytes_at(rows: int, threshold: int) -> int:
            return dataclasses.replace(self, rows=rows, threshold=threshold).layout(specs).serving_bytes

        threshold = affordable_threshold(specs, self.threshold, budget_bytes, lambda t: bytes_at(1, t))
        hashed_ids = max(1, sum(spec.num_embeddings for spec in specs if spec.num_embeddings > threshold))
        rows = largest_within(budget_bytes, lambda n: bytes_at(n, threshold), 1, hashed_ids, "table=hashing")
        return dataclasses.replace(self, rows=rows, threshold=threshold)


@register(
    "hashing",
    HashingConfig,
    summary="ids share rows by hash, one table per feature",
    paper="Weinberger et al., Feature Hashing for Large Scale Multitask Learning, ICML 2009, arXiv 0902.2206",
)
class HashingTable(CompressedTable):
    """Looks up row hash(id) mod M."""

    takes_raw_ids = True

    rows: Tensor
    salts: Tensor

    def remap(self, ids: Tensor, lookup: Tensor) -> Tensor:
        """Hash the ids of hashed tables; keep those of whole tables."""
        if not self.layout.constants:
            return ids
        salts = self.salts[lookup]
        return torch.where(salts == 0, ids, hash_to_rows(ids, salts, self.rows[lookup]))
