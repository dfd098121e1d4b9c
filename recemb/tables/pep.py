"""PEP: every entry is shrunk by a learned soft threshold, and what ends at zero is dropped.

Liu, Gao, Chen, Jin & Li, "Learnable Embedding Sizes for Recommender Systems", ICLR 2021, arXiv 2101.07577: a vector's
entries enter the model as sign(v) relu(|v| - sigmoid(s)), s learned together with v; once enough entries are zero,
those are fixed, and the others are trained again from where they started.

Differs from the paper: it ends in a packed table, each row holding only the entries it keeps, bits that say which and
its place counted in its bytes. A budget says how many those are: a level is added to all s and raised over the first
passes until what is kept takes the budget's bytes; the learned s say how features or dimensions differ from it. (Public
code starts s at -150, where the gradient of the sigmoid is 0 in float32.) A row's number of entries is rounded up to
1, 2, 3, 4, 6, 8, 12, 16, ..., its next largest entries filling the room.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from recemb.fusing import fused
from recemb.options import RecembError, option
from recemb.tables.base import TableSpec
from recemb.tables.pruned import PackedTable, PrunedConfig
from recemb.tables.pruning import PruningTable
from recemb.tables.registry import register

PER = ("global", "feature", "dimension", "feature_dimension")
_ALMOST_ONE = 1 - 1e-6


@dataclass(kw_only=True)
class PepConfig(PrunedConfig):
    """Options of PEP."""

    stages: ClassVar[tuple[str, ...]] = ("prune", "retrain")

    per: str = option("feature", "what has a threshold of its own: global, feature, dimension or feature_dimension")
    threshold_lr: float = option(1e-2, "learning rate of the thresholds (Adam)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per not in PER:
            raise RecembError(f"table.per={self.per} is not known; choose one of {', '.join(PER)}.")
        if not 0 <= self.threshold_lr < float("inf"):
            raise RecembError(f"table.threshold_lr={self.threshold_lr} must be zero or a positive number.")

    def pruning_table(self, specs: Sequence[TableSpec]) -> "PepSearch":
        """Make the table with soft thresholds."""
        return PepSearch(self, specs)


class PepSearch(PruningTable):
    """Shrinks every entry by sigmoid(s + level)."""

    config: PepConfig
    unit = "entry"

    def __init__(self, config: PepConfig, specs: Sequence[TableSpec]) -> None:
        super().__init__(config, specs)
        features = len(specs) if config.per.startswith("feature") else 1
        self.thresholds = nn.Parameter(torch.zeros(features, self.dim if config.per.endswith("dimension") else 1))

    def gate(self, vectors: Tensor, ids: Tensor, spec: Tensor) -> Tensor:
        """Shrink all entries, those of the unknown too."""
        at = spec if len(self.thresholds) > 1 else torch.zeros_like(spec)
        return _shrink(vectors, self.thresholds[at], self.level, self.weighs(ids, spec))

    def margins(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """The threshold at which an entry would end at zero, over its s."""
        rows = self.thresholds.expand(len(self.specs), -1)
        sizes = self.weighed([weight.abs() for weight in weights])
        return [torch.logit(size.clamp(max=_ALMOST_ONE)) - row for size, row in zip(sizes, rows, strict=True)]

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam on the thresholds."""
        return [torch.optim.Adam([self.thresholds], lr=self.config.threshold_lr)]


@fused
def _shrink(vectors: Tensor, thresholds: Tensor, level: Tensor, weighs: Tensor) -> Tensor:
    by = torch.sigmoid(thresholds + level) / weighs.unsqueeze(-1)
    return vectors.sign() * torch.relu(vectors.abs() - by)


@register(
    "pep",
    PepConfig,
    summary="single entries go that a learned soft threshold shrinks to zero",
    paper="Liu et al., Learnable Embedding Sizes, ICLR 2021, arXiv 2101.07577",
)
class PepTable(PackedTable):
    """The packed table that PEP ends in."""
