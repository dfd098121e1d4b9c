"""From the columns of a table to the rows of a preparation: labels, numbers, texts with their places, splits."""

from collections import Counter
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import compute as pc

from recemb.datasets.bags import Bags
from recemb.datasets.base import RawChunk
from recemb.datasets.spelling import Decimal, texts_of_floats
from recemb.datasets.tabular_columns import Columns
from recemb.datasets.tabular_files import Piece, Rows
from recemb.datasets.tabular_labels import label_rule, words_of
from recemb.datasets.tabular_numbers import TRANSFORMS, read_numbers
from recemb.datasets.text_index import HashedTexts
from recemb.options import RecembError

AS_WRITTEN = " as written"
"""After the name of a column, that of the one that holds its values as the file has them."""
_SPLITS = {
    "train": 0, "training": 0, "valid": 1, "validation": 1, "val": 1, "dev": 1, "test": 2, "testing": 2,
}  # fmt: skip

Derive = Callable[[pa.Table], pa.Table]
"""Makes features of the columns in the files."""


class Parsed(NamedTuple):
    """A chunk of rows.

    Attributes:
        chunk: the rows.
        skipped: rows left out, by reason.
        clock: what times are written as: "numbers", "dates", or "" where there are none.
        where: from a row of the piece to where it is.
    """

    chunk: RawChunk
    skipped: Counter[str]
    clock: str
    where: Callable[[int], str]


class _Wrong(NamedTuple):
    """Rows of one column that cannot be.

    Attributes:
        column: its name.
        rows: (n,) bool.
        needed: what its values must be, after "is not".
    """

    column: str
    rows: np.ndarray
    needed: str


class RowParser:
    """Turns pieces of a table into chunks.

    Args:
        columns: what each column is.
        skip_bad: leave out rows that cannot be, instead of raising.
        raw_ids: values are ids, and not texts.
        derive: makes features of the columns in the files.
    """

    def __init__(self, columns: Columns, skip_bad: bool, raw_ids: bool, derive: Derive | None = None) -> None:
        self._columns = columns
        self._skip_bad = skip_bad
        self._raw_ids = raw_ids
        self._derive = derive

    @cached_property
    def _rule(self) -> Callable[[str], int | None]:
        return label_rule(self._columns.positive, "dataset.columns")

    def __call__(self, piece: Piece) -> Parsed:
        """Parse a piece.

        Raises:
            RecembError: a row cannot be, and such are not left out; or a column cannot be what it shall be.
        """
        rows = piece.read()
        skipped = Counter(rows.skipped)
        table = rows.table if self._derive is None else self._derive(rows.table)
        rows = rows._replace(table=table.combine_chunks())
        labels, wrong = self._labels(rows.table)
        dense = {}
        for name in self._columns.dense:
            dense[name], gaps = read_numbers(_flat(rows.table, name))
            if gaps is not None:
                wrong.append(_Wrong(name, gaps, "a number"))
        split, clock, unsplit = self._split(rows.table)
        wrong += unsplit
        table = rows.table
        if wrong:
            bad = self._refuse_or_count(rows, wrong, skipped)
            labels, table = labels[~bad], table.filter(pa.array(~bad))
            dense = {name: column[~bad] for name, column in dense.items()}
            split = None if split is None else split[~bad]
        chunk = self._chunk(table, labels, dense, split, piece.position, rows)
        return Parsed(chunk, skipped, clock, rows.where)

    def _chunk(
        self, table: pa.Table, labels: np.ndarray, dense: dict[str, np.ndarray], split: np.ndarray | None,
        position: int, rows: Rows,
    ) -> RawChunk:  # fmt: skip
        tokens, missing, bags, texts = [], [], [], []
        for name in self._columns.categorical:
            codes, gaps, listed = _encoded(_texts(name, _flat(table, name)))
            tokens.append(self._raw(name, codes, listed, rows) if self._raw_ids else codes)
            missing.append(gaps)
            texts.append(listed)
        for name, separator in self._columns.multi_valued.items():
            values, lengths = _lists(name, _flat(table, name), separator)
            codes, gaps, listed = _encoded(_texts(name, values))
            if gaps is not None:  # an element that is missing is none
                row_of = np.repeat(np.arange(len(lengths)), lengths)[~gaps]
                codes, lengths = codes[~gaps], np.bincount(row_of, minlength=len(lengths))
            bags.append(Bags.of(self._raw(name, codes, listed, rows) if self._raw_ids else codes, lengths))
            texts.append(listed)
        return RawChunk(
            labels=labels,
            dense=[TRANSFORMS[kind].transform(dense[name]) for name, kind in self._columns.dense.items()],
            tokens=tokens,
            missing=missing,
            position=position,
            bags=tuple(bags),
            texts=() if self._raw_ids else tuple(HashedTexts.of(one) for one in texts),
            split=split,
        )

    def _labels(self, table: pa.Table) -> tuple[np.ndarray, list[_Wrong]]:
        name = self._columns.label
        coded = _texts(name, _flat(table, name)).fill_null("").dictionary_encode()
        found = [self._rule(text) for text in coded.dictionary.to_pylist()]
        places = coded.indices.to_numpy(zero_copy_only=False)
        bad = np.array([label is None for label in found], dtype=np.bool_)[places]
        labels = np.array([label or 0 for label in found], dtype=np.uint8)[places]
        return labels, [_Wrong(name, bad, words_of(self._columns.positive))] if bad.any() else []

    def _split(self, table: pa.Table) -> tuple[np.ndarray | None, str, list[_Wrong]]:
        """Return what the rows say of their split, how times are written, and what is wrong with them."""
        name, kind = self._columns.split_column, self._columns.split[0]
        if not name:
            return None, "", []
        if kind == "time":
            times, clock = _times(_flat(table, name))
            bad = np.isnan(times)
            needed = "a number or a date such as 2026-01-31 or 2026-01-31T23:59:59"
            return times, clock, [_Wrong(name, bad, needed)] if bad.any() else []
        if kind == "day":
            days = _flat(table, name)
            bad = np.asarray(days.is_null())
            needed = "the day of an hour written YYMMDDHH"
            return days.fill_null(0).to_numpy().astype(np.uint16), "", [_Wrong(name, bad, needed)] if bad.any() else []
        coded = _texts(name, _flat(table, name)).fill_null("").dictionary_encode()
        codes = np.array([_SPLITS.get(text.strip().lower(), 3) for text in coded.dictionary.to_pylist()], np.uint8)
        codes = codes[coded.indices.to_numpy(zero_copy_only=False)]
        return codes, "", [_Wrong(name, codes > 2, "train, valid or test")] if (codes > 2).any() else []

    def _refuse_or_count(self, rows: Rows, wrong: list[_Wrong], skipped: Counter[str]) -> np.ndarray:
        """Return (n,) bool, true for every row that is left out, or raise about the first."""
        first_wrong = np.stack([one.rows for one in wrong])
        bad = np.asarray(first_wrong.any(axis=0))
        if not self._skip_bad:
            row = int(np.flatnonzero(bad)[0])
            one = wrong[int(np.flatnonzero(first_wrong[:, row])[0])]
            written = one.column + AS_WRITTEN
            value = rows.table[written if written in rows.table.column_names else one.column][row].as_py()
            shown = "a missing value" if value is None else f"{value!r:.60}"
            raise RecembError(
                f"{rows.where(row)}, column {one.column}: {shown} is not {one.needed}; mend it, or pass "
                "on_bad_rows=skip to leave such rows out."
            )
        for which, count in Counter(np.argmax(first_wrong[:, bad], axis=0).tolist()).items():
            skipped[wrong[which].column] += count
        return bad

    def _raw(self, name: str, codes: np.ndarray, listed: pa.StringArray, rows: Rows) -> np.ndarray:
        """Return the ids that (n,) places in a list of texts are."""
        ids, readable = Decimal().tokens(listed.cast(pa.binary()))
        if not readable.all():
            text = listed[int(np.flatnonzero(~readable)[0])].as_py()
            raise RecembError(
                f"{rows.where(0)} and below, column {name}: {text!r:.60} is not {Decimal.words}, and with "
                "dataset.vocabulary=none values are the ids themselves; leave that option out to number any texts."
            )
        return np.append(ids, np.uint32(0))[codes]


