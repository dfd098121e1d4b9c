"""Parses the Criteo text form: label, 13 integers and 26 hexadecimal categories, tab separated, empty = missing.

Blocks of lines take a fast path, pyarrow's CSV parser and hexadecimal decoding on whole columns. It accepts a subset
of what is right and never anything that is wrong; a block it refuses is looked at line by line, which finds the bad
lines and names them, and what is left of the block takes the fast path again.
"""

import re
from collections import Counter

import numpy as np
import pyarrow as pa
from pyarrow import csv

from recemb.datasets.base import RawChunk
from recemb.datasets.hexadecimal import Hexadecimal, decode_tokens, parts_of
from recemb.datasets.spelling import Numbers, Spelling
from recemb.datasets.text import Block
from recemb.options import RecembError

DENSE = tuple(f"I{i}" for i in range(1, 14))
CATEGORICAL = tuple(f"C{i}" for i in range(1, 27))
FIELDS = ("label", *DENSE, *CATEGORICAL)

_PARSE = csv.ParseOptions(delimiter="\t", quote_char=False, double_quote=False, escape_char=False)
_CONVERT = csv.ConvertOptions(
    column_types={
        "label": pa.binary(),
        **dict.fromkeys(DENSE, pa.int64()),
        **dict.fromkeys(CATEGORICAL, pa.binary()),
    },
    null_values=[""],
    strings_can_be_null=False,
)
_GOOD_LINE = re.compile(rb"[01](?:\t(?:-?[0-9]{1,18})?){13}(?:\t(?:[0-9a-fA-F]{1,8})?){26}")
_INTEGER = re.compile(rb"-?[0-9]+")
_TOKEN = re.compile(rb"[0-9a-fA-F]{1,8}")
# What pyarrow would let pass: blanks around a number, 0x10, a byte order mark, and a bare CR as a line end.
_TOO_LENIENT = (b" ", b"x", b"X")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class NotPlain(Exception):  # noqa: N818 - a signal between two paths, never seen outside
    """The fast path does not vouch for a block."""


def parse_block(block: Block, on_bad_rows: str) -> tuple[RawChunk, Counter[str]]:
    """Parse a block of lines.

    Args:
        block: whole lines; empty ones are passed over.
        on_bad_rows: "error" or "skip".

    Returns:
        The rows, and how many were left out by reason.
    """
    text = block.text
    if block.first_line == 1:
        text = text.removeprefix(_BYTE_ORDER_MARK)
    try:
        return _parse_plain(text, block.position), Counter()
    except NotPlain:
        good, skipped = _sift(block._replace(text=text), on_bad_rows)
        return _parse_plain(good, block.position), skipped


def transform_integers(feature: str, values: np.ndarray) -> np.ndarray:
    """Return log(max(x, 0) + 1), and log(max(x, -3) + 4) for I2, whose least value in the data is -3.

    Args:
        feature: its name.
        values: (n,) float64, NaN = missing.

    Returns:
        (n,) float32. The logarithm is taken in float64, whose last bit may differ between processors, so that the
        rounded result does not.
    """
    lowest, shift = _bounds(feature)
    values = np.maximum(values, lowest)
    values += shift
    return np.log(values, out=values).astype(np.float32)


def _bounds(feature: str) -> tuple[float, float]:
    """Return what an integer is cut off at from below, and what is then added to it."""
    return (-3.0, 4.0) if feature == "I2" else (0.0, 1.0)


class LogOfIntegers(Numbers):
    """Integers of 64 bits and their logarithms, as `transform_integers` has them.

    Args:
        feature: its name.
    """

    def __init__(self, feature: str) -> None:
        self._feature = feature
        lowest, shift = _bounds(feature)
        self.kind = f"log_{shift:g}_plus"
        self.formula = f"natural logarithm of max(x, {lowest:g}) + {shift:g}, in float64, rounded to float32"

    def read(self, text: bytes) -> float | None:
        """Read an integer; preparation takes nothing else, 1.5 neither."""
        number = _read_integer(text)
        return None if number is None else float(number)

    def transform(self, values: np.ndarray) -> np.ndarray:
        """Take the logarithms."""
        return transform_integers(self._feature, values)


class CriteoSpelling:
    """How a data set in Criteo's form is written; for configs to derive from."""

    @classmethod
    def spelling(cls, feature: str) -> Spelling:  # noqa: ARG003 - all are alike
        """Say that categories are hexadecimal."""
        return Hexadecimal()

    @classmethod
    def numbers(cls, feature: str, kind: str = "") -> Numbers:  # noqa: ARG003
        """Say that integers become logarithms."""
        return LogOfIntegers(feature)


