"""Counts the values of every feature over the training rows and numbers them by descending frequency."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import ipc

from recemb.datasets.bags import Bags
from recemb.datasets.features import OUT_OF_VOCABULARY_KEY
from recemb.datasets.hexadecimal import parts_of
from recemb.datasets.parallel import ordered
from recemb.datasets.splits import SPLITS
from recemb.datasets.spool import Spool

WINDOW_ROWS = 1 << 23
_TEXTS = 1 << 16
_LOW = np.uint64(0xFFFFFFFF)
_HIGH = np.uint64(32)


class Digest(Protocol):
    """A hash in the making."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Add bytes."""


Mapper = Callable[[np.ndarray, np.ndarray | None], np.ndarray]
"""From (n,) uint32 tokens and (n,) bool missing (None = none is) to (n,) int32 ids, int64 where ids are raw."""


class ValueCounts:
    """How often each value of one feature was seen; grows by merging sorted runs.

    Value and count share one uint64 (value in the high half), so that sorting sorts both: 8 bytes a distinct value.
    """

    def __init__(self) -> None:
        self.packed = np.empty(0, dtype=np.uint64)
        self.missing = 0

    @property
    def distinct(self) -> int:
        """Different values seen, the missing one among them."""
        return len(self.packed) + (self.missing > 0)

    def add(self, tokens: np.ndarray, missing: np.ndarray | None) -> None:
        """Count (n,) uint32 tokens, leaving out those that are (n,) bool missing (None = none is)."""
        if missing is not None and (absent := int(np.count_nonzero(missing))):
            self.missing += absent
            tokens = tokens[~missing]
        # Sorting needs 4 bytes a row; a hash table of mostly different values needs ten times as much.
        tokens = np.sort(tokens)
        starts = _starts_of_runs(tokens)
        packed = tokens[starts].astype(np.uint64) << _HIGH
        packed |= np.diff(starts, append=len(tokens)).astype(np.uint64)
        self.packed = _merge(self.packed, packed) if len(self.packed) else packed

    def number(self, least_count: int) -> "Vocabulary":
        """Keep the values seen at least `least_count` times and order them by falling count, then by value.

        The missing value takes part like any other and comes first among equals.
        """
        counts = self.packed & _LOW
        out = int(counts[counts < least_count].sum())
        packed = self.packed[counts >= least_count]
        distinct = self.distinct
        # Count in the high half, turned round, so that one sort gives falling counts and rising values.
        packed = (_LOW - (packed & _LOW)) << _HIGH | packed >> _HIGH
        packed.sort()
        values, counts = (packed & _LOW).astype(np.uint32), (_LOW - (packed >> _HIGH)).astype(np.int64)
        if 0 < self.missing < least_count:
            out += self.missing
        if self.missing < max(least_count, 1):
            return Vocabulary(values, counts, -1, out, distinct)
        at = int(np.searchsorted(-counts, -self.missing, side="left"))
        return Vocabulary(np.insert(values, at, 0), np.insert(counts, at, self.missing), at, out, distinct)


def _starts_of_runs(values: np.ndarray) -> np.ndarray:
    """Return where in (n,) sorted values each different one begins, (d,) int64."""
    fresh = np.ones(len(values), dtype=np.bool_)
    np.not_equal(values[1:], values[:-1], out=fresh[1:])
    return np.flatnonzero(fresh)


