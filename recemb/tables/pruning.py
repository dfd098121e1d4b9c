"""Tables on the way to being pruned: every id's row, masked more and more, and the budget solved for what to keep.

Everything has a margin, how much it is worth keeping: a row's norm over a learned threshold, or a single entry's size.
What has a margin above one common level is kept. While training goes on the level rises with the cubic schedule of Zhu
& Gupta, "To Prune, or Not to Prune", arXiv 1710.01878, equation 1, on bytes instead of weights: at every solve it is
set so that what is kept, the map from ids to rows included, takes as many bytes as the schedule says.
"""

import bisect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from recemb.options import RecembError
from recemb.search.evolution import Found
from recemb.tables.base import CompressedTable, TableSpec, total_held_bytes
from recemb.tables.full import FullConfig
from recemb.tables.id_map import map_bytes
from recemb.tables.precision import mean_row_bytes
from recemb.tables.pruned import PrunedConfig
from recemb.tables.structure import Structure, as_range, entries_bytes, entry_widths

SOLVES_PER_EPOCH = 16
_CONSTANT_BYTES = 16  # of each table: where its ids and its rows begin
_HALVINGS = 32
_COARSE_HALVINGS = 12  # while training, where the next solve follows soon
_SOLVER_BYTES = 24  # of an entry, while budgets are solved for


