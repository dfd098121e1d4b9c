"""Reads text files, compressed or not, as blocks of whole lines, and finds them from what a person writes."""

import glob
import gzip
import logging
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from recemb.datasets.containers import COLUMNAR, format_of, open_text
from recemb.options import RecembError

log = logging.getLogger(__name__)

_READ_AS = {"bz2": "bzip2", "zip": "a zip archive", "tar": "a tar archive", "utf-16": "UTF-16", "utf-32": "UTF-32"}

BLOCK_BYTES = 4 << 20  # fits the last-level cache with its parsed columns; 16 MB is a third slower
LONGEST_LINE_BYTES = 16 << 20


class Block(NamedTuple):
    """Some whole lines of a file.

    Attributes:
        path: the file; of an archive, the name of the file in it as if the archive were a folder.
        text: the lines with their ends; the last line of a file may lack its end.
        first_line: number of the first of them in the file's text, from 1.
        position: bytes of all files read so far, as they lie on disk.
    """

    path: Path
    text: bytes
    first_line: int
    position: int


def find_files(
    source: Any, option: str = "dataset.source", members: tuple[str, ...] = (), tables: bool = False
) -> list[Path]:
    """Return the files that `source` names.

    Args:
        source: a path, a glob pattern, several of them in a list or with commas between.
        option: what the user calls `source`.
        members: which file to read of an archive that holds several; see `containers.open_text`.
        tables: Parquet and Arrow files are read too.

    Raises:
        RecembError: there is no such file, or it is no text and says what it is by its first bytes.
    """
    if source is None or source == "" or source == []:
        raise RecembError(
            f"{option} is not given; name the raw text file, files or glob pattern, e.g. {option}=train.txt."
        )
    parts = [str(part) for part in source] if isinstance(source, (list, tuple)) else [str(source)]
    files: list[Path] = []
    for part in parts:
        # A name may itself hold a comma or a bracket, so what exists as it stands is taken as it stands.
        names = [part] if Path(part).expanduser().exists() else [name.strip() for name in part.split(",")]
        for name in filter(None, names):
            files += _expand(name, option)
    if not files:
        raise RecembError(f"{option}={source} names no file.")
    for path in files:
        _check(path, option)
        _look_inside(path, members, tables)
    return files


def describe(path: Path) -> dict[str, Any]:
    """Return what tells whether a file is still the same: name, size in bytes and modification time in ns."""
    status = path.stat()
    return {"name": path.name, "size": status.st_size, "modified_ns": status.st_mtime_ns}


def read_blocks(files: list[Path], block_bytes: int = 0, members: tuple[str, ...] = ()) -> Iterator[Block]:
    """Yield the text of several files in order, cut at line ends.

    Args:
        files: read one after the other, each by what its first bytes say that it is.
        block_bytes: about how long a block is; 0 = `BLOCK_BYTES`.
        members: which file to read of an archive that holds several; see `containers.open_text`.
    """
    read_before = 0
    for path in files:
        size, empty = path.stat().st_size, True
        with _readable(path), path.open("rb") as raw, open_text(path, raw, members) as (where, text):
            for first_line, block in _whole_lines(where, text, block_bytes or BLOCK_BYTES):
                empty = empty and not block.strip()
                yield Block(where, block, first_line, read_before + min(raw.tell(), size))
        if empty:
            raise RecembError(f"{path} is empty; it must hold one row a line.")
        read_before += size


def _expand(name: str, option: str) -> list[Path]:
    path = Path(name).expanduser()
    if path.exists() or not glob.has_magic(name):
        return [path]
    found = sorted(Path(match) for match in glob.glob(str(path)))  # noqa: PTH207 - Path.glob takes no absolute pattern
    if not found:
        raise RecembError(f"No file matches {option}={name}; mend the pattern.")
    return found


def _check(path: Path, option: str) -> None:
    try:
        if path.is_dir():
            raise RecembError(f"{path} is a folder; name the files in it, e.g. {option}='{path}/*.txt'.")
        if not path.exists():
            raise RecembError(f"There is no file {path}; mend {option}.")
        if not path.is_file():
            raise RecembError(f"{path} is not a regular file; {option} must name text files, plain or compressed.")
        with path.open("rb"):
            pass
    except OSError as error:
        raise RecembError(f"{path} cannot be read ({error.strerror}); mend {option} or its permissions.") from error


def _look_inside(path: Path, members: tuple[str, ...], tables: bool) -> None:
    """Meet now what would else be met after the hours that the files before it take."""
    with _readable(path):
        kind = format_of(path)
        if tables and kind in COLUMNAR:
            return
        with path.open("rb") as raw, open_text(path, raw, members) as (where, _):
            member = f", {where.name} in the archive" if where != path else ""
            if kind:
                log.info("%s is read as it is: %s%s", path, _READ_AS.get(kind, kind), member)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except EOFError:
        raise RecembError(
            f"{path} ends in the middle of its {format_of(path)} stream; it is cut short, so fetch it again."
        ) from None
    except UnicodeDecodeError as error:
        raise RecembError(f"{path} is damaged (what begins as {error.encoding} is none); write it again.") from error
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise RecembError(f"{path} is damaged ({error}); fetch it again.") from error
    except OSError as error:
        if error.errno is None:  # not the system's word but that of a decompressor
            raise RecembError(f"{path} is damaged ({error}); fetch it again.") from error
        raise RecembError(f"{path} cannot be read ({error.strerror or error}).") from error


def _whole_lines(path: Path, text: IO[bytes], block_bytes: int) -> Iterator[tuple[int, bytes]]:
    line, tail = 1, b""
    while data := text.read(block_bytes):
        cut = data.rfind(b"\n") + 1
        if cut == 0:
            tail += data
            if len(tail) > LONGEST_LINE_BYTES:
                raise RecembError(
                    f"{path} line {line} is longer than {LONGEST_LINE_BYTES >> 20} MiB; "
                    "it must be a text with one row a line."
                )
            continue
        block = tail + data[:cut]
        tail = data[cut:]
        yield line, block
        line += block.count(b"\n")
    if tail:
        yield line, tail
