"""How often each id of a feature is in the training rows: known from preparation, or counted where ids are raw."""

import dataclasses

import numpy as np
import pyarrow as pa
from pyarrow import ipc

from recemb.datasets import Feature, PreparedDataset
from recemb.datasets.vocabulary import Mapper, ValueCounts
from recemb.inspection.cells import Cells

MEMORY_BYTES = 1 << 30
"""Counters held at a time; features that need more together take turns."""

# Counts of training, positive and test cells, their copies while drift is measured, and a rate.
_BYTES_AN_ID = 48
# Sorted values with their counts, and a hash table from values to numbers.
_BYTES_A_RAW_ID = 72
_LEAST_MERGED = 1 << 18


def bytes_needed(feature: Feature) -> int:
    """About how much memory the counters of a feature take, in bytes."""
    return feature.num_embeddings * (_BYTES_AN_ID + (_BYTES_A_RAW_ID if feature.raw else 0))


class Counted:
    """The counters of one feature with V ids.

    Raw values are first given to `add_raw`, all of training, and numbered by `number_raw`; then they have ids as those
    of a vocabulary of every value: by falling frequency from 1 on, and 0 for what training does not show.

    Args:
        dataset: whose feature it is.
        index: which of its features.

    Attributes:
        feature: what preparation knows of it.
        least_count: a value seen fewer times than this in training has no id.
        distinct: different values in training.
        missing: how many training cells have a missing value; None where these have no id of their own.
        values: (V,) int64 what to look up in a table for each id: the id, or the raw value (-1 for a missing one;
            nothing for id 0).
        counts: (V,) int64 training cells by id.
        positives: (V,) int64, of these the ones in rows with label 1.
        test: (V,) int64 test cells by id.
    """

    def __init__(self, dataset: PreparedDataset, index: int) -> None:
        # A copy, which forgets its counts when we do.
        self.feature = dataclasses.replace(dataset.features[index])
        config = dataset.meta["config"]
        least = config.get("min_counts", {}).get(self.feature.name, config.get("min_count", 1))
        self.least_count = 1 if self.feature.raw else int(least)
        self.distinct = int(dataset.meta["categorical"][index].get("distinct", self.feature.num_embeddings - 1))
        self.missing: int | None = None
        self.valid_cells = self.valid_unseen = 0
        self.gain = self.gain_squared = 0.0
        self._mapper: Mapper | None = None
        self._raw = ValueCounts()
        self._waiting: list[np.ndarray] = []
        if self.feature.counts is not None:
            self._take(self.feature.counts.numpy())
            self.missing = _missing_cells(self.feature, self.counts)

    @property
    def values(self) -> np.ndarray:
        """What to look up for each id, see the class."""
        return np.arange(len(self.counts)) if self._mapper is None else self._values

    def add_raw(self, cells: Cells) -> None:
        """Count raw values of training rows; does nothing where ids are those of a vocabulary."""
        if self.feature.raw:
            self._waiting.append(cells.ids)
            # Every merge goes over all values that there are, so it pays only for about as many.
            if sum(map(len, self._waiting)) >= max(self.feature.num_embeddings, _LEAST_MERGED):
                self._merge()

    def number_raw(self) -> None:
        """Number the raw values; does nothing where ids are those of a vocabulary."""
        if not self.feature.raw:
            return
        self._merge()
        vocabulary = self._raw.number(1)
        self.missing, self.distinct, self._mapper = self._raw.missing, vocabulary.distinct, vocabulary.mapper()
        self._raw = ValueCounts()
        self._values = np.append(0, vocabulary.values.astype(np.int64))
        if vocabulary.missing >= 0:
            self._values[1 + vocabulary.missing] = -1
        self._take(np.append(0, vocabulary.counts))

    def ids(self, cells: Cells) -> np.ndarray:
        """Give (m,) ids in 0 .. V - 1."""
        if self._mapper is None:
            return cells.ids
        return self._mapper(cells.ids.astype(np.uint32), cells.ids < 0)

    def _merge(self) -> None:
        ids = np.concatenate([np.zeros(0, dtype=np.int64), *self._waiting])
        self._waiting.clear()
        self._raw.add(ids.astype(np.uint32), ids < 0)

    def _take(self, counts: np.ndarray) -> None:
        self.counts = counts
        self.positives, self.test = np.zeros_like(counts), np.zeros_like(counts)


def _missing_cells(feature: Feature, counts: np.ndarray) -> int | None:
    assert feature.vocabulary is not None
    with pa.memory_map(str(feature.vocabulary)) as source, ipc.open_file(source) as reader:
        values = reader.read_all()["value"]
        if values.null_count:
            return int(counts[1 + int(np.argmax(values.is_null().to_numpy()))])
    # Missing cells fewer than the least count are among the out-of-vocabulary ones, if there are any.
    return 0 if counts[0] == 0 else None
