"""OptEmbed: drop the ids that a model can do without, and give each feature the width it needs.

Lyu, Tang, Zhu, Guo, Zhang, Liu, Cai & Liu, "OptEmbed: Learning Optimal Embedding Table for Click-through Rate
Prediction", CIKM 2022, arXiv 2208.04482. Three stages:

1. supernet: a row is masked while its L1 norm is at most a threshold t, learned for each feature
   by SGD through a long-tailed surrogate of the step's gradient, under the penalty alpha sum exp(-t); each feature of
   each sample is cut to a random width.
2. search: with the supernet frozen, an evolutionary search over widths, one a feature, by validation AUC.
3. retrain: rows and widths fixed, from the weights that the supernet started from.

Differs from the paper: it ends in a packed table, the other rows and columns gone. A budget steers it (`mode=budget`):
one level is added to all thresholds, raised over the first passes until what is kept takes the budget's bytes, and in
the search solved anew for every candidate, so that wide rows compete with many rows for the same bytes (narrow ones
that leave bytes over with all rows kept may still win). With
`mode=paper` thresholds move by SGD alone and widths are searched for accuracy alone, whatever bytes come out. Row-wise
optimizers do not shrink the rows of unseen ids, so published settings prune next to nothing. Id 0, the unknown's, is
never dropped. In bags of several ids each id is cut to a width of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from recemb.fusing import fused
from recemb.options import RecembError, option
from recemb.search.evolution import Found, evolve
from recemb.tables.base import TableSpec
from recemb.tables.pruned import PackedTable, PrunedConfig
from recemb.tables.pruning import EntrySolver, PruningTable, RowSolver
from recemb.tables.registry import register
from recemb.tables.structure import Structure

MODES = ("budget", "paper")
PER = ("feature", "row")


@dataclass(kw_only=True)
class OptEmbedConfig(PrunedConfig):
    """Options of OptEmbed."""

    stages: ClassVar[tuple[str, ...]] = ("supernet", "search", "retrain")

    mode: str = option("budget", "budget: what is kept takes the budget's bytes; paper: thresholds by SGD alone")
    per: str = option("feature", "what has a threshold of its own: feature or row")
    alpha: float = option(1e-5, "weight of the penalty that pushes thresholds up; published: 1e-6 to 1e-4")
    threshold_lr: float = option(1e-2, "learning rate of the thresholds; published: 1e-4 to 1e-2")
    rounds: int = option(30, "rounds of the evolutionary search")
    mutants: int = option(10, "mutated candidates a round")
    crossovers: int = option(10, "crossed candidates a round")
    parents: int = option(15, "best candidates that children are made of")
    mutation: float = option(0.1, "probability that a width of a mutant is drawn anew")
    search_rows: int = option(32_768, "validation rows that candidates are judged by, at most")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in MODES:
            raise RecembError(f"table.mode={self.mode} is not known; choose one of {', '.join(MODES)}.")
        if self.per not in PER:
            raise RecembError(f"table.per={self.per} is not known; choose one of {', '.join(PER)}.")
        for name in ("alpha", "threshold_lr"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise RecembError(f"table.{name}={getattr(self, name)} must be zero or a positive number.")
        self.check_at_least(rounds=1, mutants=1, crossovers=0, parents=2, search_rows=1)
        if not 0 < self.mutation <= 1:
            raise RecembError(f"table.mutation={self.mutation} must be more than 0 and at most 1.")
        if self.mode == "paper" and self.budget_bytes is not None:
            raise RecembError("table.mode=paper has no say over bytes; leave budget= out, or take table.mode=budget.")

    def check_trainable(self) -> None:
        """Raise where a budget is missing; `mode=paper` has none."""
        if self.mode == "budget":
            super().check_trainable()

    def pruning_table(self, specs: Sequence[TableSpec]) -> "OptEmbedSupernet":
        """Make the supernet."""
        return OptEmbedSupernet(self, specs)


class OptEmbedSupernet(PruningTable):
    """Masks rows by learned thresholds and cuts vectors to random widths; evaluates at the widths of a candidate."""

    searches: ClassVar[bool] = True

    config: OptEmbedConfig
    widths: Tensor

    def __init__(self, config: OptEmbedConfig, specs: Sequence[TableSpec]) -> None:
        super().__init__(config, specs)
        sizes = [spec.num_embeddings for spec in specs]
        self.thresholds = nn.Parameter(torch.zeros(len(specs) if config.per == "feature" else sum(sizes)))
        self.register_buffer("widths", torch.full((len(specs),), self.dim), persistent=False)
        self.search_rows = config.search_rows
        children = config.mutants + config.crossovers
        self.most_candidates = max(children, len(self.start_candidates())) + children * config.rounds
        if config.mode == "paper":
            self.level.zero_()

    def gate(self, vectors: Tensor, ids: Tensor, spec: Tensor) -> Tensor:
        """Mask rows below their thresholds, and all but the first floats of vectors."""
        at = spec if self.config.per == "feature" else self.begins[spec] + ids
        widths = self.widths[spec]
        if self.training:
            widths = torch.randint_like(ids, 1, self.dim + 1)
        weighs = self.weighs(ids, spec)
        masked: Tensor = _Gate.apply(vectors, self.thresholds[at], self.level, weighs, widths, ids == 0)
        return masked

    def margins(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """L1 norms over thresholds."""
        sizes = [len(weight) for weight in weights]
        of_tables: Sequence[Tensor] = self.thresholds.split(sizes if self.config.per == "row" else 1)
        norms = self.weighed([weight.abs().sum(dim=1) for weight in weights])
        return [norm - threshold for norm, threshold in zip(norms, of_tables, strict=True)]

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Plain SGD on the thresholds."""
        return [torch.optim.SGD([self.thresholds], lr=self.config.threshold_lr)]

    def penalty(self) -> Tensor:
        """Alpha sum exp(-t)."""
        return self.config.alpha * torch.exp(-self.thresholds).sum()

    def typical_widths(self) -> list[float]:
        """The average of the random widths; without a budget rows are not reckoned with."""
        return [(self.dim + 1) / 2] * len(self.specs)

    def after_step(self, weights: Callable[[], Sequence[Tensor]], epochs: float) -> None:
        """Set the level anew once in a while; in the paper's mode, count what the thresholds prune."""
        if self.config.mode == "paper" and epochs >= self._due:
            self.kept_rows = self.solver(weights()).rows_above(0.0)
        super().after_step(weights, epochs)

    def start_candidates(self) -> list[tuple[int, ...]]:
        """Candidates that a search should know: uniform widths, and widths that fall with the number of ids."""
        ids = torch.tensor([float(spec.num_embeddings) for spec in self.specs])
        uniform = [(max(1, self.dim >> halvings),) * len(self.specs) for halvings in range(self.dim.bit_length())]
        falling = [
            tuple((self.dim * (ids.min() / ids) ** alpha).round().clamp(min=1).int().tolist())
            for alpha in (0.1, 0.2, 0.3)
        ]
        return list(dict.fromkeys(uniform + falling))

    def search(
        self,
        weights: Sequence[Tensor],
        auc: Callable[[], float],
        seed: int,
        known: Mapping[tuple[int, ...], float],
        on_evaluated: Callable[[tuple[int, ...], float], None],
    ) -> Found:
        """Search by evolution, each candidate's rows filling the budget."""
        config, solver = self.config, self.solver(weights)

        def fitness(widths: tuple[int, ...]) -> float:
            value = auc() if self._take(solver, widths) else -torch.inf
            on_evaluated(widths, value)
            return value

        return evolve(
            fitness, [self.dim] * len(self.specs), rounds=config.rounds, mutants=config.mutants,
            crossovers=config.crossovers, parents=config.parents, mutation=config.mutation,
            start=self.start_candidates(), seed=seed, known=known,
        )  # fmt: skip

    def structure(self, weights: Sequence[Tensor], widths: Sequence[int] | None = None) -> Structure:
        """Say what is kept at these widths."""
        if widths is None:
            return super().structure(weights)
        solver = self.solver(weights)
        if not self._take(solver, widths):
            return self.config.planned(self.specs)
        return solver.structure(float(self.level), widths)

    def _take(self, solver: "RowSolver | EntrySolver", widths: Sequence[int]) -> bool:
        """Evaluate at these widths from now on, rows filling the budget; False where they are too wide for it."""
        self.widths.copy_(torch.tensor(widths))
        if self.config.budget_bytes is not None:
            self.level.fill_(solver.level(self.config.budget_bytes, widths))
        return not bool(self.level.isnan())

    def scalars(self) -> dict[str, float]:
        """Beside the pruned share the thresholds, of features or in quantiles."""
        found = super().scalars()
        if self.config.per == "feature":
            named = zip((spec.name for spec in self.specs), self.thresholds.tolist(), strict=True)
            return found | {f"threshold/{name}": value for name, value in named}
        low, middle, high = np.quantile(self.thresholds.detach().cpu().numpy(), [0.05, 0.5, 0.95]).tolist()
        return found | {"threshold/05": low, "threshold/50": middle, "threshold/95": high}


