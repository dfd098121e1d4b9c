"""Reads ranges of rows from the memory-mapped Arrow file of one split: columns as views, or whole rows as copies."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import ipc


class Columns(NamedTuple):
    """Rows as columns; K dense and F categorical features, n rows.

    Attributes:
        labels: (n,) uint8.
        dense: K arrays (n,) float32.
        ids: F arrays (n,) int32.
    """

    labels: np.ndarray
    dense: list[np.ndarray]
    ids: list[np.ndarray]


class Rows(NamedTuple):
    """Rows side by side in memory, for access in random order; K dense and F categorical features, n rows.

    Attributes:
        labels: (n,) uint8.
        dense: (n, K) float32.
        ids: (n, F) int32.
    """

    labels: np.ndarray
    dense: np.ndarray
    ids: np.ndarray


class SplitFile:
    """The rows of one split.

    Args:
        path: the Arrow file.
        rows: how many rows it must have; fewer or more is a ValueError.
    """

    def __init__(self, path: Path, rows: int) -> None:
        reader = ipc.open_file(pa.memory_map(str(path)))
        self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        self.rows = int(self._starts[-1])
        if self.rows != rows:
            raise ValueError(f"{self.rows} rows instead of {rows}")
        self._dense = [i for i, field in enumerate(reader.schema) if pa.types.is_float32(field.type)]
        self._ids = [i for i, field in enumerate(reader.schema) if pa.types.is_int32(field.type)]
        self.dense = len(self._dense)
        self.categorical = len(self._ids)

    def pieces(self, start: int, stop: int) -> list[Columns]:
        """Return the rows [start, stop) as views, one a record batch they touch."""
        pieces = []
        while start < stop:
            at = int(np.searchsorted(self._starts, start, side="right")) - 1
            end = min(stop, int(self._starts[at + 1]))
            batch = self._batches[at].slice(start - int(self._starts[at]), end - start)
            columns = [column.to_numpy() for column in batch.columns]
            pieces.append(Columns(columns[0], [columns[i] for i in self._dense], [columns[i] for i in self._ids]))
            start = end
        return pieces

    def gather(self, ranges: Sequence[tuple[int, int]]) -> Rows:
        """Return copies of the rows of several ranges, one after the other."""
        n = sum(stop - start for start, stop in ranges)
        rows = Rows(
            np.empty(n, dtype=np.uint8),
            np.empty((n, self.dense), dtype=np.float32),
            np.empty((n, self.categorical), dtype=np.int32),
        )
        at = 0
        for start, stop in ranges:
            for piece in self.pieces(start, stop):
                here = slice(at, at + len(piece.labels))
                rows.labels[here] = piece.labels
                np.stack(piece.dense, axis=1, out=rows.dense[here])
                np.stack(piece.ids, axis=1, out=rows.ids[here])
                at = here.stop
        return rows