class PruningTable(CompressedTable):
    """Looks every id's own row up and masks what has no margin above the level.

    Args:
        config: the options, with the bytes to keep.
        specs: the logical tables, all of one width.
    """

    gates: ClassVar[bool] = True
    unit: str = "row"
    """What is kept or not: whole rows, or single entries."""
    searches: ClassVar[bool] = False
    """Whether widths are searched for once the rows are trained."""
    search_rows: int = 0
    most_candidates: int = 0

    level: Tensor
    begins: Tensor
    traffic: Tensor | None

    def __init__(self, config: PrunedConfig, specs: Sequence[TableSpec]) -> None:
        super().__init__(config, specs, FullConfig().layout(specs))
        dims = {spec.embedding_dim for spec in specs}
        if len(dims) > 1:
            raise RecembError(f"pruned tables must have one width, not {sorted(dims)}; give all specs the same.")
        (self.dim,) = dims
        self.kept_rows = sum(spec.num_embeddings for spec in specs)
        self._due = self._solved = 0.0
        self.register_buffer("level", torch.tensor(-torch.inf))
        sizes = [spec.num_embeddings for spec in specs]
        self.register_buffer("begins", torch.tensor([0, *sizes[:-1]]).cumsum(0), persistent=False)
        self.register_buffer("traffic", self._traffic(), persistent=False)

    def _traffic(self) -> Tensor | None:
        """How much each id's size counts (ids of all tables,), 1 for the most frequent; None for all alike."""
        if self.config.traffic == 0 or any(spec.counts is None for spec in self.specs):
            return None
        counts = torch.cat([spec.counts for spec in self.specs if spec.counts is not None]).float() + 1
        return (counts / counts.max()) ** self.config.traffic

    def weighs(self, ids: Tensor, spec: Tensor) -> Tensor:
        """How much the size of ids (...) of tables `spec` counts, (...), or () where it is 1 for all."""
        return torch.ones_like(self.level) if self.traffic is None else self.traffic[self.begins[spec] + ids]

    def weighed(self, sizes: Sequence[Tensor]) -> list[Tensor]:
        """Multiply sizes (V,) or (V, D) of each table with how much they count."""
        if self.traffic is None:
            return list(sizes)
        parts = self.traffic.split([len(one) for one in sizes])
        return [one * part.view(-1, *(1,) * (one.dim() - 1)) for one, part in zip(sizes, parts, strict=True)]

    def margins(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Say how much rows (V,) or entries (V, D) of each table's weight (V, D) are worth keeping."""
        raise NotImplementedError(f"{type(self).__name__} must say what is worth keeping.")

    def remap(self, ids: Tensor, lookup: Tensor) -> Tensor:
        """The row of an id is the id."""
        return ids

    def target_bytes(self, epochs: float) -> int | None:
        """Bytes to keep after so many passes over the training rows, None for no limit."""
        budget, full = self.config.budget_bytes, total_held_bytes(self.specs)
        if budget is None:
            return None
        left = max(0.0, 1 - epochs / self.config.ramp) if self.config.ramp else 0.0
        return int(budget + max(full - budget, 0) * left**3)

    @torch.no_grad()
    def after_step(self, weights: Callable[[], Sequence[Tensor]], epochs: float) -> None:
        """Set the level anew once in a while."""
        # Once the target is reached, what is kept fits the budget at once.
        if epochs < self._due and not self._solved < self.config.ramp <= epochs:
            return
        self._due, self._solved = epochs + 1 / SOLVES_PER_EPOCH, epochs
        target = self.target_bytes(epochs)
        if target is not None:
            solver = self.solver(weights(), _COARSE_HALVINGS)
            level = solver.level(target, self.typical_widths())
            self.level.fill_(torch.inf if math.isnan(level) else level)
            self.kept_rows = solver.rows_above(float(self.level))

    def progress(self) -> dict[str, float]:
        """When the level was set last, when it is due again, and how many rows it keeps."""
        return {"due": self._due, "solved": self._solved, "kept_rows": self.kept_rows}

    def resume(self, progress: dict[str, float]) -> None:
        """Take up what `progress` gave."""
        self._due, self._solved, self.kept_rows = progress["due"], progress["solved"], int(progress["kept_rows"])

    @property
    def settles(self) -> float:
        """Passes over the training rows after which no more is pruned than the last stage will."""
        return self.config.ramp if self.config.budget_bytes is not None else 0.0

    def typical_widths(self) -> list[float]:
        """Floats of a row that the bytes are reckoned with while training; fixed by the method, or an average."""
        return [float(self.dim)] * len(self.specs)

    def solver(self, weights: Sequence[Tensor], halvings: int = _HALVINGS) -> "RowSolver | EntrySolver":
        """Make what solves budgets for these weights; `halvings` are those of a level that has to be approached."""
        margins = [margin.detach().float() for margin in self.margins(weights)]
        if self.unit == "row":
            return RowSolver(self.specs, margins)
        if not _solves_where_they_are(margins):
            margins = [margin.cpu() for margin in margins]
        return EntrySolver(self.specs, margins, halvings)

    def search(
        self,
        weights: Sequence[Tensor],
        auc: Callable[[], float],
        seed: int,
        known: Mapping[tuple[int, ...], float],
        on_evaluated: Callable[[tuple[int, ...], float], None],
    ) -> Found:
        """Search for the width of each table; only for methods that `searches`.

        Args:
            weights: the trained weights (V, D), which stay as they are.
            auc: evaluates the model as it is masked at that moment.
            seed: of the search.
            known: AUC by candidate of an earlier search with the same seed.
            on_evaluated: hears of each candidate and its AUC.
        """
        raise NotImplementedError(f"{type(self).__name__} must say how it searches.")

    @torch.no_grad()
    def structure(self, weights: Sequence[Tensor], widths: Sequence[int] | None = None) -> Structure:
        """Say what is kept of these weights (V, D) within the budget, at the widths that a search has found."""
        solver = self.solver(weights)
        if self.config.budget_bytes is None:
            return solver.structure(float(self.level))
        level = solver.level(self.config.budget_bytes, [self.dim] * len(self.specs))
        # Not even the unknowns' rows fit as they are: the narrower ones that a plan has.
        return self.config.planned(self.specs) if math.isnan(level) else solver.structure(level)

    def scalars(self) -> dict[str, float]:
        """The level, and the share of ids without a row of their own."""
        ids = sum(spec.num_embeddings for spec in self.specs)
        return {"level": float(self.level), "pruned_share": 1 - self.kept_rows / ids}


class RowSolver:
    """Chooses whole rows for a budget.

    Args:
        specs: the logical tables.
        margins: (V,) float32 of each, where the work is to be done.
    """

    def __init__(self, specs: Sequence[TableSpec], margins: Sequence[Tensor]) -> None:
        self._specs = specs
        self._margins = margins
        sizes = torch.tensor([len(margin) - 1 for margin in margins])
        self._sorted, order = torch.sort(torch.cat([margin[1:] for margin in margins]), descending=True, stable=True)
        self._table = torch.arange(len(specs)).repeat_interleave(sizes).to(order.device)[order]

    def level(self, budget_bytes: int, widths: Sequence[float]) -> float:
        """Give the lowest level above which rows of these widths take no more than the budget.

        Returns:
            The level; infinity where nothing but the unknowns' rows fits, NaN where not even these do.
        """
        of_table = torch.tensor(
            [mean_row_bytes(width, spec.precision) for width, spec in zip(widths, self._specs, strict=True)],
            dtype=torch.float64,
        )
        ids = sum(spec.num_embeddings for spec in self._specs)
        unknowns = float(of_table.sum())
        # A running sum of bytes, so that the bytes of the first k rows are known for every k.
        rows_bytes = of_table.to(self._table.device)[self._table].cumsum(0)
        if unknowns + (float(rows_bytes[-1]) if len(rows_bytes) else 0.0) <= budget_bytes:
            return -torch.inf
        if unknowns + 8 * len(self._specs) > budget_bytes:
            return torch.nan

        def bytes_at(rows: int) -> int:
            held = unknowns + (float(rows_bytes[rows - 1]) if rows else 0.0)
            return math.ceil(held) + map_bytes(ids, len(self._specs) + rows) + _CONSTANT_BYTES * len(self._specs)

        most = len(rows_bytes)
        rows = bisect.bisect_right(range(most), budget_bytes, key=bytes_at) - 1
        return float(self._sorted[rows]) if rows >= 1 else torch.inf

    def rows_above(self, level: float) -> int:
        """Count the rows that are kept at a level."""
        above = torch.searchsorted(-self._sorted, torch.full_like(self._sorted[:1], -level))
        return len(self._specs) + int(above.sum())

    def structure(self, level: float, widths: Sequence[int] | None = None) -> Structure:
        """Keep what is above the level, of these widths or else of the full ones."""
        kept = []
        for margin in self._margins:
            above = margin > level if level > -math.inf else torch.ones_like(margin, dtype=torch.bool)
            above[0] = True
            kept.append(as_range(above.nonzero().squeeze(1).cpu()))
        return Structure(kept=kept, widths=widths or [spec.embedding_dim for spec in self._specs])


class EntrySolver:
    """Chooses single entries for a budget.

    Args:
        specs: the logical tables, all of one width D.
        margins: (V, D) float32 of each, where the work is to be done.
        halvings: how often the range of levels is halved.
    """

    def __init__(self, specs: Sequence[TableSpec], margins: Sequence[Tensor], halvings: int = _HALVINGS) -> None:
        self._specs = specs
        self._margins = margins
        self._halvings = halvings
        self._all = torch.cat(list(margins))
        self._dim = self._all.shape[1]
        device = self._all.device
        first = [0, *itertools.accumulate(len(margin) for margin in margins)][:-1]
        self._unknowns = torch.tensor(first, device=device)
        self._steps = torch.tensor(entry_widths(self._dim), device=device)

    def level(self, budget_bytes: int, widths: Sequence[float]) -> float:
        """Give about the lowest level above which entries take no more than the budget; see `RowSolver.level`."""
        constants = _CONSTANT_BYTES * len(self._specs) + 8 * len(self._steps)
        ids = len(self._all)

        def fits(level: float) -> bool:
            per_row = self._rounded((self._all > level).sum(dim=1), self._unknowns)
            held = entries_bytes(per_row[per_row > 0], self._dim, ids, self._specs[0].precision)
            return held + constants <= budget_bytes

        if total_held_bytes(self._specs) <= budget_bytes:
            return -torch.inf
        finite = self._all.isfinite()
        low = float(torch.where(finite, self._all, torch.inf).min()) - 1
        high = float(torch.where(finite, self._all, -torch.inf).max())
        if not fits(high):
            return torch.nan
        for _ in range(self._halvings):
            middle = (low + high) / 2
            low, high = (low, middle) if fits(middle) else (middle, high)
        return high

    def rows_above(self, level: float) -> int:
        """Count the rows that keep something at a level."""
        above = (self._all > level).any(dim=1)
        above[self._unknowns] = True
        return int(above.sum())

    def structure(self, level: float, widths: Sequence[int] | None = None) -> Structure:
        """Keep what is above the level, and more of the same row where its number of entries is rounded up."""
        dims = [self._dim] * len(self._specs)
        if level == -math.inf:  # below every margin, be it infinite
            return Structure(kept=[range(len(margin)) for margin in self._margins], widths=dims)
        kept, entries = [], []
        for margin in self._margins:
            per_row = self._rounded((margin > level).sum(dim=1), self._unknowns[:1])
            ids = per_row.nonzero().squeeze(1)
            place = margin[ids].argsort(dim=1, descending=True, stable=True).argsort(dim=1)
            kept.append(as_range(ids.cpu()))
            entries.append((place < per_row[ids].unsqueeze(1)).cpu())
        if all(bool(one.all()) for one in entries):
            return Structure(kept=kept, widths=dims)
        return Structure(kept=kept, widths=dims, entries=entries)

    def _rounded(self, per_row: Tensor, unknowns: Tensor) -> Tensor:
        """Round numbers of entries (n,) up to those that rows may keep; unknowns keep one at least."""
        per_row = per_row.index_put((unknowns,), per_row[unknowns].clamp(min=1))
        return torch.where(
            per_row > 0, self._steps[torch.searchsorted(self._steps, per_row).clamp(max=len(self._steps) - 1)], 0
        )


def _solves_where_they_are(margins: Sequence[Tensor]) -> bool:
    """Whether there is memory to choose among single entries where their margins are."""
    device = margins[0].device
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return sum(margin.numel() for margin in margins) * _SOLVER_BYTES <= free
