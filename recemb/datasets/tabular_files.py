"""Reads CSV, Parquet and Arrow files piece by piece: pyarrow does all the parsing, a piece at a time on any thread."""

import csv as header_csv
import io
import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow as pa
from pyarrow import csv, ipc
from pyarrow import parquet as pq

from recemb.datasets.containers import COLUMNAR, bare_name, format_of
from recemb.datasets.separators import one_byte, shown_text
from recemb.datasets.tabular_columns import Columns
from recemb.datasets.text import LONGEST_LINE_BYTES, Block, read_blocks
from recemb.options import RecembError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_HEADER_BYTES = 1 << 16
_ROWS = 1 << 16


class Rows(NamedTuple):
    """Some consecutive rows of a file.

    Attributes:
        table: every needed column under its feature's name; of a CSV all are strings, null where empty.
        where: from a row to a text that says where it is.
        skipped: rows left out so far, by reason.
    """

    table: pa.Table
    where: Callable[[int], str]
    skipped: Counter[str]


class Piece(NamedTuple):
    """Rows that have yet to be parsed.

    Attributes:
        read: parses them; for any thread.
        position: bytes of all files read once they are, as these lie on disk.
    """

    read: Callable[[], Rows]
    position: int


class Table:
    """Files with the same columns, CSV (compressed or not), Parquet and Arrow, told apart by how they begin.

    Args:
        paths: the files.
        columns: which columns are needed.
        skip_bad: leave out rows of a CSV with too many or too few values, instead of raising.
        block_bytes: how much of a CSV is parsed at a time; 0 = the usual amount.
        members: which file to read of an archive that holds several; see `containers.open_text`.

    Raises:
        RecembError: a column is not there, or a file cannot be read.
    """

    def __init__(
        self, paths: list[Path], columns: Columns, skip_bad: bool, block_bytes: int = 0, members: tuple[str, ...] = ()
    ) -> None:
        self._columns = columns
        self._skip_bad = skip_bad
        self._block_bytes = block_bytes
        self._members = members
        self._files = [(path, format_of(path)) for path in paths]
        # Every file is looked at now, so that a wrong one is not met after hours.
        for path, kind in self._files:
            names = _names(path, kind) if kind in COLUMNAR else self._header(path)[0]
            _check_names(path, names, columns)

    def pieces(self) -> Iterator[Piece]:
        """Yield the rows of all files in order."""
        before = 0
        for path, kind in self._files:
            yield from self._table_pieces(path, kind, before) if kind in COLUMNAR else self._csv_pieces(path, before)
            before += path.stat().st_size

    def _table_pieces(self, path: Path, kind: str, before: int) -> Iterator[Piece]:
        size, done = path.stat().st_size, 0
        names = [self._columns.source_name(name) for name in self._columns.needed]
        batches = _parquet_batches(path, names) if kind == COLUMNAR[0] else _arrow_batches(path, names)
        while (item := _next(batches, path)) is not None:
            batch, share = item
            table = pa.Table.from_batches([batch]).select(names).rename_columns(self._columns.needed)
            where = partial(_place, path, "row", done + 1)
            done += batch.num_rows
            yield Piece(partial(Rows, table, where, Counter()), before + int(size * share))

    def _header(self, path: Path) -> tuple[list[str], int]:
        """Return the names of a CSV's columns, and how many lines they take."""
        if self._columns.header:
            return self._columns.header, 0
        block = next(_whole_rows(path, _HEADER_BYTES, self._columns.quoting, self._members))
        text = block.text.removeprefix(_BYTE_ORDER_MARK)
        if not text.strip():
            raise RecembError(
                f"{path} begins with nothing but blanks; its first line must name the columns, or header in "
                "dataset.columns."
            )
        text, separator = one_byte(block.path, text, self._separator(block.path), self._columns.quoting)
        lines = io.StringIO(text.decode("utf-8", errors="replace"), newline="")
        quote = '"' if self._columns.quoting else None
        quoting: Literal[0, 3] = header_csv.QUOTE_MINIMAL if quote else header_csv.QUOTE_NONE
        reader = header_csv.reader(lines, delimiter=separator, quotechar=quote, quoting=quoting)
        names = next((row for row in reader if row), [])
        if any("\ufffd" in name for name in names):
            _refuse_other_encoding(block)
        return names, reader.line_num

    def _separator(self, path: Path) -> str:
        return self._columns.separator or ("\t" if bare_name(path).endswith(".tsv") else ",")

    def _csv_pieces(self, path: Path, before: int) -> Iterator[Piece]:
        names, lines = self._header(path)
        for block in _whole_rows(path, self._block_bytes, self._columns.quoting, self._members):
            text = block.text.removeprefix(_BYTE_ORDER_MARK) if block.first_line == 1 else block.text
            if block.first_line == 1 and b"\n" not in text and b"\r" in text.rstrip():
                raise RecembError(
                    f"{path} has lines that end in CR alone; write it with LF or CRLF at the ends of its lines."
                )
            if block.first_line == 1:
                text = b"".join(text.split(b"\n", lines)[lines:])
                block = block._replace(first_line=1 + lines)
            if text.strip(b"\r\n"):
                yield Piece(partial(self._parse, block._replace(text=text), names), before + block.position)

    def _parse(self, block: Block, names: list[str]) -> Rows:
        columns, skipped, bad = self._columns, Counter[str](), []

        def met(row: csv.InvalidRow) -> str:
            bad.append(row)
            skipped["fields"] += 1
            return "skip" if self._skip_bad else "error"

        needed = [columns.source_name(name) for name in columns.needed]
        quote = '"' if columns.quoting else False
        text, separator = one_byte(block.path, block.text, self._separator(block.path), columns.quoting)
        parse = csv.ParseOptions(
            delimiter=separator, quote_char=quote, double_quote=bool(quote),
            newlines_in_values=columns.quoting, invalid_row_handler=met,
        )  # fmt: skip
        convert = csv.ConvertOptions(
            column_types=dict.fromkeys(needed, pa.string()), include_columns=needed, null_values=[""],
            strings_can_be_null=True,
        )  # fmt: skip
        read = csv.ReadOptions(column_names=names, block_size=len(text) + 1, use_threads=False)
        where = partial(_line, block)
        try:
            table = csv.read_csv(pa.py_buffer(text), read, parse, convert)
        except pa.ArrowInvalid as error:
            if bad:
                row = bad[0]
                shown = row.text.replace(separator, self._separator(block.path))[:40]
                raise RecembError(
                    f"{where(row.number - 1)}: {row.actual_columns} values instead of {row.expected_columns} "
                    f"({shown!r}); mend it, or pass on_bad_rows=skip to leave such rows out."
                ) from None
            _refuse_other_encoding(block)
            raise RecembError(
                f"{block.path} cannot be read near line {block.first_line} ({_reason(error)}); it must be UTF-8 text "
                "with the same columns in every row."
            ) from None
        return Rows(table.rename_columns(columns.needed), where, skipped)