def _flat(table: pa.Table, name: str) -> pa.Array:
    column = table[name]
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _texts(name: str, column: pa.Array) -> pa.StringArray:
    """Write n values of any kind as texts, null where missing or empty; whole floats as integers."""
    if pa.types.is_floating(column.type):
        column = texts_of_floats(column.cast(pa.float64()))
    try:
        texts = column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        advice = "name it among multi_valued" if pa.types.is_list(column.type) else "leave it out"
        raise RecembError(
            f"Column {name} holds {column.type}, which cannot be written as texts ({error}); {advice}."
        ) from error
    return pc.if_else(pc.equal(pc.binary_length(texts), 0), pa.scalar(None, pa.string()), texts)


def _encoded(texts: pa.StringArray) -> tuple[np.ndarray, np.ndarray | None, pa.StringArray]:
    """Return (n,) uint32 places in a list of different texts, (n,) bool where missing or None, and the list."""
    coded = texts.dictionary_encode()
    missing = np.asarray(texts.is_null()) if texts.null_count else None
    # Past the end of the list where missing, which may be empty.
    places = coded.indices.fill_null(len(coded.dictionary)).to_numpy(zero_copy_only=False).astype(np.uint32)
    return places, missing, coded.dictionary


def _lists(name: str, column: pa.Array, separator: str) -> tuple[pa.Array, np.ndarray]:
    """Return the values of n lists, one list after the other, and (n,) int64 lengths."""
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lists = column.cast(pa.large_list(kind.value_type))
    elif not separator:
        raise RecembError(
            f"Column {name} holds no lists; say what separates its values, e.g. multi_valued: {{{name}: '|'}}."
        )
    else:
        lists = pc.split_pattern(_texts(name, column), separator)
    lengths = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    values = lists.flatten()
    return _flat(pa.table({name: values}), name), lengths


def _times(column: pa.Array) -> tuple[np.ndarray, str]:
    """Return (n,) float64 that grow with time, NaN where there is none, and what they are written as."""
    if pa.types.is_temporal(column.type):
        microseconds = column.cast(pa.timestamp("us", getattr(column.type, "tz", None)), safe=False)
        return np.array(microseconds.cast(pa.int64()).cast(pa.float64(), safe=False).fill_null(np.nan)), "dates"
    try:
        return read_numbers(column.cast(pa.float64(), safe=False))[0], "numbers"
    except pa.ArrowInvalid:
        dates = pd.to_datetime(column.to_pandas(), format="ISO8601", errors="coerce", utc=True)
    times = dates.dt.tz_localize(None).to_numpy("datetime64[us]")
    if np.isnat(times).any():
        numbers, wrong = read_numbers(column)
        if wrong is None or np.count_nonzero(wrong) < np.count_nonzero(np.isnat(times)):
            return numbers if wrong is None else np.where(wrong, np.nan, numbers), "numbers"
    return np.where(np.isnat(times), np.nan, times.astype(np.int64).astype(np.float64)), "dates"
