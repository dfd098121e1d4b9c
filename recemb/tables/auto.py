"""One budget spent where it is worth most: each block of each feature's ids has the width and precision that pay.

What is chosen is how many ids of a feature have a row, how wide the rows are, block by block from frequent to rare, and
how finely each block is held; `recemb.tables.allocation` chooses, from what every block's vectors are worth. A budget
alone knows the frequencies of ids; `recemb advise`, and training with `table.trials`, know what ids tell about the
label and what a table that was trained first makes of them.

Related: Ginart et al., "Mixed Dimension Embeddings", ISIT 2021, arXiv 1909.11810, whose widths follow popularity by a
power law; Guan et al., "Post-Training 4-bit Quantization on Embedding Tables", arXiv 1911.02079. Here widths follow
what columns are worth, precision competes with width for the same bytes, and narrow rows stand beside zeros unless
`project` pays for one projection a feature, of which rows use as much as they are wide.
"""

import dataclasses
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from recemb.options import RecembError, option
from recemb.tables.allocation import Held, Worth, allocate, block_stops
from recemb.tables.base import DenseParameter, Layout, TableConfig, TableSpec, total_full_bytes
from recemb.tables.blocks import BlockedTable, Run, blocked_layout
from recemb.tables.precision import PRECISIONS
from recemb.tables.registry import register

NOISE = 15.0
"""K: what training makes of an id from n rows has noise of variance K / n beside a signal of variance 1."""
_LEAST_LEARNED = 1e-3
_DECAY = 1.5
"""Power by which columns fall in worth, where no trained table says."""


@dataclass(kw_only=True)
class AutoConfig(TableConfig):
    """Options of planned tables."""

    size_options = ("plan",)

    plan: Any = option(
        None,
        "by feature its blocks, [last id + 1, width, precision] each; ids past the last one read the unknown's row",
    )
    trials: int = option(
        4,
        "trainings to choose by: of full tables, of two plans made of them, of single methods; 0: none, by frequencies",
    )
    coarsest: str = option("int8", f"coarsest precision that rows may be held in: {', '.join(PRECISIONS)}")

    project: bool = option(
        False, "narrow rows pass a projection, one for each feature, instead of standing beside zeros"
    )

    def __post_init__(self) -> None:
        self.check_at_least(trials=0)
        if self.plan is not None and not isinstance(self.plan, dict):
            raise RecembError(f"table.plan={self.plan} is no plan: it says by feature [last id + 1, width, precision].")
        if not isinstance(self.project, bool):
            raise RecembError(f"table.project={self.project} must be true or false.")
        if self.coarsest not in PRECISIONS:
            raise RecembError(f"table.coarsest={self.coarsest} is not known; choose one of {', '.join(PRECISIONS)}.")

    def wants_trials(self, budget: object) -> bool:
        """Whether trials are to choose a better plan than this, which a budget has led to; None is no budget."""
        return self.trials > 0 and self.plan is not None and budget is not None

    def layout(self, specs: Sequence[TableSpec]) -> Layout:
        """Hold one table for each run of ids whose rows are held alike."""
        runs = [self.runs(spec) for spec in specs]
        return dataclasses.replace(_layout(specs, runs), parameters=self._projections(specs, runs))

    def _projections(self, specs: Sequence[TableSpec], runs: Sequence[Sequence[Held]]) -> list[DenseParameter]:
        """Describe the projections: (d, D) for a table whose widest narrow rows have d numbers; others use less."""
        found = []
        for index, (spec, of_spec) in enumerate(zip(specs, runs, strict=True)):
            widest = max((run.width for run in of_spec if run.width < spec.embedding_dim), default=0)
            if widest and self.project:
                shape = (widest, spec.embedding_dim)
                found.append(DenseParameter(f"projection:{spec.name}", shape, spec.embedding_dim**-0.5, index))
        return found

    def fit(self, specs: Sequence[TableSpec], budget_bytes: int) -> Self:
        """Spend the budget by the frequencies of ids."""
        return self.fit_to(specs, budget_bytes, [by_frequency(spec) for spec in specs])

    def fit_to(self, specs: Sequence[TableSpec], budget_bytes: int, worths: Sequence[Worth]) -> Self:
        """Spend the budget by what the vectors of ids are worth.

        Raises:
            TooSmallBudgetError: the budget is less than one number a table.
        """
        if total_full_bytes(specs) <= budget_bytes:
            return dataclasses.replace(self, plan=None)
        coarsest = max(self.coarsest, specs[0].precision, key=PRECISIONS.index)

        def overhead(runs: Sequence[Sequence[Held]]) -> int:
            held = sum(map(len, runs))
            dropped = any(run[-1].stop < spec.num_embeddings for run, spec in zip(runs, specs, strict=True))
            constants = 8 * ((len(specs) + held if held > len(specs) else 0) + (len(specs) if dropped else 0))
            return constants + sum(one.bytes for one in self._projections(specs, runs))

        runs = allocate(worths, budget_bytes, coarsest, overhead, "table=auto")
        plan = {spec.name: [list(run) for run in of_spec] for spec, of_spec in zip(specs, runs, strict=True)}
        return dataclasses.replace(self, plan=plan)

    def runs(self, spec: TableSpec) -> list[Held]:
        """The blocks of a table that have rows; without a plan all rows whole."""
        if self.plan is None:
            return [Held(spec.num_embeddings, spec.embedding_dim, spec.precision)]
        if spec.name not in self.plan:
            raise RecembError(
                f"table.plan has no feature {spec.name}; it is a plan of other data, for {', '.join(self.plan)}."
            )
        try:
            runs = [Held(stop, width, held) for stop, width, held in self.plan[spec.name]]
        except (TypeError, ValueError):
            runs = []
        whole = all(type(run.stop) is int and type(run.width) is int for run in runs)
        stops = [0, *(run.stop for run in runs)]
        fits = whole and all(
            low < run.stop <= spec.num_embeddings
            and 1 <= run.width <= spec.embedding_dim
            and run.precision in PRECISIONS
            for low, run in zip(stops, runs, strict=False)
        )
        if not runs or not fits:
            raise RecembError(
                f"table.plan.{spec.name}={self.plan[spec.name]} does not fit its {spec.num_embeddings:,} ids and width "
                f"{spec.embedding_dim}: it takes rising [last id + 1, width, precision]."
            )
        return runs


