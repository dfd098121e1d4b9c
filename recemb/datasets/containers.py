"""Tells what a file is by its first bytes and not by its name, and opens what holds text as a stream of UTF-8.

Compressed files and archives are read as streams: nothing is unpacked to disk, and no more than some blocks of a file
are in memory, whatever it claims to hold. Files that are no text are refused in one sentence, which says what they are
and how to convert them.
"""

import codecs
import gzip
import io
import json
import lzma
import re
import shlex
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import pyarrow as pa

from recemb.options import RecembError

COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip")
"""Endings of files that are read as what they hold."""
COLUMNAR = ("a Parquet file", "an Arrow file")
"""What `dataset=tabular` reads besides text."""

_HEAD_BYTES = 1024
_BUFFER_BYTES = 1 << 16
_MOST_LAYERS = 4  # a gzipped file in a zip archive is two and the encoding of the text a third
_XZ_MEMORY = 1 << 28  # `xz -9` takes 65 MiB; a hostile header may ask for 4 GiB


class _Format(NamedTuple):
    """A format that can be told by its first bytes.

    Attributes:
        magic: these.
        name: what such a file is, for a person.
        advice: what to do about it, with {path}; "" = it is read.
        pandas: the function of pandas that reads it, as an advice; "" = none.
    """

    magic: bytes
    name: str
    advice: str = ""
    pandas: str = ""


_FORMATS = (
    _Format(b"\x1f\x8b", "gzip"),
    _Format(b"\xfd7zXZ\0", "xz"),
    _Format(b"\x28\xb5\x2f\xfd", "zstd"),
    _Format(b"\x50\x2a\x4d\x18", "zstd"),  # as pzstd begins
    _Format(b"\x04\x22\x4d\x18", "lz4"),
    _Format(b"PK\x03\x04", "zip"),
    _Format(b"PK\x05\x06", "zip"),
    _Format(b"\xff\xfe\0\0", "utf-32"),
    _Format(b"\0\0\xfe\xff", "utf-32"),
    _Format(b"\xff\xfe", "utf-16"),
    _Format(b"\xfe\xff", "utf-16"),
    _Format(b"PAR1", "a Parquet file", "this data set is read from text, and only dataset=tabular from such files"),
    _Format(b"ARROW1\0", "an Arrow file", "this data set is read from text, and only dataset=tabular from such files"),
    _Format(b"PARE", "an encrypted Parquet file", "write it without encryption"),
    _Format(b"\xff\xff\xff\xff", "an Arrow stream", "write it as an Arrow file (pyarrow.ipc.new_file) or as Parquet"),
    _Format(b"FEA1", "a file of Feather's first version", pandas="read_feather"),
    _Format(b"ORC", "an ORC file", pandas="read_orc"),
    _Format(b"\x89HDF\r\n\x1a\n", "an HDF5 file", pandas="read_hdf"),
    _Format(b"\x93NUMPY", "a numpy array", "write its columns as CSV, e.g. with numpy.savetxt"),
    _Format(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a file of Excel or another Office program", pandas="read_excel"),
    _Format(b"Obj\x01", "an Avro file", "convert it to Parquet"),
    _Format(
        b"SQLite format 3\0", "an SQLite database",
        "write the table as CSV: sqlite3 -csv -header {path} 'select * from NAME' > FILE",
    ),
    _Format(b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it: 7z x {path}"),
    _Format(b"Rar!\x1a\x07", "a RAR archive", "unpack it: unrar x {path}"),
    _Format(b"\x1f\x9d", "a file packed by compress", "unpack it: gzip -dc {path} > FILE"),
    _Format(b"\x02\x21\x4c\x18", "a file of LZ4's old format", "unpack it: lz4 -dc {path} > FILE"),
    _Format(b"\xff\x06\0\0sNaPpY", "a file packed by Snappy", "unpack it: snzip -dc {path} > FILE"),
    _Format(b"%PDF-", "a PDF", "fetch the data themselves"),
    _Format(
        b"version https://git-lfs.github.com/spec/", "a Git LFS pointer and not the data it stands for",
        "fetch these: git lfs pull",
    ),
)  # fmt: skip
_PICKLE = _Format(
    b"", "a Python pickle", "it is never loaded, since a pickle may run any program; where you trust it, convert it",
    "read_pickle",
)  # fmt: skip
_EXCEL = _Format(b"", "an Excel workbook", "save it as CSV UTF-8 in Excel, or convert it", "read_excel")
_NPZ = _Format(b"", "an archive of numpy arrays", "write their columns as CSV or Parquet")
_PYTORCH = _Format(b"", "a file saved by PyTorch", "write its columns as CSV or Parquet")
_HTML = _Format(
    b"", "a web page and not data", "most likely a login or error page was saved in its place, so fetch it again"
)
_XML = _Format(b"", "XML", "if it is a server's error message fetch the file again, else convert it to CSV")
_JSON = _Format(b"", "JSON", "convert it: python -c {json}")
_ZEROS = _Format(b"", "a file of nothing but zero bytes", "most likely a copy of it broke off, so fetch it again")
_BINARY = _Format(b"", "binary data of an unknown kind", "it must be text, or what `file {path}` tells how to convert")
# Control characters that no text has, with those left out that people separate columns by.
_WORDS = (b"PARE", b"ORC", b"FEA1")  # columns may be named so: PARENT, ORCID
_BZ2 = re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)")
_CONTROL = re.compile(rb"[\0\x03-\x08\x0e-\x1a\x7f]")


def format_of(path: Path) -> str:
    """Return the name of what a file begins as, "" for text."""
    with path.open("rb") as file:
        found = _recognize(file.read(_HEAD_BYTES))
    return found.name if found else ""


@contextmanager
def open_text(path: Path, raw: io.BufferedReader, members: tuple[str, ...] = ()) -> Iterator[tuple[Path, IO[bytes]]]:
    """Open a file as a stream of text in UTF-8, or of what else bytes there are where nobody knows it.

    Args:
        path: what `raw` was opened from.
        raw: the file at its start.
        members: which file to read of an archive that holds several; the names are without endings of compression.

    Yields:
        The path, with the name of the member of an archive below it, and the stream.

    Raises:
        RecembError: it is no text, or an archive in which no file is the one to read.
    """
    stream, where = raw, path
    for layer in range(_MOST_LAYERS + 1):
        found = _recognize(stream.peek(_HEAD_BYTES)[:_HEAD_BYTES])
        if found is None:
            break
        if layer == _MOST_LAYERS:
            raise RecembError(f"{path} is packed more than {_MOST_LAYERS} times over; unpack it.")
        if found.name == "tar":
            name, inner = _open_tar(path, stream, members)
            where = path / name
        elif found.name == "zip":
            name, inner = _open_zip(path, stream, members, layer)
            where = path / name
        elif found.name in _OPENERS:
            inner = _OPENERS[found.name](stream)
        elif found.name.startswith("utf-"):
            inner = _AsUtf8(stream, found.name)
        else:
            raise _refusal(path, found, packed=layer > 0)
        stream = io.BufferedReader(inner, _BUFFER_BYTES)
        if found.name.startswith("utf-"):
            _refuse_if_foreign(path, stream)
            break
    yield where, stream


def _refuse_if_foreign(path: Path, stream: io.BufferedReader) -> None:
    """Refuse a text of another encoding that is a web page or the like."""
    found = _recognize(stream.peek(_HEAD_BYTES)[:_HEAD_BYTES])
    if found is not None:
        raise _refusal(path, found, packed=True)


def _recognize(head: bytes) -> _Format | None:
    """Return the format of what begins with `head`, None for text."""
    for known in _FORMATS:
        if head.startswith(known.magic) and (known.magic not in _WORDS or _CONTROL.search(head)):
            return known
    if _BZ2.match(head):
        return _Format(b"", "bz2")
    if head[257:262] == b"ustar":
        return _Format(b"", "tar")
    if re.match(rb"\x80[\x02-\x05]", head):
        return _PICKLE
    if encoding := _wide_encoding(head):
        return _Format(b"", encoding)
    if head and not head.strip(b"\0"):
        return _ZEROS
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:64].lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return _HTML
    if start.startswith((b"<?xml", b"<!doctype")):
        return _XML
    if re.match(rb'\[?\s*\{\s*"[^"]*"\s*:', start):
        return _JSON
    return _BINARY if len(_CONTROL.findall(head)) > 0.03 * len(head) and not _is_utf8(head) else None