def _merge(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Merge two arrays of packed values and counts, adding the counts of values that are in both."""
    packed = np.concatenate([one, other])
    packed.sort()
    starts = _starts_of_runs(packed >> _HIGH)
    values = packed[starts] >> _HIGH << _HIGH
    packed &= _LOW
    values |= np.add.reduceat(packed, starts)
    return values


@dataclass
class Vocabulary:
    """The ids of one feature: entry i has id i + 1, and id 0 stands for everything that is not here.

    Attributes:
        values: (V - 1,) uint32; what is under the missing value does not matter.
        counts: (V - 1,) int64 training frequency, falling.
        missing: the entry of the missing value, -1 when it has no id.
        out_of_vocabulary_rows: training rows with id 0; of a multi-valued feature, values.
        distinct: values seen in training, those without an id and the missing value included.
        texts: from values, null where missing, to the texts they are tokens of; None where they stand for themselves.
    """

    values: np.ndarray
    counts: np.ndarray
    missing: int
    out_of_vocabulary_rows: int
    distinct: int
    texts: Callable[[pa.Array], pa.LargeStringArray] | None = None

    @property
    def num_embeddings(self) -> int:
        """V, with the out-of-vocabulary row."""
        return len(self.values) + 1

    def table(self) -> pa.Table:
        """Return it as it is stored: value (null = missing) and count in id order."""
        return pa.Table.from_batches(self._batches(), self._schema())

    def write(self, path: Path) -> None:
        """Write the Arrow file."""
        with pa.OSFile(str(path), "wb") as sink, ipc.new_file(sink, self._schema()) as writer:
            for batch in self._batches():
                writer.write_batch(batch)

    def _schema(self) -> pa.Schema:
        value = pa.uint32() if self.texts is None else pa.string()
        return pa.schema(
            [pa.field("value", value), pa.field("count", pa.int64())],
            metadata={OUT_OF_VOCABULARY_KEY: str(self.out_of_vocabulary_rows)},
        )

    def _batches(self) -> Iterator[pa.RecordBatch]:
        """Cut it into parts: one of numbers, several of texts, which may be long."""
        mask = np.zeros(len(self.values), dtype=np.bool_)
        if self.missing >= 0:
            mask[self.missing] = True
        step = len(self.values) if self.texts is None else _TEXTS
        for start in range(0, max(len(self.values), 1), max(step, 1)):
            part = slice(start, start + step)
            values = pa.array(self.values[part], mask=mask[part])
            if self.texts is not None:
                values = self.texts(values).cast(pa.string())
            yield pa.RecordBatch.from_arrays([values, pa.array(self.counts[part])], schema=self._schema())

    def mapper(self) -> Mapper:
        """Return the function that looks values up."""
        return number_by(self.values, self.missing)

    def feed(self, digest: Digest, name: str) -> None:
        """Add to a fingerprint what the ids of the feature stand for."""
        digest.update(f"{name} {self.missing}".encode())
        if self.texts is None:
            digest.update(self.values.data)
        else:
            for batch in self._batches():
                offsets, data = parts_of(batch.column(0))
                digest.update(np.diff(offsets).data)
                digest.update(data[offsets[0] : offsets[-1]].data)
        digest.update(self.counts.data)


@dataclass
class RawIds:
    """The ids of one feature that has no vocabulary: its raw values, and -1 for a missing one.

    Attributes:
        distinct: values seen in training, the missing value included.
    """

    distinct: int

    @property
    def num_embeddings(self) -> int:
        """As many as a vocabulary of every value would have."""
        return self.distinct + 1

    def mapper(self) -> Mapper:
        """Return the function that widens values."""
        return widen

    def feed(self, digest: Digest, name: str) -> None:
        """Add the feature to a fingerprint; its ids say all by themselves."""
        digest.update(f"{name} raw".encode())


def number_by(values: np.ndarray, missing_entry: int) -> Mapper:
    """Return the function that looks values up; see `Vocabulary` for the two arguments."""
    keys = np.delete(values, missing_entry) if missing_entry >= 0 else values
    index = pd.Index(keys)
    missing_id = missing_entry + 1

    def ids_of(tokens: np.ndarray, missing: np.ndarray | None) -> np.ndarray:
        ids = (index.get_indexer(tokens) + 1).astype(np.int32)
        if missing_id:
            ids += (ids >= missing_id).view(np.int8)  # the missing value has no key, so later keys sit one low
        if missing is not None:
            ids[missing] = missing_id
        return ids

    return ids_of


def widen(tokens: np.ndarray, missing: np.ndarray | None) -> np.ndarray:
    """Return raw ids, (n,) int64: the tokens themselves, and -1 for a missing value."""
    ids = tokens.astype(np.int64)
    if missing is not None:
        ids[missing] = -1
    return ids


def count_values(
    spool: Spool, codes: Callable[[int, int], np.ndarray], pool: ThreadPoolExecutor, advance: Callable[[int], object]
) -> list[ValueCounts]:
    """Count every feature over the training rows of a spool.

    Args:
        spool: the raw rows.
        codes: from a range of rows to (n,) uint8 split codes.
        pool: threads; a feature is one piece of work.
        advance: called with a number of rows whenever one feature has got through them.

    Returns:
        One `ValueCounts` a feature, multi-valued ones last.
    """
    features = range(spool.categorical + spool.multi_valued)
    counts = [ValueCounts() for _ in features]
    for start, stop, training in _windows(spool, codes):

        def count(feature: int, start: int = start, stop: int = stop, training: np.ndarray = training) -> int:
            if feature >= spool.categorical:
                for bags in _training_bags(spool, feature - spool.categorical, start, stop, training):
                    counts[feature].add(bags.flat, None)
                return stop - start
            tokens, missing = spool.tokens(feature, start, stop)
            if not training.all():
                tokens, missing = tokens[training], missing[training]
            counts[feature].add(tokens, missing)
            return stop - start

        # Two at a time, however many cores there are: this is where the memory goes.
        for done in ordered(pool, count, features, ahead=2):
            advance(done)
    return counts


def _training_bags(spool: Spool, feature: int, start: int, stop: int, training: np.ndarray) -> Iterator[Bags]:
    # A window of rows may hold any number of values, and memory goes by values.
    for low, high in spool.spans(feature, start, stop, WINDOW_ROWS):
        yield spool.bags(feature, low, high)[training[low - start : high - start]]


def _windows(spool: Spool, codes: Callable[[int, int], np.ndarray]) -> Iterator[tuple[int, int, np.ndarray]]:
    for start in range(0, spool.rows, WINDOW_ROWS):
        stop = min(start + WINDOW_ROWS, spool.rows)
        training = codes(start, stop) == SPLITS.index("train")
        if training.any():
            yield start, stop, training