class _Gate(torch.autograd.Function):
    """Row mask and width mask in one pass each way.

    Forward: out = 1[x > 0] m ⊙ e with x = ‖e‖₁ − (t + level) / w, m the width mask and w how much the id's norm counts;
    rows that `always` stay are not asked for x.
    Backward: the step's gradient is replaced by h(x) = 2 − 4|x| for |x| ≤ 0.4, 0.4 up to 1, then 0 (Xu et al. 2019, as
    the paper's equation 6 has it).
    """

    @staticmethod
    def forward(
        ctx: Any,
        vectors: Tensor,
        thresholds: Tensor,
        level: Tensor,
        weighs: Tensor,
        widths: Tensor,
        always: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(vectors, thresholds, level, weighs, widths, always)
        return _masked(vectors, thresholds, level, weighs, widths, always)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        of_vectors, of_thresholds = _mask_gradients(gradients[0], *ctx.saved_tensors)
        return of_vectors, of_thresholds, None, None, None, None


def _masks(
    vectors: Tensor, thresholds: Tensor, level: Tensor, weighs: Tensor, widths: Tensor, always: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """By how much rows are over the level, which rows stay, and which of their floats."""
    margins = vectors.abs().sum(dim=-1) * weighs - thresholds  # as the solver reckons them, to the last bit
    first = torch.arange(vectors.shape[-1], device=vectors.device) < widths.unsqueeze(-1)
    return margins - level, (margins > level) | always, first


@fused
def _masked(
    vectors: Tensor, thresholds: Tensor, level: Tensor, weighs: Tensor, widths: Tensor, always: Tensor
) -> Tensor:
    _, kept, first = _masks(vectors, thresholds, level, weighs, widths, always)
    return vectors * (first & kept.unsqueeze(-1))


@fused
def _mask_gradients(
    gradient: Tensor,
    vectors: Tensor,
    thresholds: Tensor,
    level: Tensor,
    weighs: Tensor,
    widths: Tensor,
    always: Tensor,
) -> tuple[Tensor, Tensor]:
    over, kept, first = _masks(vectors, thresholds, level, weighs, widths, always)
    of_vectors = gradient * first
    size = (over / weighs).abs()
    surrogate = torch.where(size <= 0.4, 2 - 4 * size, 0.4 * (size <= 1)) * ~always
    of_over = (of_vectors * vectors).sum(dim=-1) * surrogate
    of_thresholds = -(of_over / weighs).sum_to_size(thresholds.shape)
    return of_vectors * kept.unsqueeze(-1) + of_over.unsqueeze(-1) * vectors.sign(), of_thresholds


@register(
    "optembed",
    OptEmbedConfig,
    summary="rows that are not worth it go, and each feature has the width it needs, both learned",
    paper="Lyu et al., OptEmbed, CIKM 2022, arXiv 2208.04482",
)
class OptEmbedTable(PackedTable):
    """The packed table that OptEmbed ends in."""