def _is_utf8(head: bytes) -> bool:
    """Whether these are the first bytes of a text, of odd characters as it may be."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return b"\0" not in head


def _wide_encoding(head: bytes) -> str:
    """Tell UTF-16 without a byte order mark by the zeros in every other byte of what is mostly ASCII."""
    pairs = len(head) // 2
    if pairs >= 4:
        first, second = head[: 2 * pairs : 2].count(0), head[1 : 2 * pairs : 2].count(0)
        if first < 0.1 * pairs and second > 0.6 * pairs:
            return "utf-16-le"
        if second < 0.1 * pairs and first > 0.6 * pairs:
            return "utf-16-be"
    return ""


def _refusal(path: Path, found: _Format, packed: bool = False) -> RecembError:
    quoted, target = shlex.quote(str(path)), json.dumps(f"{path}.parquet")
    convert = f"import pandas; pandas.{found.pandas}({json.dumps(str(path))}).to_parquet({target})"
    lines = f"import pandas; pandas.read_json({json.dumps(str(path))}, lines=True).to_parquet({target})"
    advice = found.advice.replace("{path}", quoted).replace("{json}", shlex.quote(lines))
    if found.name in COLUMNAR and packed:
        advice = "unpack it"
    elif found.pandas:
        advice = f"{advice or 'convert it'} for dataset=tabular: python -c {shlex.quote(convert)}"
    return RecembError(f"{path} {'holds, packed,' if packed else 'is'} {found.name}; {advice}.")


def _open_tar(path: Path, stream: IO[bytes], members: tuple[str, ...]) -> tuple[str, Any]:
    """Open the first file that is one of `members`; what else there is cannot be known without reading it all."""
    archive = tarfile.open(fileobj=stream, mode="r|")  # noqa: SIM115 - closed with the stream below it
    names: list[str] = []
    for info in archive:
        name = PurePosixPath(info.name).name
        if info.isfile() and _bare(name) in members and not _is_hidden(info.name):
            return name, archive.extractfile(info)
        if info.isfile() and len(names) < 5:
            names.append(info.name)
        if not members and names:
            break
    shown = ", ".join(map(repr, names)) or "no file"
    lacks = f"has no {' or '.join(members)} in it, but {shown}" if members else f"begins with {shown}"
    raise RecembError(
        f"{path} is a tar archive that {lacks}; unpack it with tar -xf {shlex.quote(str(path))} and name the file."
    )


def _open_zip(path: Path, stream: IO[bytes], members: tuple[str, ...], layer: int) -> tuple[str, Any]:
    """Open the one file of an archive, or the one of several that is one of `members`."""
    unpack = f"unpack it with unzip {shlex.quote(str(path))} and name the file"
    if layer:
        raise RecembError(f"{path} holds a zip archive inside of another file; unpack it.")
    archive = zipfile.ZipFile(stream)
    files = [info for info in archive.infolist() if not info.is_dir() and not _is_hidden(info.filename)]
    names = [info.filename for info in files]
    if "[Content_Types].xml" in names or "mimetype" in names:
        raise _refusal(path, _EXCEL)
    if names and all(name.endswith(".npy") for name in names):
        raise _refusal(path, _NPZ)
    if any(PurePosixPath(name).name == "data.pkl" for name in names):
        raise _refusal(path, _PYTORCH)
    fitting = [info for info in files if _bare(PurePosixPath(info.filename).name) in members] or files
    if len(fitting) != 1:
        shown = ", ".join(map(repr, names[:5])) + (", …" if len(names) > 5 else "")
        raise RecembError(f"{path} is a zip archive of {len(names)} files ({shown}), not of one; {unpack}.")
    if fitting[0].flag_bits & 1:
        raise RecembError(f"{path} is a zip archive with a password; {unpack}.")
    try:
        return PurePosixPath(fitting[0].filename).name, archive.open(fitting[0])
    except NotImplementedError as error:
        raise RecembError(f"{path} is a zip archive of a rare kind ({error}); {unpack}.") from error


def bare_name(path: Path) -> str:
    """Return the name of a file without an ending that says how it is compressed."""
    return _bare(path.name)


def _bare(name: str) -> str:
    ending = next((ending for ending in COMPRESSED if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)]


def _is_hidden(name: str) -> bool:
    """Tell what macOS and others put beside the files a person means."""
    return name.startswith("__MACOSX/") or PurePosixPath(name).name.startswith(".")


class _AsUtf8(io.RawIOBase):
    """A text of another encoding, written in UTF-8.

    Args:
        stream: the text.
        encoding: its encoding, whose byte order mark is left out.
    """

    def __init__(self, stream: IO[bytes], encoding: str) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(encoding)()

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer in part."""
        data, at_end = b"", False
        while not data and not at_end:
            wide = self._stream.read(len(buffer) // 2)  # two bytes become three at most
            at_end = not wide
            data = self._decoder.decode(wide, final=at_end).encode("utf-8")  # half a character at the end is an error
        buffer[: len(data)] = data
        return len(data)


class _Xz(io.RawIOBase):
    """The text of xz streams that lie end to end; `lzma.LZMAFile` drops all that follows a damaged one, in silence.

    Args:
        stream: these.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._decoder = _xz_decoder()

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer in part."""
        data = b""
        while not data:
            packed = b""
            if self._decoder.eof:
                packed = self._decoder.unused_data or self._stream.read(_BUFFER_BYTES)
                if not packed:
                    return 0
                if not (packed := packed.lstrip(b"\0") or self._stream.read(_BUFFER_BYTES).lstrip(b"\0")):
                    return 0  # zeros may lie between and after streams
                self._decoder = _xz_decoder()
            elif self._decoder.needs_input and not (packed := self._stream.read(_BUFFER_BYTES)):
                raise EOFError
            data = self._decoder.decompress(packed, len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _xz_decoder() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)


def _by_arrow(codec: str) -> Any:
    return lambda stream: pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), codec)


_OPENERS: dict[str, Any] = {
    "gzip": lambda stream: gzip.GzipFile(fileobj=stream, mode="rb"),
    "xz": _Xz,
    # Python's bz2.BZ2File drops what follows a damaged stream in silence, as LZMAFile does; Arrow refuses it.
    **{name: _by_arrow(name) for name in ("bz2", "zstd", "lz4")},
}
