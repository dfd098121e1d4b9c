"""What the pruned methods share: options, what a budget means, and the packed table that is served.

Which ids keep a row, and how much of it, is learned in training (`recemb.tables.pruning`, `recemb.training.stages`) and
ends in a `Structure`. A packed table holds its rows and nothing else. Before anything is learned a budget stands for
the most frequent ids: that is what a plan shows, and what a collection made from the config alone holds.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from recemb.budget import largest_within
from recemb.fusing import fused
from recemb.options import RecembError, option
from recemb.tables.base import CompressedTable, Layout, TableConfig, TableSpec, total_held_bytes
from recemb.tables.blocks import block_of
from recemb.tables.frequency import most_frequent
from recemb.tables.id_map import find, joined_keys, longest_bucket, split_keys
from recemb.tables.structure import Structure, unpack_bits

if TYPE_CHECKING:
    from recemb.tables.pruning import PruningTable

PRUNED = ("zero", "shared")


class LastStage(NamedTuple):
    """How the packed table is trained.

    Attributes:
        restarts: from the weights that the first stage started from, with the trainer's own options; else on from the
            weights that it ended with,
        epochs: for so many passes over the training rows at most,
        lr_factor: all learning rates multiplied by this.
    """

    restarts: bool
    epochs: int
    lr_factor: float


@dataclass(kw_only=True)
class PrunedConfig(TableConfig):
    """Options of every pruned method."""

    size_options: ClassVar[tuple[str, ...]] = ("budget_bytes",)
    learns: ClassVar[bool] = True
    stages: ClassVar[tuple[str, ...]] = ()
    """What training goes through, in order; the last stage trains the packed table."""
    budget_bytes: int | None = option(None, "serving bytes to keep")
    pruned: str = option(
        "zero", "what ids without a row read once packed: zero (the zero vector) or shared (the unknown's row)"
    )
    traffic: float = option(
        0.5, "power of an id's training frequency that what it is worth is multiplied with; 0: as published, size alone"
    )
    ramp: float = option(1.0, "passes over the training rows in which pruning goes from nothing to the budget")

    def __post_init__(self) -> None:
        self.check_at_least(budget_bytes=1)
        for name in ("ramp", "traffic"):
            if not 0 <= getattr(self, name) < math.inf:
                raise RecembError(f"table.{name}={getattr(self, name)} must be zero or a positive number.")
        if self.pruned not in PRUNED:
            raise RecembError(f"table.pruned={self.pruned} is not known; choose one of {', '.join(PRUNED)}.")

    @property
    def last_stage(self) -> LastStage:
        """How the packed table is trained: as any other, from the weights that the first stage started from."""
        return LastStage(restarts=True, epochs=1, lr_factor=1.0)

    def pruning_table(self, specs: Sequence[TableSpec]) -> "PruningTable":
        """Make the table that the first stage trains: every id's row, masked more and more."""
        raise NotImplementedError(f"{type(self).__name__} must say how it learns what to keep.")

    def check_trainable(self) -> None:
        """Raise where nothing says how much to prune."""
        if self.budget_bytes is None:
            raise RecembError("a pruned table needs a budget, since nothing else says how much to prune: budget=1/8.")

    def planned(self, specs: Sequence[TableSpec]) -> Structure:
        """Give the structure that a budget stands for before training: rows of the most frequent ids, of full width."""
        dims = [spec.embedding_dim for spec in specs]
        everything = Structure(kept=[range(spec.num_embeddings) for spec in specs], widths=dims)
        if self.budget_bytes is None or total_held_bytes(specs) <= self.budget_bytes:
            return everything

        def of(keep: int, width: int) -> Structure:
            kept = [range(1 + count) for count in most_frequent(specs, keep)]
            return Structure(kept=kept, widths=[min(width, dim) for dim in dims])

        def bytes_of(structure: Structure) -> int:
            return structure.layout(specs).serving_bytes

        budget, candidates = self.budget_bytes, sum(spec.num_embeddings - 1 for spec in specs)
        width = largest_within(budget, lambda w: bytes_of(of(0, w)), 1, max(dims), "a pruned table")
        return of(largest_within(budget, lambda n: bytes_of(of(n, width)), 0, candidates, "a pruned table"), width)

    def layout(self, specs: Sequence[TableSpec]) -> Layout:
        """Hold what the budget stands for before training."""
        return self.planned(specs).layout(specs)

    def fit(self, specs: Sequence[TableSpec], budget_bytes: int) -> Self:
        """Remember the budget, which training spends on the rows that it finds worth it."""
        fitted = dataclasses.replace(self, budget_bytes=budget_bytes)
        fitted.planned(specs)  # says so if there is no such table
        return fitted