def _whole_rows(path: Path, block_bytes: int, quoting: bool, members: tuple[str, ...]) -> Iterator[Block]:
    """Cut a CSV at the ends of rows: an end of line with an odd number of quotes before it is inside of a value."""
    waiting: list[Block] = []
    odd = 0
    for block in read_blocks([path], block_bytes, members):
        waiting.append(block)
        odd ^= block.text.count(b'"') & 1 if quoting else 0
        if odd:
            if sum(len(one.text) for one in waiting) > 4 * LONGEST_LINE_BYTES:
                raise RecembError(
                    f'{path} has a " that is opened in or after line {waiting[0].first_line} and not closed; mend it, '
                    "or say quoting: false where quotes are part of the values."
                )
            continue
        yield block._replace(text=b"".join(one.text for one in waiting), first_line=waiting[0].first_line)
        waiting.clear()
    if waiting:
        yield block._replace(text=b"".join(one.text for one in waiting), first_line=waiting[0].first_line)


def _check_names(path: Path, names: list[str], columns: Columns) -> None:
    for name in map(columns.source_name, columns.needed):
        if (count := names.count(name)) == 1:
            continue
        shown = ", ".join(map(repr, names[:12])) + (", …" if len(names) > 12 else "")
        problem = f"has no column {name!r}" if count == 0 else f"has {count} columns named {name!r}"
        raise RecembError(f"{path} {problem}; it has {shown}: mend the file or dataset.columns.")


def _refuse_other_encoding(block: Block) -> None:
    try:
        block.text.decode("utf-8")
    except UnicodeDecodeError as error:
        line = block.first_line + block.text.count(b"\n", 0, error.start)
        path = shlex.quote(str(block.path))
        raise RecembError(
            f"{block.path} line {line} is not UTF-8 text, which it must be; if it was written in Western "
            f"Europe or by Excel, convert it: iconv -f WINDOWS-1252 -t UTF-8 {path} > FILE."
        ) from None


def _names(path: Path, kind: str) -> list[str]:
    """Return the names of the columns of a Parquet or Arrow file."""
    try:
        if kind == COLUMNAR[0]:
            return list(pq.read_schema(path).names)
        with pa.memory_map(str(path)) as source, ipc.open_file(source) as file:
            return list(file.schema.names)
    except (pa.ArrowException, OSError) as error:
        raise RecembError(f"{path} is damaged ({_reason(error)}); fetch or write it again.") from error


def _parquet_batches(path: Path, names: list[str]) -> Iterator[tuple[pa.RecordBatch, float]]:
    """Yield the rows of some columns, and which share of the file is read with them."""
    file, done = pq.ParquetFile(path), 0
    for batch in file.iter_batches(_ROWS, columns=names):
        done += batch.num_rows
        yield batch, done / max(file.metadata.num_rows, 1)


def _arrow_batches(path: Path, names: list[str]) -> Iterator[tuple[pa.RecordBatch, float]]:
    """Do the same with an Arrow file."""
    with pa.memory_map(str(path)) as source, ipc.open_file(source) as file:
        places = sorted(file.schema.get_field_index(name) for name in names)
    options = ipc.IpcReadOptions(included_fields=places, use_threads=False)
    with pa.memory_map(str(path)) as source, ipc.open_file(source, options=options) as file:
        for number in range(file.num_record_batches):
            batch = file.get_batch(number)
            for start in range(0, batch.num_rows, _ROWS):
                yield batch.slice(start, _ROWS), (number + 1) / file.num_record_batches


def _next(batches: Iterator[tuple[pa.RecordBatch, float]], path: Path) -> tuple[pa.RecordBatch, float] | None:
    try:
        return next(batches, None)
    except (pa.ArrowException, OSError) as error:
        raise RecembError(f"{path} is damaged ({_reason(error)}); fetch or write it again.") from error


def _place(path: Path, unit: str, first: int, row: int) -> str:
    return f"{path} {unit} {first + row}"


def _line(block: Block, row: int) -> str:
    """Name the line of a row, passing over empty ones; line ends inside of quotes are not told from others."""
    lines = [number for number, line in enumerate(block.text.split(b"\n")) if line.strip(b"\r")]
    return _place(block.path, "line", block.first_line, lines[min(row, len(lines) - 1)])


def _reason(error: Exception) -> str:
    return shown_text(" ".join(str(error).split())[:200]).rstrip(".")
