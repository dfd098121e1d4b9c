"""Any table of clicks in CSV or Parquet files; a few lines of YAML say which columns are what."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from recemb.datasets.base import DatasetConfig, RawChunk, RowSource
from recemb.datasets.parallel import ordered
from recemb.datasets.spelling import Numbers
from recemb.datasets.splits import random
from recemb.datasets.tabular_columns import Columns, read_columns
from recemb.datasets.tabular_files import Table
from recemb.datasets.tabular_numbers import DEFAULT, TRANSFORMS
from recemb.datasets.tabular_rows import Derive, RowParser
from recemb.datasets.text import describe, find_files
from recemb.options import RecembError, option

_KINDS = {"column": "code", "time": "time", "day": "day", "random": "code"}


@dataclass(kw_only=True)
class TabularConfig(DatasetConfig):
    """CSV, Parquet or Arrow files of any columns, described by a short YAML file."""

    name: ClassVar[str] = "tabular"
    protocols: ClassVar[tuple[str, ...]] = ("columns",)
    texts: ClassVar[bool] = True

    path: str = option("data/tabular", "folder of the prepared data set")
    source: Any = option(
        None, "CSV (plain or compressed), Parquet or Arrow: a file, a glob pattern, or several in a list"
    )
    columns: Any = option(
        None,
        "YAML file that names the columns: label, dense, categorical, multi_valued and split, e.g. "
        "split: {time: timestamp}, {column: part} or {random: 0}",
    )
    protocol: str = option("columns", "how rows are split: as `split` in dataset.columns says")

    def open(self, *, on_bad_rows: str) -> RowSource:
        """Find the files and see that they have the columns."""
        return TabularRows(self.source, read_columns(self.columns, self.seed), on_bad_rows, self.vocabulary == "none")

    @classmethod
    def numbers(cls, feature: str, kind: str = "") -> Numbers:  # noqa: ARG003 - the kind says it
        """Return the transform of a kind."""
        return TRANSFORMS[kind or DEFAULT]

    def identity(self) -> dict[str, Any]:
        """Say what the columns are, and not in which file that was written."""
        columns = None if self.columns is None else read_columns(self.columns, self.seed).to_dict()
        return super().identity() | {"columns": columns}


class TabularRows(RowSource):
    """The rows of a table, in the order given.

    Args:
        source: see `TabularConfig`.
        columns: what each column is.
        on_bad_rows: "error" or "skip".
        raw_ids: values are ids, and not texts.
        derive: makes the columns that `columns` names of those in the files.
        in_files: what the files have, where that is not `columns`.
        members: which file to read of an archive that holds several; see `containers.open_text`.
        block_bytes: how much of a CSV is parsed at a time; 0 = the usual amount.
    """

    unit = "B"

    def __init__(
        self,
        source: Any,
        columns: Columns,
        on_bad_rows: str = "error",
        raw_ids: bool = False,
        derive: Derive | None = None,
        in_files: Columns | None = None,
        members: tuple[str, ...] = (),
        block_bytes: int = 0,
    ) -> None:
        super().__init__()
        paths, skip_bad = find_files(source, members=members, tables=True), on_bad_rows == "skip"
        self._table = Table(paths, in_files or columns, skip_bad, block_bytes, members)
        self._parse = RowParser(columns, skip_bad, raw_ids, derive)
        self._columns = columns
        self.dense_names = tuple(columns.dense)
        self.categorical_names = tuple(columns.categorical)
        self.multi_valued = tuple(columns.multi_valued)
        self.transforms = dict(columns.dense)
        kind, by = columns.split
        self.protocol = "last_day" if kind == "day" else kind
        self.split_by = _KINDS[kind]
        self.split_shown = f"The split at random with seed {by}" if kind == "random" else f"Column {by}"
        self.files = [describe(path) for path in paths]
        self.total = sum(file["size"] for file in self.files)

    def chunks(self, pool: ThreadPoolExecutor) -> Iterator[RawChunk]:
        """Yield the rows of all files."""
        at, clock = 0, ""
        kind, by = self._columns.split
        for parsed in ordered(pool, self._parse, self._table.pieces()):
            self.skipped.update(parsed.skipped)
            if clock and parsed.clock and parsed.clock != clock:
                raise RecembError(
                    f"{parsed.where(0)} and below, column {by}: times are written as {parsed.clock} here and as "
                    f"{clock} before; write all of them alike."
                )
            clock = clock or parsed.clock
            chunk, rows = parsed.chunk, len(parsed.chunk.labels)
            if kind == "random":
                chunk = chunk._replace(split=random(at, at + rows, 0, int(by)))
            at += rows
            yield chunk._replace(split=np.ascontiguousarray(chunk.split))
