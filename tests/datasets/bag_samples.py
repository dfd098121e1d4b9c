"""Invented rows with single values and bags, and a preparation of them that is slow and plain."""

import random
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from recemb.datasets import DatasetConfig
from recemb.datasets.bags import Bags
from recemb.datasets.base import RawChunk, RowSource

DENSE = ("I1",)
SINGLE = ("row", "shop")
MULTI = ("tags", "seen")


@dataclass(kw_only=True)
class SampleConfig(DatasetConfig):
    """Rows of (label, dense, singles, bags), cut into chunks of a size that changes nothing."""

    name: ClassVar[str] = "sample"
    rows: ClassVar[list] = []
    chunk_rows: ClassVar[int] = 7
    names: ClassVar[tuple[Any, ...]] = (DENSE, SINGLE, MULTI)

    def open(self, *, on_bad_rows):
        return SampleSource(self.rows, self.chunk_rows, self.names)


class SampleSource(RowSource):
    unit = "row"

    def __init__(self, rows, chunk_rows, names):
        super().__init__()
        self.dense_names, self.categorical_names, self.multi_valued = names
        self.rows, self.chunk_rows = rows, chunk_rows
        self.files, self.total = [], len(rows)

    def chunks(self, pool):
        for start in range(0, self.total, self.chunk_rows):
            rows = self.rows[start : start + self.chunk_rows]
            columns = [[row[2][j] for row in rows] for j in range(len(self.categorical_names))]
            yield RawChunk(
                labels=np.array([row[0] for row in rows], dtype=np.uint8),
                dense=[np.array([row[1][j] for row in rows], dtype=np.float32) for j in range(len(self.dense_names))],
                tokens=[np.array([value or 0 for value in column], dtype=np.uint32) for column in columns],
                missing=[np.array([value is None for value in column]) for column in columns],
                position=start + len(rows),
                bags=tuple(bags_of([row[3][j] for row in rows]) for j in range(len(self.multi_valued))),
            )


def bags_of(lists, dtype=np.uint32):
    values = [value for values in lists for value in values]
    return Bags.of(np.array(values, dtype=dtype), np.array([len(values) for values in lists], dtype=np.int64))


def make_rows(count, seed=0):
    """Return rows whose first single value is their number, so that every one can be told from the others."""
    draw = random.Random(seed)

    def values(most):
        # A few values are frequent, some are large, and one may be twice in a bag.
        return [int(draw.paretovariate(0.9)) % 50 * 80_000_000 for _ in range(draw.randint(0, most))]

    return [
        (
            draw.randint(0, 1),
            [draw.random()],
            [number, None if draw.random() < 0.2 else draw.randint(0, 9)],
            # The second feature is mostly empty.
            [values(4), values(9) if draw.random() < 0.3 else []],
        )
        for number in range(count)
    ]


def expected_ids(rows, codes, least_count=1, vocabulary="frequency"):
    """Return for every row its ids, singles as one-element lists, and for every feature what training rows count.

    Returns:
        n lists of F + M lists, and F + M lists of (value, count) in id order with the number of values without an id.
    """
    cells = [[[value] for value in row[2]] + list(row[3]) for row in rows]
    ids, counted = [[] for _ in rows], []
    for j in range(len(cells[0]) if cells else 0):
        column = [row[j] for row in cells]
        counts = Counter(value for values, code in zip(column, codes, strict=True) if code == 0 for value in values)
        kept = sorted(
            (v for v in counts if counts[v] >= least_count), key=lambda v: (-counts[v], -1 if v is None else v)
        )
        number = {value: i for i, value in enumerate(kept, 1)}
        for row, values in zip(ids, column, strict=True):
            if vocabulary == "none":
                row.append([-1 if value is None else value for value in values])
            else:
                row.append([number.get(value, 0) for value in values])
        counted.append(([(v, counts[v]) for v in kept], sum(counts[v] for v in counts if v not in number)))
    return ids, counted