class PackedTable(CompressedTable):
    """Looks ids up among the rows that are kept.

    Args:
        config: the options.
        specs: the logical tables.
        layout: of the structure that is kept; what the config's budget stands for when not given.
    """

    before: Tensor
    first: Tensor
    rows: Tensor
    places: Tensor
    starts: Tensor
    entries: Tensor
    keys: Tensor

    def __init__(self, config: PrunedConfig, specs: Sequence[TableSpec], layout: Layout | None = None) -> None:
        super().__init__(config, specs, layout)
        self._longest = longest_bucket(self.layout.constants)
        self._has_map = "before" in self.layout.constants
        self._prunes = self._has_map or "rows" in self.layout.constants
        if "keys" in self._buffers:
            self.keys = split_keys(self.keys)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if "keys" in self._buffers:
            destination[f"{prefix}keys"] = joined_keys(destination[f"{prefix}keys"])

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        if "keys" in self._buffers and f"{prefix}keys" in state_dict:
            state_dict[f"{prefix}keys"] = split_keys(state_dict[f"{prefix}keys"])
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @property
    def concatenates(self) -> bool:
        """Rows of full width are vectors."""
        return all(table.dim == dim for table, dim in zip(self.layout.tables, self.layout.dims, strict=False))

    @property
    def drops_ids(self) -> bool:
        """Ids without a row are left out of their bags, unless they share the unknown's."""
        return self._prunes and self.config.pruned == "zero"

    def remap(self, ids: Tensor, lookup: Tensor) -> Tensor:
        """Find the row of each id within its table."""
        if not self._prunes:
            return ids
        missing = -1 if self.drops_ids else 0
        if not self._has_map:
            return torch.where(ids < self.rows[lookup], ids, missing)
        number, kept = self._find(ids, lookup)
        return torch.where(kept, number - self.first[lookup], missing)

    def combine(self, rows: list[Tensor], spec_index: int) -> Tensor:
        """Put zeros in the place of the floats that no row of the table keeps."""
        return F.pad(rows[0], (0, self.layout.dims[spec_index] - rows[0].shape[1]))

    def route(self, ids: Tensor, spec: Tensor) -> tuple[Tensor, Tensor]:
        """Find the row of each id among those that keep as many entries."""
        number, kept = self.first[spec] + ids, None
        if self._has_map:
            number, kept = self._find(ids, spec)
        elif self._prunes:
            kept = ids < self.rows[spec]
        if kept is not None:
            number = torch.where(kept, number, self.first[spec])  # the unknown's, the first row of each table
        place = self.places[number].long()
        table = block_of(self.starts, place)
        row = place - self.starts[table]
        return table, row if kept is None or not self.drops_ids else torch.where(kept, row, -1)

    def widen(self, rows: Tensor, table: int, numbers: Tensor) -> Tensor:
        """Put each row's floats where they belong."""
        dim = self.layout.dims[0]
        if rows.shape[1] == dim:
            return rows
        first = sum(one.rows for one in self.layout.tables[:table])
        return _spread(rows, self.entries[first + numbers], dim)

    @property
    def widens_linearly(self) -> bool:
        """What is not kept is zero."""
        return True

    def matrix(self, table: int) -> Tensor | None:
        """None: there are only zeros."""
        return None

    def bits(self, rows: Tensor, table: Tensor) -> Tensor | None:
        """Where single entries are kept, the row's bits; rows of full width, which come last, have none."""
        if not self.layout.alternatives or not len(self.entries):
            return None
        return self.entries[(self.starts[table] + rows).clamp(max=len(self.entries) - 1)]

    def _find(self, ids: Tensor, spec: Tensor) -> tuple[Tensor, Tensor]:
        """Number kept ids over all tables; the order of lookups is that of the tables."""
        return find(self._buffers, ids + self.before[spec], self._longest)  # type: ignore[arg-type]


@fused
def _spread(rows: Tensor, bits: Tensor, dim: int) -> Tensor:
    """Put the floats of rows (n, d) where bits (n, ceil(D / 8)) say, and zeros elsewhere: (n, D)."""
    mask = unpack_bits(bits, dim)
    return rows.gather(1, (mask.cumsum(1) - 1).clamp(min=0)) * mask