def _parse_plain(text: bytes, position: int) -> RawChunk:
    if not text.strip(b"\r\n"):
        none, no_token = np.empty(0, dtype=np.float32), np.empty(0, dtype=np.uint32)
        return RawChunk(none.astype(np.uint8), [none] * 13, [no_token] * 26, [None] * 26, position)
    if any(byte in text for byte in _TOO_LENIENT) or text.startswith(_BYTE_ORDER_MARK):
        raise NotPlain
    if b"\r" in text and text.count(b"\r") != text.count(b"\r\n"):
        raise NotPlain
    try:
        read = csv.ReadOptions(column_names=FIELDS, block_size=len(text) + 1, use_threads=False)
        table = csv.read_csv(pa.py_buffer(text), read_options=read, parse_options=_PARSE, convert_options=_CONVERT)
    except pa.ArrowInvalid:
        raise NotPlain from None
    columns = [column.combine_chunks() for column in table.columns]
    labels = _decode_labels(columns[0])
    dense = [
        transform_integers(name, column.to_numpy(zero_copy_only=False).astype(np.float64, copy=False))
        for name, column in zip(DENSE, columns[1:14], strict=True)
    ]
    tokens: list[np.ndarray] = []
    missing: list[np.ndarray | None] = []
    for column in columns[14:]:
        offsets, data = parts_of(column)
        decoded = decode_tokens(offsets, data)
        if decoded is None:
            raise NotPlain
        tokens.append(decoded[0])
        missing.append(decoded[1])
    return RawChunk(labels, dense, tokens, missing, position)


def _decode_labels(column: pa.BinaryArray) -> np.ndarray:
    offsets, data = parts_of(column)
    labels = data[offsets[0] : offsets[-1]] - np.uint8(ord("0"))
    if len(labels) != len(column) or np.any(np.diff(offsets) != 1) or np.any(labels > 1):
        raise NotPlain
    return labels


def _sift(block: Block, on_bad_rows: str) -> tuple[bytes, Counter[str]]:
    """Look at every line of a block; return the good ones and count the bad ones by reason."""
    good: list[bytes] = []
    skipped: Counter[str] = Counter()
    for number, line in enumerate(block.text.split(b"\n"), block.first_line):
        line = line.removesuffix(b"\r")
        if not line:
            continue
        if _GOOD_LINE.fullmatch(line) or (problem := _diagnose(line)) is None:
            good.append(line)
            continue
        reason, where, what = problem
        unlabelled = number == 1 and line.count(b"\t") == len(FIELDS) - 2
        if unlabelled:
            raise RecembError(
                f"{block.path} has no labels (its first line has 39 fields, as in the Criteo test file); "
                "give the labelled training file, whose lines have 40."
            )
        if on_bad_rows == "error":
            raise RecembError(
                f"{block.path} line {number}{where}: {what}; mend it, or pass on_bad_rows=skip to leave such rows out."
            )
        skipped[reason] += 1
    return b"\n".join(good), skipped


def _diagnose(line: bytes) -> tuple[str, str, str] | None:
    """Return reason, place and sentence for the first thing wrong with a line, None when nothing is."""
    fields = line.split(b"\t")
    if len(fields) != len(FIELDS):
        shown = "field" if len(fields) == 1 else "fields"
        return "fields", "", f"{len(fields)} {shown} instead of 40 ({_shorten(line)})"
    for name, field in zip(FIELDS, fields, strict=True):
        if name == "label":
            good, reason, needed = field in (b"0", b"1"), "label", "0 or 1"
        elif name in DENSE:
            good = not field or _read_integer(field) is not None
            reason, needed = "integer", "an integer of 64 bits"
        else:
            good, reason, needed = not field or bool(_TOKEN.fullmatch(field)), "category", "1 to 8 hexadecimal digits"
        if not good:
            if not _is_utf8(field):
                reason, needed = "encoding", "UTF-8 text"
            return reason, f", field {name}", f"{_shorten(field)} is not {needed}"
    return None


def _read_integer(field: bytes) -> int | None:
    # int() is quadratic in the length, and no integer of 64 bits has more than 20 characters but for leading zeros.
    digits = field.removeprefix(b"-").lstrip(b"0")
    if not _INTEGER.fullmatch(field) or len(digits) > 19:
        return None
    number = int(field[:1].strip(b"0123456789") + (digits or b"0"))
    return number if -(2**63) <= number < 2**63 else None


def _is_utf8(field: bytes) -> bool:
    try:
        field.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _shorten(field: bytes, limit: int = 40) -> str:
    text = field[: 4 * limit].decode("utf-8", errors="backslashreplace")
    return repr(text if len(text) <= limit and len(field) <= 4 * limit else text[:limit] + "…")