def by_frequency(spec: TableSpec, worth: float | None = None) -> Worth:
    """Say what ids are worth by how often they are looked up.

    An id that is looked up n times is worth n times as much as its vector tells, as far as that is `learned`.

    Args:
        spec: the table; where its frequencies are unknown, all ids are alike.
        worth: of the whole table; what its lookups come to if not given.
    """
    stops = block_stops(spec.num_embeddings)
    if spec.counts is None:
        of_block = np.diff(stops, prepend=0).astype(np.float64)
    else:
        counts = spec.counts.double().numpy()
        of_block = np.add.reduceat(counts * learned(counts), np.concatenate([[0], stops[:-1]]))
    columns = np.arange(1, spec.embedding_dim + 1) ** -_DECAY
    losses = of_block[:, None] * columns / columns.sum()
    if worth is not None and losses.sum() > 0:
        losses *= worth / losses.sum()
    return Worth(stops, losses)


def learned(counts: np.ndarray) -> np.ndarray:
    """Say which share (V,) of what the vectors of ids seem to be worth they are, from how often each was seen (V,).

    Of a signal of variance 1 and noise of variance K / n, leaving the vector out costs (n - K) / (n + K) of what it
    seems to. On validation rows leaving out ids seen fewer than 12 to 16 times costs nothing on a sample of Criteo, and
    those seen fewer than 4 to 8 times on MovieLens-1M.
    """
    return np.maximum((counts - NOISE) / (counts + NOISE), _LEAST_LEARNED)


def _layout(specs: Sequence[TableSpec], runs: Sequence[Sequence[Held]]) -> Layout:
    of_specs = []
    for spec, of_spec in zip(specs, runs, strict=True):
        starts = [0, *(run.stop for run in of_spec)]
        of_specs.append(
            [
                # Zeros are not drawn, so that narrow rows start larger for vectors to start as a full table's do.
                Run(start, run.stop, run.width, run.precision, spec.init_std * (spec.embedding_dim / run.width) ** 0.5)
                for start, run in zip(starts, of_spec, strict=False)
            ]
        )
    return blocked_layout(specs, of_specs)


@register(
    "auto",
    AutoConfig,
    summary="each block of ids has the width and precision that are worth their bytes",
)
class AutoTable(BlockedTable):
    """Looks an id up in the block it belongs to; what its row lacks to full width is zero."""

    def __init__(self, config: AutoConfig, specs: Sequence[TableSpec], layout: Layout | None = None) -> None:
        super().__init__(config, specs, layout)
        lookups = enumerate(self.layout.lookups)
        self._spec_of_table = {table: spec for spec, of_spec in lookups for table in of_spec}

    @property
    def concatenates(self) -> bool:
        """Rows of full width are vectors."""
        return all(table.dim == dim for table, dim in zip(self.layout.tables, self.layout.dims, strict=False))

    def combine(self, rows: list[Tensor], spec_index: int) -> Tensor:
        """Widen the row of a table that is one block."""
        return self._widened(rows[0], self.layout.lookups[spec_index][0])

    def widen(self, rows: Tensor, table: int, numbers: Tensor) -> Tensor:
        """Widen the rows of one block."""
        return self._widened(rows, table)

    @property
    def widens_linearly(self) -> bool:
        """Rows are multiplied with matrices, or zeros put behind them."""
        return True

    def matrix(self, table: int) -> Tensor | None:
        """As much of the feature's projection as rows are wide; None where there is none, or nothing to widen."""
        spec, width = self._spec_of_table[table], self.layout.tables[table].dim
        matrix = self._parameters.get(f"projection:{self.specs[spec].name}")
        return None if matrix is None or width == self.layout.dims[spec] else matrix[:width]

    def widens_as(self, table: int) -> Hashable:
        """All blocks alike, or all of a feature that has a projection."""
        spec = self._spec_of_table[table]
        projected = f"projection:{self.specs[spec].name}" in self._parameters
        return ("feature", spec) if projected else ("width", self.layout.dims[spec])

    def _widened(self, rows: Tensor, table: int) -> Tensor:
        missing = self.layout.dims[self._spec_of_table[table]] - rows.shape[1]
        matrix = self.matrix(table)
        if matrix is not None:
            return rows @ matrix
        return F.pad(rows, (0, missing)) if missing else rows
