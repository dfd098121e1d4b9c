"""Batches of a prepared split, made one ahead on a thread of their own."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch.fx._symbolic_trace import PHWithMeta
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from recemb.datasets.bags import Bags
from recemb.datasets.columns import Columns, Rows, SplitFile
from recemb.options import RecembError

_PIECES = 16


class Batch(NamedTuple):
    """B rows with K dense and F categorical features.

    Attributes:
        dense: (B, K) float32, NaN = missing.
        sparse: F keys of int64 ids, stride B: values feature by feature, (F * B,) with all lengths 1, unless some
            features are multi-valued; those come last and have any number of ids a row.
        labels: (B,) float32, 0 or 1.
        total: rows of this batch over all processes; None = those here.
        counted: how many of the rows here, the first ones, count; those after are another process's. None = all.
    """

    dense: torch.Tensor
    sparse: KeyedJaggedTensor
    labels: torch.Tensor
    total: int | None = None
    counted: int | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """Return the batch on a device."""
        place = torch.device(device)
        return self._replace(
            dense=self.dense.to(place, non_blocking=non_blocking),
            sparse=self.sparse.to(place, non_blocking=non_blocking),
            labels=self.labels.to(place, non_blocking=non_blocking),
        )

    def pin_memory(self) -> "Batch":
        """Return the batch in memory that a GPU copies from by itself."""
        return self._replace(
            dense=self.dense.pin_memory(), sparse=self.sparse.pin_memory(), labels=self.labels.pin_memory()
        )

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the batch's memory until a GPU's stream is done with it."""
        for part in (self.dense, self.sparse, self.labels):
            part.record_stream(stream)

    def to_proxy_tuple(self, _: torch.nn.Module) -> tuple[PHWithMeta, ...]:
        """Say to torchrec's pipelines which fields models take, in their order."""
        return PHWithMeta("dense"), PHWithMeta("sparse")


# torchrec's pipelines take it to the device.
Pipelineable.register(Batch)


