"""Bags: any number of values a row, of one multi-valued feature, as one flat array and where each bag ends in it."""

from collections.abc import Sequence

import numpy as np


class Bags:
    """The values of n rows, in order within each row; a row may have none.

    Attributes:
        values: holds every bag's values one bag after the other, with anything before the first and after the last.
        offsets: (n + 1,) integers: bag i is values[offsets[i] : offsets[i + 1]].
    """

    __slots__ = ("offsets", "values")

    def __init__(self, values: np.ndarray, offsets: np.ndarray) -> None:
        self.values = values
        self.offsets = offsets

    @classmethod
    def of(cls, values: np.ndarray, lengths: np.ndarray) -> "Bags":
        """Cut (m,) values into n bags of (n,) `lengths`, which add up to m."""
        offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        if offsets[-1] != len(values):
            raise ValueError(f"lengths add up to {offsets[-1]} instead of {len(values)}")
        return cls(values, offsets)

    @classmethod
    def join(cls, parts: Sequence["Bags"], dtype: type[np.generic] | np.dtype) -> "Bags":
        """Copy several, one after the other, into one with values of a type that holds theirs."""
        values = np.concatenate([np.empty(0, dtype), *(part.flat for part in parts)], dtype=dtype)
        return cls.of(values, np.concatenate([np.empty(0, np.int64), *(part.lengths for part in parts)]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def flat(self) -> np.ndarray:
        """(m,) the values of these bags and no others, as a view."""
        return self.values[self.offsets[0] : self.offsets[-1]]

    @property
    def lengths(self) -> np.ndarray:
        """(n,) values in each bag."""
        return np.diff(self.offsets)

    def __getitem__(self, rows: slice | np.ndarray) -> "Bags":
        """Choose rows: a slice without a step (a view), (n,) bool, or (k,) integers in any order (copies)."""
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(len(self))
            return Bags(self.values, self.offsets[start : max(stop, start) + 1])
        lengths = self.lengths
        if rows.dtype == np.bool_:
            return Bags.of(self.flat[np.repeat(rows, lengths)], lengths[rows])
        lengths = lengths[rows]
        ends = np.cumsum(lengths, dtype=np.int64)
        # Where each chosen bag begins here minus where it will begin; adding a place to come gives the place it is at.
        shift = self.offsets[:-1][rows] - (ends - lengths)
        total = int(ends[-1]) if len(ends) else 0
        return Bags.of(self.values[np.repeat(shift, lengths) + np.arange(total)], lengths)
