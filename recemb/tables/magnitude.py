"""Magnitude pruning: train, drop the smallest rows or entries, train on with what is left.

Han, Pool, Tran & Dally, "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015, arXiv
1506.02626; the gradual schedule is that of Zhu & Gupta, "To Prune, or Not to Prune", arXiv 1710.01878. The plainest way
to prune, and on click logs a hard one to beat.

Differs from the usual code: rows and entries are really removed, and compared over all tables together; sizes count
more for frequent ids (`traffic`), since row-wise optimizers move rare rows as far as frequent ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from recemb.fusing import fused
from recemb.options import RecembError, option
from recemb.tables.base import Approximation, TableSpec
from recemb.tables.pruned import LastStage, PackedTable, PrunedConfig
from recemb.tables.pruning import PruningTable
from recemb.tables.registry import register

UNITS = ("row", "entry")
SCHEDULES = ("gradual", "oneshot")


@dataclass(kw_only=True)
class MagnitudeConfig(PrunedConfig):
    """Options of magnitude pruning."""

    stages: ClassVar[tuple[str, ...]] = ("prune", "finetune")

    unit: str = option("row", "what is dropped: row, by its L2 norm, or entry, by its size")
    schedule: str = option("gradual", "gradual: more and more while training; oneshot: all at once, after training")
    finetune_epochs: int = option(1, "passes over the training rows with what is left, at most")
    finetune_lr: float = option(0.1, "factor on all learning rates in these passes")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("unit", UNITS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in known:
                raise RecembError(f"table.{name}={getattr(self, name)} is not known; choose one of {', '.join(known)}.")
        self.check_at_least(finetune_epochs=1)
        if not 0 < self.finetune_lr < float("inf"):
            raise RecembError(f"table.finetune_lr={self.finetune_lr} must be a positive number.")

    @property
    def last_stage(self) -> LastStage:
        """Go on with the weights that are left."""
        return LastStage(restarts=False, epochs=self.finetune_epochs, lr_factor=self.finetune_lr)

    def approximate(self, specs: Sequence[TableSpec], vectors: Sequence[Tensor], seed: int = 0) -> Approximation:
        """Keep the largest rows or entries, popular ids counting more, within the budget."""
        self.check_trainable()
        structure = self.pruning_table(specs).structure(vectors)
        method = MagnitudeTable(self, specs, structure.layout(specs))
        weights = [torch.empty(table.rows, table.dim) for table in method.layout.tables]
        structure.pack_into(weights, vectors.__getitem__)
        return Approximation(method, weights, structure)

    def pruning_table(self, specs: Sequence[TableSpec]) -> "MagnitudeSearch":
        """Make the table whose small rows or entries are masked."""
        return MagnitudeSearch(self, specs)


class MagnitudeSearch(PruningTable):
    """Masks rows or entries whose size is at most the level."""

    config: MagnitudeConfig

    def __init__(self, config: MagnitudeConfig, specs: Sequence[TableSpec]) -> None:
        super().__init__(config, specs)
        self.unit = config.unit

    def gate(self, vectors: Tensor, ids: Tensor, spec: Tensor) -> Tensor:
        """Set what is small to zero, but for the unknown's row where whole rows are."""
        gate = _gate_entries if self.unit == "entry" else _gate_rows
        return gate(vectors, self.weighs(ids, spec), self.level, ids)

    def margins(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Sizes of entries, or norms of rows."""
        return self.weighed([weight.abs() if self.unit == "entry" else weight.norm(dim=1) for weight in weights])

    @property
    def settles(self) -> float:
        """Nothing is pruned in training where all is pruned at once."""
        return super().settles if self.config.schedule == "gradual" else 0.0

    def target_bytes(self, epochs: float) -> int | None:
        """Follow the schedule, or prune nothing before training is over."""
        return super().target_bytes(epochs) if self.config.schedule == "gradual" else None


@fused
def _gate_rows(vectors: Tensor, weighs: Tensor, level: Tensor, ids: Tensor) -> Tensor:
    kept = (vectors.detach().norm(dim=-1) * weighs > level) | (ids == 0)
    return vectors * kept.unsqueeze(-1)


@fused
def _gate_entries(vectors: Tensor, weighs: Tensor, level: Tensor, _: Tensor) -> Tensor:
    return vectors * (vectors.detach().abs() * weighs.unsqueeze(-1) > level)


@register(
    "magnitude",
    MagnitudeConfig,
    summary="the smallest rows or entries of a trained table go, the rest is trained on",
    paper="Han et al., Learning both Weights and Connections, NeurIPS 2015, arXiv 1506.02626",
)
class MagnitudeTable(PackedTable):
    """The packed table that magnitude pruning ends in."""
