"""Rows of any number from a seed in the form of Criteo, with labels from a teacher whose own scores are known.

Row i depends on (options, i) and on nothing else, so rows are made in parallel, in chunks of any size. Every value of
every categorical feature has a weight and a latent vector, hashed from (seed, feature, value) and stored nowhere.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from recemb.datasets.base import DatasetConfig, RawChunk, RowSource
from recemb.datasets.counter import key_of, random_uniform
from recemb.datasets.criteo_text import CriteoSpelling
from recemb.datasets.parallel import ordered
from recemb.datasets.synthetic_shape import CATALOG, CRITEO, Categories, Integers, Shape
from recemb.datasets.synthetic_teacher import Teacher
from recemb.options import RecembError, option

CHUNK_ROWS = 1 << 15  # half a dozen arrays of a chunk fit the second-level cache


@dataclass(kw_only=True)
class SyntheticConfig(CriteoSpelling, DatasetConfig):
    """Generated rows in the form of Criteo, in seconds and without a download."""

    name: ClassVar[str] = "synthetic"
    shape: ClassVar[Shape] = CRITEO

    path: str = option("data/synthetic", "folder of the prepared data set")
    rows: int = option(1_000_000, "rows to generate, over all splits")
    auc: float = option(0.80, "AUC of the teacher that draws the labels: no model can do better")
    positive_rate: float = option(0.256, "share of rows with label 1")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rows < 1:
            raise RecembError(f"dataset.rows={self.rows} is too small; it must be 1 or more.")
        if not 0.5 < self.auc <= 0.95:
            raise RecembError(f"dataset.auc={self.auc} cannot be reached; it must be above 0.5 and at most 0.95.")
        if not 0.01 <= self.positive_rate <= 0.99:
            raise RecembError(f"dataset.positive_rate={self.positive_rate} must lie between 0.01 and 0.99.")

    def open(self, *, on_bad_rows: str) -> RowSource:  # noqa: ARG002 - generated rows are never bad
        """Set up the teacher."""
        return SyntheticRows(self)


@dataclass(kw_only=True)
class SyntheticCatalogConfig(SyntheticConfig):
    """Generated rows whose rare values can be learnt: six features, every value of which occurs several times.

    Most values of `SyntheticConfig`, as of Criteo, occur once or twice, which says little about a table method.
    """

    name: ClassVar[str] = "synthetic_catalog"
    shape: ClassVar[Shape] = CATALOG

    path: str = option("data/synthetic_catalog", "folder of the prepared data set")


class SyntheticRows(RowSource):
    """Generated rows.

    Args:
        config: how many, and from what.
        chunk_rows: rows a chunk; changes nothing in them.
    """

    unit = "row"
    knows_probability = True

    def __init__(self, config: SyntheticConfig, chunk_rows: int = CHUNK_ROWS) -> None:
        super().__init__()
        self.files = []
        self.total = config.rows
        self._seed = config.seed
        self._chunk_rows = chunk_rows
        shape = config.shape
        self.dense_names, self.categorical_names = tuple(shape.integers), tuple(shape.categories)
        self._categories = [
            Categories(each, config.rows, config.seed, f) for f, each in enumerate(shape.categories.values())
        ]
        self._integers = [Integers(name, each, config.seed) for name, each in shape.integers.items()]
        self._teacher = Teacher(shape, config.seed)
        # Rows nobody will ever see set the teacher's strength, so that it does not depend on the rows that are.
        pilot = np.arange(1 << 63, (1 << 63) + (1 << 16), dtype=np.uint64)
        hashes, dense, _, _ = self._features(pilot)
        self._teacher.calibrate(hashes, dense, config.auc, config.positive_rate)

    def chunks(self, pool: ThreadPoolExecutor) -> Iterator[RawChunk]:
        """Yield all rows."""
        return ordered(pool, self._chunk, range(0, self.total, self._chunk_rows))

    def _chunk(self, start: int) -> RawChunk:
        stop = min(start + self._chunk_rows, self.total)
        rows = np.arange(start, stop, dtype=np.uint64)
        hashes, dense, tokens, missing = self._features(rows)
        probability = self._teacher.probability(hashes, dense)
        labels = (random_uniform(key_of(self._seed, 3), rows) < probability).astype(np.uint8)
        return RawChunk(labels, dense, tokens, missing, stop, probability)

    def _features(
        self, rows: np.ndarray
    ) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray], list[np.ndarray | None]]:
        """Return hashes of the values (F arrays (n,) uint64), dense, tokens and missing of (n,) uint64 row numbers."""
        # Features of one group are missing in the same rows, as in Criteo.
        groups = {each.shape.group for each in self._categories} | {each.shape.group for each in self._integers}
        chances = {group: random_uniform(key_of(self._seed, 4, group), rows) for group in sorted(groups)}
        drawn = [feature.draw(rows, chances[feature.shape.group]) for feature in self._categories]
        dense = [feature.draw(rows, chances[feature.shape.group]) for feature in self._integers]
        return [d.hashes for d in drawn], dense, [d.tokens for d in drawn], [d.missing for d in drawn]
