"""How often each id of each feature is looked up, in training and in the held-out rows."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from recemb.datasets import PreparedDataset
from recemb.inspection.cells import read_cells
from recemb.inspection.counting import MEMORY_BYTES, Counted, bytes_needed

HELD_OUT = ("valid", "test")


class IdTraffic(NamedTuple):
    """The traffic of one feature with V ids; id 0 is what training does not show, or shows too rarely.

    Attributes:
        values: (V,) int64, what a table is asked for: the id, or the raw value.
        raw: values are raw ones; nothing is asked for in the place of id 0.
        train: (V,) int64 training cells.
        held_out: of `valid` and `test`, the same.
    """

    values: np.ndarray
    raw: bool
    train: np.ndarray
    held_out: dict[str, np.ndarray]


class Traffic:
    """The traffic of all features of a data set, as often as it is iterated.

    All of it stays in memory where that is little; else the columns of a feature are read again each time, so that one
    feature is held at a time.

    Args:
        dataset: the prepared rows.
        memory_bytes: what is little.
        progress: show a bar on stderr.
    """

    def __init__(self, dataset: PreparedDataset, memory_bytes: int = MEMORY_BYTES, *, progress: bool = True) -> None:
        self._dataset = dataset
        self._progress = progress
        self._keeps = sum(map(bytes_needed, dataset.features)) <= memory_bytes
        self._kept: dict[int, IdTraffic] = {}

    def __len__(self) -> int:
        return len(self._dataset.features)

    def __iter__(self) -> Iterator[IdTraffic]:
        features = range(len(self))
        # What takes no time shows nothing.
        for index in tqdm(
            features, desc="traffic", unit=" features", leave=False, delay=2.0, disable=not self._progress
        ):
            found = self._kept.get(index) or self._of(index)
            if self._keeps:
                self._kept[index] = found
            yield found

    def _of(self, index: int) -> IdTraffic:
        counted = Counted(self._dataset, index)
        if counted.feature.raw:
            for _, (cells,) in read_cells(self._dataset, "train", [index]):
                counted.add_raw(cells)
            counted.number_raw()
        held_out = {}
        for split in HELD_OUT:
            held_out[split] = np.zeros_like(counted.counts)
            for _, (cells,) in read_cells(self._dataset, split, [index]):
                np.add.at(held_out[split], counted.ids(cells), 1)
        return IdTraffic(counted.values, counted.feature.raw, counted.counts, held_out)
