"""Writes prepared rows: the Arrow file of one split, its running fingerprint and what its labels amount to."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import ipc

from recemb.datasets.bags import Bags

RECORD_BATCH_ROWS = 1 << 18
RECORD_BATCH_VALUES = 1 << 24
_BINS = 1 << 16


def schema_of(
    dense_names: tuple[str, ...],
    categorical_names: tuple[str, ...],
    multi_valued: tuple[str, ...] = (),
    raw: bool = False,
) -> pa.Schema:
    """Return the columns of a split file: label uint8, dense float32 (NaN = missing), ids, lists of ids.

    Args:
        dense_names: of the K dense features.
        categorical_names: of the F features with one id a row.
        multi_valued: of the M features with a list of ids a row.
        raw: ids are int64 instead of int32.
    """
    ids = pa.int64() if raw else pa.int32()
    return pa.schema(
        [pa.field("label", pa.uint8(), nullable=False)]
        + [pa.field(name, pa.float32(), nullable=False) for name in dense_names]
        + [pa.field(name, ids, nullable=False) for name in categorical_names]
        + [pa.field(name, pa.list_(ids), nullable=False) for name in multi_valued]
    )


class SplitWriter:
    """Gathers rows into large record batches, in which every column is contiguous.

    A batch has `RECORD_BATCH_ROWS` rows, or fewer where the bags of one feature hold `RECORD_BATCH_VALUES` values.

    Args:
        path: the Arrow file to write.
        schema: of `schema_of`.
        knows_probability: rows come with the true probability of a 1.
    """

    def __init__(self, path: Path, schema: pa.Schema, knows_probability: bool) -> None:
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = ipc.new_file(self._sink, schema)
        self._schema = schema
        flat = [field for field in schema if not pa.types.is_list(field.type)]
        self._lists = [field.type for field in schema][len(flat) :]
        self._buffers = [np.empty(RECORD_BATCH_ROWS, dtype=field.type.to_pandas_dtype()) for field in flat]
        self._bags: list[list[Bags]] = [[] for _ in self._lists]
        self._filled = 0
        self._digest = hashlib.sha256()
        self._ceiling = _Ceiling() if knows_probability else None
        self.rows = 0
        self.positives = 0

    def append(
        self,
        columns: list[np.ndarray],
        bags: list[Bags],
        rows: slice | np.ndarray,
        probability: np.ndarray | None,
    ) -> None:
        """Add the given rows of columns that are in the order of the schema.

        Args:
            columns: (n,) arrays of the types of the schema.
            bags: n bags for each of its lists.
            rows: a slice, or (n,) bool.
            probability: (n,) float64, or None.
        """
        chosen, lists = [column[rows] for column in columns], [column[rows] for column in bags]
        n = len(chosen[0])
        self.rows += n
        self.positives += int(np.count_nonzero(chosen[0]))
        if self._ceiling is not None and probability is not None:
            self._ceiling.add(probability[rows], chosen[0])
        done = 0
        while done < n:
            take = min(n - done, RECORD_BATCH_ROWS - self._filled)
            for buffer, column in zip(self._buffers, chosen, strict=True):
                buffer[self._filled : self._filled + take] = column[done : done + take]
            for pending, part in zip(self._bags, lists, strict=True):
                pending.append(part[done : done + take])
            done += take
            self._filled += take
            if self._filled == RECORD_BATCH_ROWS or self._has_many_values():
                self._flush()

    def finish(self) -> None:
        """Write what is left and the footer, without which the file does not open."""
        if self._filled:
            self._flush()
        self._writer.close()
        self._sink.close()

    def abandon(self) -> None:
        """Give the file descriptor back; the file stays unfinished."""
        self._sink.close()

    def digest(self) -> bytes:
        """Return the sha256 of all columns as written."""
        return self._digest.digest()

    def ceiling(self) -> dict[str, float | None] | None:
        """Return the logloss and AUC of the true probabilities on the rows of this split."""
        return self._ceiling.scores() if self._ceiling else None

    def _has_many_values(self) -> bool:
        return any(sum(len(bags.flat) for bags in pending) >= RECORD_BATCH_VALUES for pending in self._bags)

    def _flush(self) -> None:
        columns = [buffer[: self._filled] for buffer in self._buffers]
        for column in columns:
            self._digest.update(column.data)
        arrays = [pa.array(column) for column in columns]
        for kind, pending in zip(self._lists, self._bags, strict=True):
            bags = Bags.join(pending, kind.value_type.to_pandas_dtype())
            pending.clear()
            self._digest.update(bags.offsets.data)
            self._digest.update(bags.values.data)
            offsets = pa.array(bags.offsets, pa.int32())  # refuses what does not fit
            arrays.append(pa.ListArray.from_arrays(offsets, pa.array(bags.values), type=kind))
        self._writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=self._schema))
        self._filled = 0


class _Ceiling:
    """Logloss and AUC of probabilities in one pass and constant memory; the AUC is over 65,536 bins of the logit."""

    def __init__(self) -> None:
        self._loss = 0.0
        self._counts = np.zeros((2, _BINS), dtype=np.int64)

    def add(self, probability: np.ndarray, labels: np.ndarray) -> None:
        self._loss -= float(np.log(np.where(labels == 1, probability, 1 - probability)).sum())
        logit = np.log(probability) - np.log1p(-probability)
        bins = np.clip((logit + 16) * (_BINS / 32), 0, _BINS - 1).astype(np.int64)
        for label in (0, 1):
            self._counts[label] += np.bincount(bins[labels == label], minlength=_BINS)

    def scores(self) -> dict[str, float | None]:
        """Return `logloss`, and `auc`, which is None where all labels are the same."""
        negatives, positives = self._counts
        pairs = float(negatives.sum()) * float(positives.sum())
        below = np.cumsum(negatives) - negatives
        won = float((positives * (below + negatives / 2)).sum())
        rows = int(self._counts.sum())
        return {"logloss": self._loss / rows, "auc": won / pairs if pairs else None}
