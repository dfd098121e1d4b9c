"""Reads ranges of rows from the memory-mapped Arrow file of one split: columns as views, or whole rows as copies."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import ipc

from recemb.datasets.bags import Bags


class Columns(NamedTuple):
    """Rows as columns; K dense, F categorical and M multi-valued features, n rows.

    Attributes:
        labels: (n,) uint8.
        dense: K arrays (n,) float32.
        ids: F arrays (n,) int32, int64 where they are raw.
        bags: M bags of the same type.
    """

    labels: np.ndarray
    dense: list[np.ndarray]
    ids: list[np.ndarray]
    bags: list[Bags]


class Rows(NamedTuple):
    """Rows side by side in memory, for access in random order; n rows with features as in `Columns`.

    Attributes:
        labels: (n,) uint8.
        dense: (n, K) float32.
        ids: (n, F) int32, int64 where they are raw.
        bags: M bags of the same type.
    """

    labels: np.ndarray
    dense: np.ndarray
    ids: np.ndarray
    bags: list[Bags]


class SplitFile:
    """The rows of one split.

    Args:
        path: the Arrow file.
        rows: how many rows it must have; fewer or more is a ValueError.

    Attributes:
        rows: how many there are.
        dense: K.
        categorical: F.
        multi_valued: M.
        raw: ids are raw values.
    """

    def __init__(self, path: Path, rows: int) -> None:
        reader = ipc.open_file(pa.memory_map(str(path)))
        self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        self.rows = int(self._starts[-1])
        if self.rows != rows:
            raise ValueError(f"{self.rows} rows instead of {rows}")
        self._dense = [i for i, field in enumerate(reader.schema) if pa.types.is_float32(field.type)]
        self._ids = [i for i, field in enumerate(reader.schema) if pa.types.is_signed_integer(field.type)]
        self._bags = [i for i, field in enumerate(reader.schema) if pa.types.is_list(field.type)]
        self.dense = len(self._dense)
        self.categorical = len(self._ids)
        self.multi_valued = len(self._bags)
        kinds = {reader.schema.field(i).type for i in self._ids}
        kinds |= {reader.schema.field(i).type.value_type for i in self._bags}
        self.raw = pa.int64() in kinds

    def pieces(self, start: int, stop: int) -> list[Columns]:
        """Return the rows [start, stop) as views, one a record batch they touch."""
        pieces = []
        while start < stop:
            at = int(np.searchsorted(self._starts, start, side="right")) - 1
            end = min(stop, int(self._starts[at + 1]))
            batch = self._batches[at].slice(start - int(self._starts[at]), end - start)
            columns = batch.columns
            pieces.append(
                Columns(
                    columns[0].to_numpy(),
                    [columns[i].to_numpy() for i in self._dense],
                    [columns[i].to_numpy() for i in self._ids],
                    # The offsets are those of the slice and count from the start of all values.
                    [Bags(columns[i].values.to_numpy(), columns[i].offsets.to_numpy()) for i in self._bags],
                )
            )
            start = end
        return pieces

    def gather(self, ranges: Sequence[tuple[int, int]]) -> Rows:
        """Return copies of the rows of several ranges, one after the other."""
        n = sum(stop - start for start, stop in ranges)
        kind = np.int64 if self.raw else np.int32
        bags: list[list[Bags]] = [[] for _ in self._bags]
        rows = Rows(
            np.empty(n, dtype=np.uint8),
            np.empty((n, self.dense), dtype=np.float32),
            np.empty((n, self.categorical), dtype=kind),
            [],
        )
        at = 0
        for start, stop in ranges:
            for piece in self.pieces(start, stop):
                here = slice(at, at + len(piece.labels))
                rows.labels[here] = piece.labels
                if piece.dense:
                    np.stack(piece.dense, axis=1, out=rows.dense[here])
                if piece.ids:
                    np.stack(piece.ids, axis=1, out=rows.ids[here])
                for parts, part in zip(bags, piece.bags, strict=True):
                    parts.append(part)
                at = here.stop
        return rows._replace(bags=[Bags.join(parts, kind) for parts in bags])
