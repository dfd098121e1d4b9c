"""Mixed-dimension tables: popular ids get wide rows, rare ones narrow rows and a projection to full width.

Ginart, Naumov, Mudigere, Yang & Zou, "Mixed Dimension Embeddings with Application to Memory-Efficient Recommendation
Systems", ISIT 2021, arXiv 1909.11810. Block b of ids has rows of width d_b and a bias-free projection (d_b, D);
d_b = D (p_b / max p)^alpha, where p_b is how often an average row of the block is looked up (the paper's formula; its
prose says the block's total, which would give the widest rows to the longest tail). A block is a feature, the paper's
form for click models, or a part of a feature, ids sorted by frequency and cut so that the blocks of a feature are
looked up equally often, its form for collaborative filtering; on click logs few features hold nearly all rows, so the
second form is the one that matters and the default.

Differs from the paper: widths are rounded to integers, or to powers of two when asked; neighbouring blocks of one
width share a projection; a block that a projection would not make smaller keeps full width; projections start with
orthogonal rows, such that vectors start with the variance of a full table's. For a budget, the least alpha in [0, 1]
that fits is taken unless it is given, then widths are scaled, up to spend what rounding left or down where alpha = 1 is
not enough, and what a whole step would overspend goes to the first ids it concerns. Blocks whose width rounds to zero
have no rows, their ids share the row of out-of-vocabulary values; with least_width=1 every id has one float at least,
as in the paper, which bounds what can be saved.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from recemb.budget import largest_within
from recemb.options import RecembError, option
from recemb.tables.base import Approximation, Layout, TableConfig, TableSpec
from recemb.tables.blocks import BlockedTable, Run, blocked_layout
from recemb.tables.projection import factorized, narrower, projection, widened, with_shared_row
from recemb.tables.registry import register

BLOCKS = ("feature", "popularity")
_ALPHA_STEPS = 1 << 16
_SCALE_STEPS = 1 << 10  # per doubling of the widths
_DOUBLINGS = 64


class Block(NamedTuple):
    """Ids `first` to `stop` - 1 of a table; `popularity` is how often an average one of them is looked up."""

    first: int
    stop: int
    popularity: float

    @property
    def rows(self) -> int:
        """How many ids it has."""
        return self.stop - self.first


@dataclass(kw_only=True)
class MixedDimensionConfig(TableConfig):
    """Options of mixed-dimension tables."""

    size_options = ("scale", "wider")

    alpha: float | None = option(None, "temperature, 0 (all rows equally wide, and when not given) to 1")
    scale: float | None = option(None, "factor on the widths before rounding; 1 when not given")
    wider: int | None = option(None, "ids, the first ones, that take the next step of scale; spends what a step leaves")
    blocks: str = option("popularity", "what has one width: a feature, or a popularity block of a feature")
    num_blocks: int = option(8, "popularity blocks of a feature")
    threshold: int = option(200, "tables of at most this many ids are one block")
    power_of_two: bool = option(False, "round widths to powers of two")
    least_width: int = option(0, "narrowest rows; 0: the rarest blocks have no rows, their ids read the unknown's")

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise RecembError(f"table.alpha is {self.alpha}; it must lie between 0 and 1.")
        if self.scale is not None and not 0 < self.scale < math.inf:
            raise RecembError(f"table.scale is {self.scale}; it must be a positive number.")
        if self.blocks not in BLOCKS:
            raise RecembError(f"table.blocks={self.blocks} is not known; choose one of {', '.join(BLOCKS)}.")
        self.check_at_least(least_width=0, num_blocks=1, threshold=0, wider=0)

    def blocks_of(self, specs: Sequence[TableSpec]) -> list[list[Block]]:
        """Cut each table into blocks; where frequencies are unknown, into one, looked up once in every row of data."""
        lookups = max([1, *(int(spec.counts.sum()) for spec in specs if spec.counts is not None)])
        blocks = []
        for spec in specs:
            if spec.counts is not None and not bool(spec.counts.any()):
                blocks.append([Block(0, spec.num_embeddings, 0.0)])
            elif spec.counts is None:
                blocks.append([Block(0, spec.num_embeddings, lookups / spec.num_embeddings)])
            else:
                blocks.append(_equally_popular(spec.counts, self.num_blocks if self._cuts(spec) else 1))
        return blocks

    def layout(self, specs: Sequence[TableSpec]) -> Layout:
        """Hold one table for each run of blocks of one width, and its projection."""
        return self._layout(specs, self.blocks_of(specs))

    def fit(self, specs: Sequence[TableSpec], budget_bytes: int) -> Self:
        """Take the least alpha that fits, then scale the widths to the budget."""
        blocks = self.blocks_of(specs)

        def scale_at(steps: int) -> float | None:
            return None if steps == 0 else 2 ** (steps / _SCALE_STEPS)

        def bytes_at(alpha: float, scale_steps: int, wider: int | None = None) -> int:
            # The bytes rise with the steps, fall with alpha.
            sized = dataclasses.replace(self, alpha=alpha, scale=scale_at(scale_steps), wider=wider)
            return sized._layout(specs, blocks).serving_bytes

        whole = dataclasses.replace(self, alpha=None, scale=None, wider=None)
        if whole._layout(specs, blocks).serving_bytes <= budget_bytes:
            return whole
        what, alpha = "table=mixed_dimension", 1.0 if self.alpha is None else self.alpha
        if self.blocks == "popularity" and all(len(of_spec) == 1 for of_spec in blocks):
            what += ", whose blocks are whole features here (frequencies unknown, or tables small),"
        if self.alpha is None and bytes_at(alpha, 0) <= budget_bytes:
            flattest = largest_within(budget_bytes, lambda n: bytes_at(1 - n / _ALPHA_STEPS, 0), 0, _ALPHA_STEPS, what)
            alpha = 1 - flattest / _ALPHA_STEPS
        most = _DOUBLINGS * _SCALE_STEPS
        steps = largest_within(budget_bytes, lambda n: bytes_at(alpha, n), -most, most, what)
        # The next step is too much for whole blocks of ids, of which some have nearly all: take it for some of them.
        ids = sum(spec.num_embeddings for spec in specs if self._cuts(spec))
        wider = largest_within(budget_bytes, lambda n: bytes_at(alpha, steps, n), 0, ids, what)
        return dataclasses.replace(self, alpha=alpha, scale=scale_at(steps), wider=wider or None)

    def approximate(self, specs: Sequence[TableSpec], vectors: Sequence[Tensor], seed: int = 0) -> Approximation:
        """Factorize each block by its singular values; ids without a row make up the mean that they all read."""
        method = MixedDimensionTable(self, specs)
        layout = method.layout
        weights: list[Tensor] = []
        for spec, vector, lookups in zip(specs, vectors, layout.lookups, strict=True):
            tables = [layout.tables[table] for table in lookups]
            kept = with_shared_row(vector, spec.popularity, sum(table.rows for table in tables))
            first = 0
            for table in tables:
                rows, popularity = (one[first : first + table.rows] for one in (kept, spec.popularity))
                first += table.rows
                if table.dim < spec.embedding_dim:
                    rows, matrix = factorized(rows, popularity, table.dim)
                    method.get_parameter(f"projection:{table.name}").data.copy_(matrix)
                weights.append(rows)
        return Approximation(method, weights)

    def _layout(self, specs: Sequence[TableSpec], blocks: list[list[Block]]) -> Layout:
        hottest = max(block.popularity for of_spec in blocks for block in of_spec) or 1.0
        left = self.wider or 0
        runs: list[list[Run]] = []
        for spec, of_spec in zip(specs, blocks, strict=True):
            found, left = self._runs(spec, of_spec, hottest, left)
            runs.append([Run(*one, spec.precision, spec.init_std) for one in found])
        layout = blocked_layout(specs, runs)
        parameters = [
            projection(f"projection:{layout.tables[table].name}", spec, index, layout.tables[table].dim)
            for index, (spec, lookups) in enumerate(zip(specs, layout.lookups, strict=True))
            for table in lookups
            if layout.tables[table].dim < spec.embedding_dim
        ]
        return dataclasses.replace(layout, parameters=parameters)

    def _runs(
        self, spec: TableSpec, blocks: list[Block], hottest: float, wider: int
    ) -> tuple[list[tuple[int, int, int]], int]:
        """Give the first id, the last id + 1 and the width of each run of blocks of one width that have rows.

        Up to `wider` ids, the first ones, have the width of the next larger scale; also returns how many are left.
        """
        runs: list[tuple[int, int, int]] = []
        for block in blocks:
            popularity = block.popularity / hottest
            narrow, wide = (self._width(spec.embedding_dim, popularity, step) for step in (0, 1))
            ahead = min(wider, block.rows) if wide > narrow and self._cuts(spec) else 0
            wider -= ahead
            for start, stop, width in (
                (block.first, block.first + ahead, wide),
                (block.first + ahead, block.stop, narrow),
            ):
                # The first block has the row that ids without one of their own fall back on.
                if start < stop and (width or not runs):
                    _append(runs, (start, stop, max(width, 1)))
        worthwhile: list[tuple[int, int, int]] = []
        for start, stop, width in runs:
            _append(worthwhile, (start, stop, narrower(stop - start, width, spec.embedding_dim)))
        return worthwhile, wider

    def _cuts(self, spec: TableSpec) -> bool:
        """Whether a table is cut into blocks by frequency."""
        return self.blocks == "popularity" and spec.counts is not None and spec.num_embeddings > self.threshold

    def _width(self, dim: int, popularity: float, step: int) -> int:
        """Round the width of a block; `step` asks for that at the next larger scale."""
        wanted = dim * (self.scale or 1.0) * 2 ** (step / _SCALE_STEPS) * popularity ** (self.alpha or 0.0)
        if self.power_of_two and wanted > 0.5:
            wanted = max(1.0, 2.0 ** round(math.log2(wanted)))
        return int(min(dim, max(self.least_width, round(min(wanted, dim)))))


def _append(runs: list[tuple[int, int, int]], run: tuple[int, int, int]) -> None:
    """Append a run (first id, last id + 1, width), or lengthen the last one where the widths agree."""
    if runs and runs[-1][2] == run[2]:
        runs[-1] = (runs[-1][0], run[1], run[2])
    else:
        runs.append(run)


def _equally_popular(counts: Tensor, num_blocks: int) -> list[Block]:
    """Cut (V,) falling counts into at most `num_blocks` blocks of equal sums; id 0 goes with the most frequent."""
    total = counts.cumsum(0)
    targets = torch.arange(1, num_blocks) * (float(total[-1]) / num_blocks)
    # A block ends with the id that brings the sum to its target; one id may be popular enough for several blocks.
    stops = (torch.searchsorted(total.double(), targets.double()) + 1).unique().tolist()
    blocks, start = [], 0
    for stop in [*(stop for stop in stops if stop < len(counts)), len(counts)]:
        seen = int(total[stop - 1]) - (int(total[start - 1]) if start else 0)
        blocks.append(Block(start, stop, seen / (stop - start)))
        start = stop
    return blocks


@register(
    "mixed_dimension",
    MixedDimensionConfig,
    summary="popular ids have wide rows, rare ones narrow rows and a projection",
    paper="Ginart et al., Mixed Dimension Embeddings, ISIT 2021, arXiv 1909.11810",
)
class MixedDimensionTable(BlockedTable):
    """Looks an id up in the block it belongs to and projects its row to full width."""

    def combine(self, rows: list[Tensor], spec_index: int) -> Tensor:
        """Project the row of a table that is one block."""
        return widened(rows[0], self.matrix(self.layout.lookups[spec_index][0]))

    def widen(self, rows: Tensor, table: int, numbers: Tensor) -> Tensor:
        """Project rows of one block to full width."""
        return widened(rows, self.matrix(table))

    @property
    def widens_linearly(self) -> bool:
        """Rows are multiplied with matrices."""
        return True

    def matrix(self, table: int) -> Tensor | None:
        """The projection of a block; None where its rows are as wide as vectors."""
        return self._parameters.get(f"projection:{self.layout.tables[table].name}")
