"""Rows given as arrays, prepared like any other data set."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from recemb.datasets import DatasetConfig, prepare
from recemb.datasets.bags import Bags
from recemb.datasets.base import RawChunk, RowSource
from recemb.options import option


@dataclass(kw_only=True)
class ArraysConfig(DatasetConfig):
    """Labels and columns; the last rows are validation and test (`last_day`)."""

    name: ClassVar[str] = "arrays"

    min_count: int = option(1, "as everywhere")

    def open(self, *, on_bad_rows):
        return Arrays(self.labels, self.single, self.multi)


class Arrays(RowSource):
    dense_names = ()
    unit = "row"

    def __init__(self, labels, single, multi):
        super().__init__()
        self.categorical_names, self.multi_valued = tuple(single), tuple(multi)
        self.labels, self.single, self.multi = labels, single, multi
        self.files, self.total = [], len(labels)

    def chunks(self, pool):
        columns = [np.asarray(values, dtype=np.int64) for values in self.single.values()]
        bags = [
            Bags.of(np.array([v for bag in column for v in bag], dtype=np.uint32), np.array([*map(len, column)]))
            for column in self.multi.values()
        ]
        yield RawChunk(
            labels=np.asarray(self.labels, dtype=np.uint8),
            dense=[],
            tokens=[np.maximum(values, 0).astype(np.uint32) for values in columns],
            missing=[values < 0 if (values < 0).any() else None for values in columns],
            position=self.total,
            bags=bags,
        )


def prepared(folder, labels, single, multi=None, **options):
    """Prepare arrays; a negative value of a single-valued column is missing."""
    config = ArraysConfig(path=str(folder), **options)
    config.labels, config.single, config.multi = labels, single, multi or {}
    return prepare(config, progress=False)


def draw_rows(rows=3000, seed=0):
    """Labels that `wide` and the bags tell something of, values of falling frequency, and later values that are new."""
    draw = np.random.default_rng(seed)
    wide = draw.zipf(1.4, rows) % 400
    small = draw.integers(-1, 4, rows)
    small[rows // 2 :] = np.minimum(small[rows // 2 :] + 1, 3)  # drifts
    tags = [draw.integers(0, 30, draw.integers(0, 4)).tolist() for _ in range(rows)]
    logit = np.sin(wide) * 2 + np.array([sum(np.cos(tag) for tag in bag) for bag in tags])
    labels = (draw.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.uint8)
    return labels, {"wide": wide, "small": small}, {"tags": tags}
