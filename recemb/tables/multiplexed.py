"""Feature multiplexing: one table of rows serves all features, each looking its ids up by hashes of its own.

Coleman et al., "Unified Embedding: Battle-Tested Feature Representations for Web-Scale ML Systems", NeurIPS 2023, arXiv
2305.12102. Feature f has c_f probes; probe j reads row hash(id; salt of (f, j)) mod M of the shared table, which is w
wide, and the c_f rows side by side are the vector, c_f w wide. Features get wider vectors by more probes. Ids of one
feature collide with those of all others, which a model that weighs each feature's vector by itself (dcn_v2) learns to
tell apart: the errors of different features are nearly orthogonal (section 4 of the paper). Models that only multiply
vectors with each other (dlrm) cannot, and the paper's analysis does not cover them.

No vocabulary is needed: raw 64-bit integers are valid ids.

Differs from the usual code: hashes are salted by the feature's name, so that adding or removing a feature moves nobody
else's rows; tables of at most `threshold` ids keep rows of their own (0 restores the paper's form).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from recemb.hashing import KEEPS_IDS, hash_or_keep, salt_of
from recemb.options import RecembError, option
from recemb.tables.base import CompressedTable, Layout, TableConfig, TableSpec
from recemb.tables.registry import register
from recemb.tables.sizing import fit_rows

SHARED = "shared"
"""Name of the table that all features share."""


@dataclass(kw_only=True)
class MultiplexedConfig(TableConfig):
    """Options of the multiplexed table."""

    rows: int | None = option(None, "M, rows of the shared table; when not given every table keeps its own rows")
    probes: int = option(1, "c, rows that an id reads; each is embedding_dim / probes wide")
    probes_of: dict[str, int] = option({}, "probes of single features, for wider or narrower vectors, e.g. {C1: 2}")
    threshold: int = option(200, "tables of at most this many ids keep their own rows; a budget may lower it")

    def __post_init__(self) -> None:
        if self.rows is not None and not 1 <= self.rows < 2**63:
            raise RecembError(f"table.rows is {self.rows}; it must be at least 1 and below 2**63.")
        self.check_at_least(threshold=0, probes=1)
        for name, probes in self.probes_of.items():
            if probes < 1:
                raise RecembError(f"table.probes_of.{name} is {probes}; it must be at least 1.")

    def layout(self, specs: Sequence[TableSpec]) -> Layout:
        """Hold the shared table, and one for each logical table that does not take part."""
        width = self._width(specs)
        probes = [self.probes_of.get(spec.name, self.probes) for spec in specs]
        shares = [self._shares(spec) for spec in specs]
        dims = [
            width * count if share else spec.embedding_dim * count // self.probes
            for spec, count, share in zip(specs, probes, shares, strict=True)
        ]
        tables = [specs[shares.index(True)].physical(self._rows(specs), width, name=SHARED)] if any(shares) else []
        lookups, salts = [], []
        for spec, count, share in zip(specs, probes, shares, strict=True):
            if share:
                lookups.append([0] * count)
                salts += [salt_of(spec.name, probe) for probe in range(count)]
            else:
                lookups.append([len(tables)])
                salts.append(KEEPS_IDS)
                tables.append(spec.physical(spec.num_embeddings, dims[len(lookups) - 1]))
        return Layout(
            tables=tables,
            lookups=lookups,
            dims=dims,
            constants={"salts": torch.tensor(salts), "rows": torch.tensor([self._rows(specs)])} if any(shares) else {},
        )

    def fit(self, specs: Sequence[TableSpec], budget_bytes: int) -> Self:
        """Give the shared table what the tables beside it leave."""
        most = sum(spec.num_embeddings * self.probes_of.get(spec.name, self.probes) for spec in specs)
        return fit_rows(self, specs, budget_bytes, most, "table=multiplexed")

    def _shares(self, spec: TableSpec) -> bool:
        return spec.raw_ids or (self.rows is not None and spec.num_embeddings > self.threshold)

    def _rows(self, specs: Sequence[TableSpec]) -> int:
        # Without a number of rows only raw ids share, and get what a vocabulary's full tables would have.
        return self.rows or max(1, sum(spec.num_embeddings for spec in specs if spec.raw_ids))

    def _width(self, specs: Sequence[TableSpec]) -> int:
        """Give w, the width of a row of the shared table."""
        sharing = [spec for spec in specs if self._shares(spec)] or list(specs[:1])
        for what, values in (
            ("embedding_dim", {spec.embedding_dim for spec in sharing}),
            ("init_std", {spec.init_std for spec in sharing}),
        ):
            if len(values) > 1:
                raise RecembError(
                    f"table=multiplexed shares rows of one width and one start, and the tables ask for {what} "
                    f"{sorted(values)}; give all of them one, and wider vectors by table.probes_of."
                )
        dim = sharing[0].embedding_dim
        if dim % self.probes:
            raise RecembError(
                f"table.probes={self.probes} rows side by side cannot make a vector {dim} wide (model.embedding_dim); "
                "take a number of probes that divides it."
            )
        known = {spec.name for spec in specs}
        for name in self.probes_of:
            if name not in known:
                raise RecembError(f"table.probes_of names {name}, and there is no such table: {', '.join(known)}.")
        if any(spec.name == SHARED for spec in specs):
            raise RecembError(f"a table cannot be named {SHARED!r} beside table=multiplexed, whose own name that is.")
        return dim // self.probes


@register(
    "multiplexed",
    MultiplexedConfig,
    summary="all features share one table, each under its own hashes",
    paper="Coleman et al., Unified Embedding, NeurIPS 2023, arXiv 2305.12102",
)
class MultiplexedTable(CompressedTable):
    """Looks up row hash(id; feature, probe) mod M of the shared table; probes stand side by side."""

    takes_raw_ids = True

    rows: Tensor
    salts: Tensor

    def remap(self, ids: Tensor, lookup: Tensor) -> Tensor:
        """Hash the ids of features that share; keep those of own tables."""
        if not self.layout.constants:
            return ids
        return hash_or_keep(ids, self.salts[lookup], self.rows)