class Batches:
    """One pass over a split, as often as it is iterated; `len` is the number of batches of the whole pass.

    Of a batch of n rows, process r of R has rows [n * r // R, n * (r + 1) // R), in their order: together the processes
    have what one alone would. Where that is one less than others have, a row of the next process follows that does not
    count, since collectives want all processes to have as many, and to take every step.

    Args:
        split: where the rows are.
        keys: the F categorical features, multi-valued ones last.
        batch_size: B, over all processes.
        order: (seed, epoch) to shuffle by, or None for the order of the file.
        drop_last: leave out a last batch of fewer rows.
        window: rows held in memory when shuffling.
        share: (r, R), which of how many processes this is.
        start: the batch that iteration begins with.
        pin_memory: give batches in memory that a GPU copies from by itself.

    Raises:
        RecembError: there is no such process, or no such batch to begin with.
    """

    def __init__(
        self,
        split: SplitFile,
        keys: list[str],
        batch_size: int,
        order: tuple[int, int] | None,
        drop_last: bool,
        window: int,
        share: tuple[int, int] = (0, 1),
        start: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self._split = split
        self._keys = keys
        self._batch_size = batch_size
        self._order = order
        self._window = window
        self._rows = split.rows // batch_size * batch_size if drop_last else split.rows
        self._layouts: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._rank, self._ranks = share
        self._start = start
        self._pin_memory = pin_memory
        if not 0 <= self._rank < self._ranks:
            raise RecembError(
                f"share=({self._rank}, {self._ranks}) is out of range; it must be (rank, ranks) with 0 <= rank < ranks."
            )
        if not 0 <= start <= len(self):
            raise RecembError(
                f"start={start} is out of range; this pass has {len(self)} batches, so it must be 0 to {len(self)}."
            )

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

    def _span(self, number: int) -> "_Span":
        first = number * self._batch_size
        total = min(self._batch_size, self._rows - first)
        begin, end = share_of(total, self._rank, self._ranks)
        return _Span(first + begin, first + begin + -(-total // self._ranks), total, counted=end - begin)

    def _make(self) -> Iterator[Batch]:
        """Fill one batch after the other from parts that are cut without regard to batches."""
        if self._start == len(self):
            return
        parts = self._parts()
        at, part, order = next(parts)
        for number in range(self._start, len(self)):
            span = self._span(number)
            target = _Target.empty(self._split, span.end - span.begin)
            while target.room > 0:
                begin = span.end - target.room
                while at + len(order) <= begin:
                    at, part, order = next(parts)
                target.fill(part, order[begin - at : span.end - at])
            yield self._batch(target, span)

    def _parts(self) -> Iterator[tuple[int, Columns | Rows, "range | np.ndarray"]]:
        """Yield from the start on what holds this process's rows: where in the pass it begins, rows, their order."""
        if self._order is None:
            for number in range(self._start, len(self)):
                at, end, *_ = self._span(number)
                for piece in self._split.pieces(at, end):
                    yield at, piece, range(len(piece.labels))
                    at += len(piece.labels)
            return
        random = np.random.default_rng(self._order)
        at = 0
        for window in self._windows(random):
            rows = sum(stop - start for start, stop in window)
            # The order is drawn for a skipped window, too, so that those after it have theirs.
            part = self._split.gather(window) if self._wanted(at, at + rows) else None
            order = random.permutation(rows)
            if part is not None:
                yield at, part, order
            at += rows

    def _windows(self, random: np.random.Generator) -> list[list[tuple[int, int]]]:
        """Cut the split into windows of ranges [start, stop) of rows, in the order they come in."""
        rows = self._split.rows
        if rows <= self._window:
            return [[(0, rows)]]
        length = max(self._window // _PIECES, 1)
        ranges = [(start, min(start + length, rows)) for start in range(0, rows, length)]
        shuffled = [ranges[i] for i in random.permutation(len(ranges))]
        return [shuffled[i : i + _PIECES] for i in range(0, len(shuffled), _PIECES)]

    def _wanted(self, begin: int, end: int) -> bool:
        """Return whether any of the places [begin, end) of the pass is this process's."""
        number = max(self._start, begin // self._batch_size)
        if number < len(self) and self._span(number).end <= begin:
            number += 1  # this process's rows of the batch that is under way came before
        return number < len(self) and self._span(number).begin < end

    def _batch(self, target: "_Target", span: "_Span") -> Batch:
        batch = Batch(
            torch.from_numpy(target.dense),
            self._jagged(target) if target.bags else self._single_valued(target),
            torch.from_numpy(target.labels),
            span.total,
            span.counted,
        )
        return batch.pin_memory() if self._pin_memory else batch

    def _single_valued(self, target: "_Target") -> KeyedJaggedTensor:
        """Put single ids (F, B) one feature after the other, with lengths and offsets that batches of a size share."""
        rows, keys = len(target.labels), self._keys
        if rows not in self._layouts:
            offsets = torch.arange(len(keys) * rows + 1)
            self._layouts[rows] = torch.ones(len(keys) * rows, dtype=torch.int64), offsets
        lengths, offsets = self._layouts[rows]
        return KeyedJaggedTensor(
            keys=keys,
            values=torch.from_numpy(target.ids).view(-1),
            lengths=lengths,
            offsets=offsets,
            stride=rows,
            length_per_key=[rows] * len(keys),
            offset_per_key=[i * rows for i in range(len(keys) + 1)],
        )

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


def share_of(total: int, rank: int, ranks: int) -> tuple[int, int]:
    """Which rows [begin, end) of a batch of so many are one process's own."""
    return total * rank // ranks, total * (rank + 1) // ranks


class _Span(NamedTuple):
    """A process's rows of a batch: places [begin, end) of the pass, of `total` rows over all processes.

    All processes have as many, of which the first `counted` are their own.
    """

    begin: int
    end: int
    total: int
    counted: int


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
