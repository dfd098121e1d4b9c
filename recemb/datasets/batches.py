"""Batches of a prepared split, made one ahead on a thread of their own."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.datasets.bags import Bags
from recemb.datasets.columns import Columns, Rows, SplitFile

_PIECES = 16


class Batch(NamedTuple):
    """B rows with K dense and F categorical features.

    Attributes:
        dense: (B, K) float32, NaN = missing.
        sparse: F keys of int64 ids, stride B: values feature by feature, (F * B,) with all lengths 1, unless some
            features are multi-valued; those come last and have any number of ids a row.
        labels: (B,) float32, 0 or 1.
    """

    dense: torch.Tensor
    sparse: KeyedJaggedTensor
    labels: torch.Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """Return the batch on a device."""
        place = torch.device(device)
        return Batch(
            self.dense.to(place, non_blocking=non_blocking),
            self.sparse.to(place, non_blocking=non_blocking),
            self.labels.to(place, non_blocking=non_blocking),
        )


class Batches:
    """One pass over a split, as often as it is iterated; `len` is the number of batches.

    Args:
        split: where the rows are.
        keys: the F categorical features, multi-valued ones last.
        batch_size: B.
        order: (seed, epoch) to shuffle by, or None for the order of the file.
        drop_last: leave out a last batch of fewer rows.
        window: rows held in memory when shuffling.
    """

    def __init__(
        self,
        split: SplitFile,
        keys: list[str],
        batch_size: int,
        order: tuple[int, int] | None,
        drop_last: bool,
        window: int,
    ) -> None:
        self._split = split
        self._keys = keys
        self._batch_size = batch_size
        self._order = order
        self._window = window
        self._rows = split.rows // batch_size * batch_size if drop_last else split.rows
        self._layouts: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __len__(self) -> int:
        return -(-self._rows // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        batches = self._make()
        # A single worker that holds at most one batch: an exception arrives with the batch it belongs to, and a
        # consumer that stops early closes this generator, which waits for that one batch and ends the thread.
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as worker:
            pending = worker.submit(next, batches, None)
            while (batch := pending.result()) is not None:
                pending = worker.submit(next, batches, None)
                yield batch

    def _make(self) -> Iterator[Batch]:
        """Fill one batch after the other from parts that are cut without regard to batches."""
        left = self._rows
        if left == 0:
            return
        target = _Target.empty(self._split, min(self._batch_size, left))
        for part, order in self._parts():
            start = 0
            while start < len(order):
                take = min(len(order) - start, target.room)
                target.fill(part, order[start : start + take])
                start += take
                if target.room == 0:
                    yield self._batch(target)
                    left -= len(target.labels)
                    if left == 0:
                        return
                    target = _Target.empty(self._split, min(self._batch_size, left))

    def _parts(self) -> Iterator[tuple[Columns | Rows, "range | np.ndarray"]]:
        """Yield all rows once: some of them, and in which order they come."""
        rows = self._split.rows
        if self._order is None:
            for start in range(0, rows, self._batch_size):
                for piece in self._split.pieces(start, min(start + self._batch_size, rows)):
                    yield piece, range(len(piece.labels))
            return
        random = np.random.default_rng(self._order)
        length = max(self._window // _PIECES, 1)
        if rows <= self._window:
            windows = [[(0, rows)]]
        else:
            ranges = [(start, min(start + length, rows)) for start in range(0, rows, length)]
            shuffled = [ranges[i] for i in random.permutation(len(ranges))]
            windows = [shuffled[i : i + _PIECES] for i in range(0, len(shuffled), _PIECES)]
        for window in windows:
            rows_of_window = self._split.gather(window)
            yield rows_of_window, random.permutation(len(rows_of_window.labels))

    def _batch(self, target: "_Target") -> Batch:
        rows, keys = len(target.labels), self._keys
        if target.bags:
            return Batch(torch.from_numpy(target.dense), self._jagged(target), torch.from_numpy(target.labels))
        if rows not in self._layouts:
            offsets = torch.arange(len(keys) * rows + 1)
            self._layouts[rows] = torch.ones(len(keys) * rows, dtype=torch.int64), offsets
        lengths, offsets = self._layouts[rows]
        sparse = KeyedJaggedTensor(
            keys=keys,
            values=torch.from_numpy(target.ids).view(-1),
            lengths=lengths,
            offsets=offsets,
            stride=rows,
            length_per_key=[rows] * len(keys),
            offset_per_key=[i * rows for i in range(len(keys) + 1)],
        )
        return Batch(torch.from_numpy(target.dense), sparse, torch.from_numpy(target.labels))

    def _jagged(self, target: "_Target") -> KeyedJaggedTensor:
        """Put the single ids (F, B) and M features' bags one after the other."""
        singles, rows = target.ids.shape
        bags = [Bags.join(parts, np.int64) for parts in target.bags]
        sizes = [rows] * singles + [len(part.values) for part in bags]
        lengths = np.ones((len(sizes), rows), dtype=np.int64)
        for j, part in enumerate(bags, singles):
            lengths[j] = part.lengths
        return KeyedJaggedTensor(
            keys=self._keys,
            values=torch.from_numpy(np.concatenate([target.ids.reshape(-1), *(part.values for part in bags)])),
            lengths=torch.from_numpy(lengths.reshape(-1)),
            offsets=torch.from_numpy(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])),
            stride=rows,
            length_per_key=sizes,
            offset_per_key=[0, *accumulate(sizes)],
        )


class _Target:
    """The arrays of a batch in the making; ids (F, B) int64, dense (B, K) and labels (B,) float32, M lists of bags."""

    def __init__(self, ids: np.ndarray, dense: np.ndarray, labels: np.ndarray, multi_valued: int) -> None:
        self.bags: list[list[Bags]] = [[] for _ in range(multi_valued)]
        self.ids = ids
        self.dense = dense
        self.labels = labels
        self.room = len(labels)

    @classmethod
    def empty(cls, split: SplitFile, rows: int) -> "_Target":
        return cls(
            np.empty((split.categorical, rows), dtype=np.int64),
            np.empty((rows, split.dense), dtype=np.float32),
            np.empty(rows, dtype=np.float32),
            split.multi_valued,
        )

    def fill(self, part: Columns | Rows, order: "range | np.ndarray") -> None:
        """Copy the given rows to the next free places: a range of columns, or any rows that lie side by side."""
        at = slice(len(self.labels) - self.room, len(self.labels) - self.room + len(order))
        if isinstance(part, Rows):
            # Fetching a row costs one cache miss or two; fetching it column by column would cost one a column.
            self.ids[:, at] = np.take(part.ids, order, axis=0).T
            self.dense[at] = np.take(part.dense, order, axis=0)
            self.labels[at] = part.labels[order]
            for parts, bags in zip(self.bags, part.bags, strict=True):
                parts.append(bags[np.asarray(order)])
        else:
            rows = slice(order[0], order[-1] + 1)
            for j, column in enumerate(part.ids):
                self.ids[j, at] = column[rows]
            for j, column in enumerate(part.dense):
                self.dense[at, j] = column[rows]
            self.labels[at] = part.labels[rows]
            for parts, bags in zip(self.bags, part.bags, strict=True):
                parts.append(bags[rows])
        self.room -= len(order)
