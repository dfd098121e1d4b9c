"""The hashing trick: a table of M rows, id → hash(id) mod M.

Weinberger, Dasgupta, Langford, Smola & Attenberg, "Feature Hashing for Large Scale Multitask Learning", ICML 2009,
arXiv 0902.2206. One table per feature, rows in proportion to the feature's number of ids, the usual baseline of the
compression literature.

Differs from the usual code: tables of at most `threshold` ids stay whole, since hashing them saves next to nothing (0
restores the plain baseline); the hash is salted by the table's name, not by its position.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from recemb.hashing import KEEPS_IDS, hash_or_keep, salt_of
from recemb.options import option
from recemb.tables.base import CompressedTable, Layout, TableConfig, TableSpec
from recemb.tables.registry import register
from recemb.tables.sizing import fit_rows


@dataclass(kw_only=True)
class HashingConfig(TableConfig):
    """Options of the hashing trick."""

    rows: int | None = option(None, "rows of all hashed tables together; as many as ids when not given")
    threshold: int = option(200, "tables of at most this many ids stay whole; a budget may lower it")

    def __post_init__(self) -> None:
        self.check_at_least(rows=1, threshold=0)

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
            tables=[spec.physical(count, spec.embedding_dim) for spec, count in zip(specs, rows, strict=True)],
            lookups=[[index] for index in range(len(specs))],
            dims=[spec.embedding_dim for spec in specs],
            constants={}
            if all(whole)
            else {
                "rows": torch.tensor(rows),
                "salts": torch.tensor(
                    [
                        KEEPS_IDS if keeps_all else salt_of(spec.name)
                        for spec, keeps_all in zip(specs, whole, strict=True)
                    ]
                ),
            },
        )

    def fit(self, specs: Sequence[TableSpec], budget_bytes: int) -> Self:
        """Give the hashed tables what the whole ones leave."""
        most = sum(spec.num_embeddings for spec in specs)
        return fit_rows(self, specs, budget_bytes, most, "table=hashing")


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
        return hash_or_keep(ids, self.salts[lookup], self.rows[lookup])
