"""Splits that a column of the source decides, worked out once every row is parked, in bounded memory.

`RowSource.split_by` says what the column holds:

- code: which split the row is in, an index into `SPLITS`.
- time: a number that grows with time. The first 8 in 10 rows by time train, the next is validation, the last the test;
  rows of one time stay together.
- day: the number of a day. All days but the last train, the rows of the last are halved, in the order of the source,
  into validation and test.
"""

from collections.abc import Callable, Iterator

import numpy as np

from recemb.datasets.splits import SPLITS
from recemb.options import RecembError

KINDS: dict[str, type[np.generic]] = {"code": np.uint8, "time": np.float64, "day": np.uint16}
"""What `RawChunk.split` holds, by `RowSource.split_by`."""

_STEP = 1 << 20
_DIGIT = 16

Read = Callable[[int, int], np.ndarray]
"""From a range of rows to what the column holds."""


def split_codes(kind: str, read: Read, rows: int, shown: str) -> Iterator[np.ndarray]:
    """Yield the split codes of all rows, uint8, some rows at a time.

    Args:
        kind: one of `KINDS`.
        read: gives the column.
        rows: how many there are.
        shown: what to call the column in a sentence.

    Raises:
        RecembError: a split has no rows.
    """
    if kind == "code":
        codes_of = read
    elif kind == "time":
        first, second = (_ranked(read, rows, rows * tenths // 10) for tenths in (8, 9))

        def codes_of(start: int, stop: int) -> np.ndarray:
            times = read(start, stop)
            return (times >= first).astype(np.uint8) + (times >= second)
    else:
        codes_of = _last_day(read, rows)
    counts = np.zeros(len(SPLITS), dtype=np.int64)
    for start, stop in _ranges(rows):
        codes = codes_of(start, stop).astype(np.uint8, copy=False)
        counts += np.bincount(codes, minlength=len(SPLITS))
        yield codes
    if rows and not counts.all():
        raise RecembError(_nothing_in(kind, SPLITS[int(np.argmin(counts))], shown))


def _nothing_in(kind: str, split: str, shown: str) -> str:
    what = {"valid": "validation", "test": "test", "train": "training"}[split]
    if kind == "code":
        return f"{shown} leaves no row for {what}; mark some as {split}, or split by time or at random."
    if kind == "time":
        return (
            f"{shown} leaves no row for {what}, since too many rows have the same time; name a finer one, or split by "
            "a column of train, valid and test, or at random."
        )
    return (
        f"{shown} leaves no row for {what}: a split by the last day needs two days, and two rows in the last; give "
        "more days, or take dataset.protocol=random."
    )


def _last_day(read: Read, rows: int) -> Read:
    last, count = -1, 0
    for span in _ranges(rows):
        column = read(*span)
        latest = int(column.max())
        if latest > last:
            last, count = latest, 0
        count += int(np.count_nonzero(column == last))
    half = count // 2
    seen = 0

    def codes_of(start: int, stop: int) -> np.ndarray:
        # Called for one range after the other, which is what lets it count.
        nonlocal seen
        of_last = read(start, stop) == last
        place = seen + np.cumsum(of_last)
        seen += int(np.count_nonzero(of_last))
        return of_last.astype(np.uint8) + (of_last & (place > half))

    return codes_of


def _ranked(read: Read, rows: int, rank: int) -> float:
    """Return the float that has a rank, from 0, among all rows: a radix selection, 16 bits a pass."""
    prefix, left = np.uint64(0), rank
    for shift in range(64 - _DIGIT, -1, -_DIGIT):
        counts = np.zeros(1 << _DIGIT, dtype=np.int64)
        for start, stop in _ranges(rows):
            keys = _sortable(read(start, stop))
            if shift < 64 - _DIGIT:
                keys = keys[keys >> np.uint64(shift + _DIGIT) == prefix]
            digits = (keys >> np.uint64(shift)) & np.uint64((1 << _DIGIT) - 1)
            counts += np.bincount(digits.astype(np.int64), minlength=1 << _DIGIT)
        ends = np.cumsum(counts)
        digit = int(np.searchsorted(ends, left, side="right"))
        if digit == len(ends):
            return np.inf  # there are no rows
        left -= int(ends[digit] - counts[digit])
        prefix = (prefix << np.uint64(_DIGIT)) | np.uint64(digit)
    return _unsorted(prefix)


def _sortable(values: np.ndarray) -> np.ndarray:
    """Turn (n,) float64, no NaN among them, into (n,) uint64 in the same order."""
    bits = values.view(np.uint64)
    return np.where(bits >> np.uint64(63), ~bits, bits | np.uint64(1 << 63))


def _unsorted(key: np.uint64) -> float:
    bits = key ^ np.uint64(1 << 63) if key >> np.uint64(63) else ~key
    return float(np.array([bits], dtype=np.uint64).view(np.float64)[0])


def _ranges(rows: int) -> list[tuple[int, int]]:
    return [(start, min(start + _STEP, rows)) for start in range(0, rows, _STEP)]
