"""Reads the cells of single features from a prepared split, a range of rows at a time."""

import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from recemb.datasets import PreparedDataset
from recemb.datasets.columns import SplitFile

CHUNK_ROWS = 1 << 17


class Cells(NamedTuple):
    """The cells of one feature in n rows.

    Attributes:
        ids: (m,) int32 or, where they are raw, int64.
        lengths: (n,) how many each row has, None where that is one.
    """

    ids: np.ndarray
    lengths: np.ndarray | None

    def of_rows(self, values: np.ndarray) -> np.ndarray:
        """Repeat (n,) values of the rows for each of their cells, (m,)."""
        return values if self.lengths is None else np.repeat(values, self.lengths)


def read_cells(
    dataset: PreparedDataset, split: str, features: Sequence[int], bar: "tqdm | None" = None
) -> Iterator[tuple[np.ndarray, list[Cells]]]:
    """Yield (n,) uint8 labels and the cells of some features, in the order of the rows.

    Columns of other features stay unread on disk.

    Args:
        dataset: where the rows are.
        split: which of them.
        features: indices into the data set's features.
        bar: told how many rows have been read.
    """
    rows = SplitFile(dataset.path / f"{split}.arrow", dataset.num_rows(split))
    for start in range(0, rows.rows, CHUNK_ROWS):
        for piece in rows.pieces(start, min(start + CHUNK_ROWS, rows.rows)):
            columns = []
            for feature in features:
                if feature < len(piece.ids):
                    columns.append(Cells(piece.ids[feature], None))
                else:
                    bags = piece.bags[feature - len(piece.ids)]
                    columns.append(Cells(bags.flat, bags.lengths))
            yield piece.labels, columns
            if bar is not None:
                bar.update(len(piece.labels))


def rows_bar(total: int, what: str) -> "tqdm":
    """Show on stderr how many of `total` rows have been read; what takes no time shows nothing."""
    pace = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, desc=what, unit=" rows", unit_scale=True, leave=False, mininterval=pace, delay=2.0)
