"""Parses the three texts of MovieLens 1M, whose fields are separated by "::", and says which line is bad and why.

Users and movies are a few thousand lines and are read one by one. Ratings take pyarrow's CSV parser, block by block; a
block that is not as it should be is looked at line by line, with the same result for its good lines.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import csv

from recemb.datasets.bags import Bags
from recemb.datasets.spelling import TOKENS, Decimal, Listed, OneByOne, Spelling, read_whole_number
from recemb.datasets.text import Block
from recemb.options import RecembError

GENRES = (
    "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
"""The genres in the order of the data's README; the first has token 1."""

_RATING_FIELDS = ("user", "movie", "rating", "timestamp")
_PARSE = csv.ParseOptions(delimiter="\t", quote_char=False, double_quote=False, escape_char=False)
_CONVERT = csv.ConvertOptions(column_types=dict.fromkeys(_RATING_FIELDS, pa.int64()))
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_GENDER_TOKENS = {b"F": ord("F"), b"M": ord("M")}
_GENRE_TOKENS = {name.encode(): token for token, name in enumerate(GENRES, 1)}
# Zip codes of 5 to 9 digits without a hyphen come first, the shorter before the longer; then those with one.
_ZIP_LENGTHS = range(5, 10)
_ZIP_PLUS_FOUR = (10**10 - 10**5) // 9


Row = TypeVar("Row")


class Line(NamedTuple):
    """One line that is not empty, without its end.

    Attributes:
        block: where it is from.
        number: in its file, from 1.
        text: its bytes.
    """

    block: Block
    number: int
    text: bytes


class BadField(Exception):  # noqa: N818 - a signal inside this module, turned into a sentence with file and line
    """A field is not as it should be.

    Args:
        field: its name, "" where the line as a whole is wrong.
        problem: what came and what was needed.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(problem)
        self.field = field


class BadRows:
    """What to do with lines that cannot be read, and how many there were.

    Args:
        policy: "error" or "skip".
    """

    def __init__(self, policy: str) -> None:
        self._policy = policy
        self.skipped: Counter[str] = Counter()

    def meet(self, line: Line, error: BadField) -> None:
        """Count a bad line under its file and field, or raise the sentence about it."""
        where = f", field {error.field}" if error.field else ""
        if self._policy == "error":
            raise RecembError(
                f"{line.block.path} line {line.number}{where}: {error}; mend it, or pass on_bad_rows=skip to leave "
                "such rows out."
            ) from None
        self.skipped[f"{line.block.path.name.split('.')[0]} {error.field or 'fields'}"] += 1


def zip_token(text: bytes) -> int:
    """Number a zip code: different codes of the allowed forms have different numbers, all below 2**32.

    A code of n digits, n from 5 to 9, is its number plus 10^5 + … + 10^(n-1), which is how many shorter ones there
    are; 12345-6789 is 1,111,100,000 + 123,456,789. So 00000 is 0, 99999 is 99,999 and 000000 is 100,000.
    """
    if len(text) == 10 and text[5:6] == b"-":
        digits, base = text[:5] + text[6:], _ZIP_PLUS_FOUR
    else:
        digits, base = text, (10 ** len(text) - 10**5) // 9
    if not digits.isdigit() or len(digits) not in _ZIP_LENGTHS:
        raise BadField("zip", f"{_shown(text)} is not a zip code of 5 to 9 digits or of the form 12345-6789")
    return base + int(digits)


def zip_text(token: int) -> str:
    """Return the zip code that has a number."""
    if token >= _ZIP_PLUS_FOUR:
        digits = f"{token - _ZIP_PLUS_FOUR:09d}"
        return f"{digits[:5]}-{digits[5:]}"
    length = next(n for n in _ZIP_LENGTHS if token < (10 ** (n + 1) - 10**5) // 9)
    return f"{token - (10**length - 10**5) // 9:0{length}d}"


class ZipCode(OneByOne):
    """A zip code; only a text, since a number has lost its leading zeros."""

    kind = "zip_code"
    words = "a zip code of 5 to 9 digits or of the form 12345-6789"

    def token(self, text: bytes) -> int | None:
        """Number a code."""
        try:
            return zip_token(text)
        except BadField:
            return None

    def text(self, token: int) -> str:
        """Return the code."""
        return zip_text(token)


def spelling_of(feature: str) -> Spelling:
    """Say how the values of a feature are written."""
    listed = {"gender": _GENDER_TOKENS, "genres": _GENRE_TOKENS}
    if feature in listed:
        return Listed(listed[feature])
    return ZipCode() if feature == "zip" else Decimal()


def read_users(blocks: Iterable[Block], bad: BadRows) -> list[np.ndarray]:
    """Read users.dat: user::gender::age::occupation::zip.

    Returns:
        Five arrays (n,) uint32 of tokens, every user once.
    """
    seen: set[int] = set()

    def parse(text: bytes) -> tuple[int, ...]:
        user, gender, age, occupation, code = _fields(text, 5)
        if gender not in _GENDER_TOKENS:
            raise BadField("gender", f"{_shown(gender)} is not F or M")
        tokens = _number("user", user), _GENDER_TOKENS[gender], _number("age", age), _number("occupation", occupation)
        return _once("user", tokens[0], seen), *tokens[1:], zip_token(code)

    rows = list(_good(blocks, parse, bad))
    return list(np.array(rows, dtype=np.uint32).reshape(-1, 5).T.copy())


def read_movies(blocks: Iterable[Block], bad: BadRows) -> tuple[np.ndarray, Bags]:
    """Read movies.dat: movie::title::genre|genre. The title, in whatever encoding, is passed over.

    Returns:
        (n,) uint32 movies, each once, and their genres as n bags of uint32 tokens.
    """
    seen: set[int] = set()

    def parse(text: bytes) -> tuple[int, list[int]]:
        first, *title, genres = text.split(b"::")
        if not title:
            raise BadField("", f"{_count(text)} instead of 3 separated by '::' ({_shown(text)})")
        names = genres.split(b"|") if genres else []
        for name in names:
            if name not in _GENRE_TOKENS:
                raise BadField("genres", f"{_shown(name)} is not one of the {len(GENRES)} genres")
        return _once("movie", _number("movie", first), seen), [_GENRE_TOKENS[name] for name in names]

    rows = list(_good(blocks, parse, bad))
    tokens = np.array([token for _, genres in rows for token in genres], dtype=np.uint32)
    lengths = np.array([len(genres) for _, genres in rows], dtype=np.int64)
    return np.array([movie for movie, _ in rows], dtype=np.uint32), Bags.of(tokens, lengths)


def read_ratings(
    block: Block, users: pd.Index, movies: pd.Index, bad: BadRows
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parse a block of ratings.dat: user::movie::rating::timestamp.

    Args:
        block: whole lines; empty ones are passed over.
        users: the users of users.dat.
        movies: the movies of movies.dat.
        bad: what to do with a bad line; a user or movie that is not there makes one.

    Returns:
        (n,) int64 places in `users`, (n,) int64 places in `movies`, (n,) int64 ratings from 1 to 5.
    """
    if (columns := _read_plain(block)) is not None:
        user, movie = users.get_indexer(columns[0]), movies.get_indexer(columns[1])
        rating = columns[2]
        if len(rating) == 0 or min(user.min(), movie.min(), rating.min() - 1, 5 - rating.max()) >= 0:
            return user, movie, rating

    def parse(text: bytes) -> tuple[int, int, int]:
        fields = _fields(text, 4)
        user, movie = _number("user", fields[0]), _number("movie", fields[1])
        rating = _number("rating", fields[2]) if fields[2].lstrip(b"0") in (b"1", b"2", b"3", b"4", b"5") else 0
        if not rating:
            raise BadField("rating", f"{_shown(fields[2])} is not a whole number from 1 to 5")
        _number("timestamp", fields[3], 1 << 63)
        places = users.get_indexer([user])[0], movies.get_indexer([movie])[0]
        for name, number, place in zip(("user", "movie"), (user, movie), places, strict=True):
            if place < 0:
                raise BadField(name, f"{number} is not in {name}s.dat")
        return *places, rating

    rows = np.array(list(_good([block], parse, bad)), dtype=np.int64).reshape(-1, 3)
    return rows[:, 0], rows[:, 1], rows[:, 2]


def _read_plain(block: Block) -> list[np.ndarray] | None:
    """Read four columns of numbers; None where anything else is in the text."""
    text = block.text
    if not text.strip(b"\r\n"):
        return [np.empty(0, dtype=np.int64)] * 4
    if text.translate(None, b"0123456789:\r\n") or text.count(b"\r") != text.count(b"\r\n"):
        return None
    try:
        table = csv.read_csv(
            pa.py_buffer(text.replace(b"::", b"\t")),
            csv.ReadOptions(column_names=_RATING_FIELDS, block_size=len(text) + 1, use_threads=False),
            _PARSE,
            _CONVERT,
        )
    except pa.ArrowInvalid:
        return None
    return None if any(c.null_count for c in table.columns) else [column.to_numpy() for column in table.columns]


def _good(blocks: Iterable[Block], parse: Callable[[bytes], Row], bad: BadRows) -> Iterator[Row]:
    """Yield what `parse` makes of each line that is good."""
    for line in _lines(blocks):
        try:
            yield parse(line.text)
        except BadField as error:
            bad.meet(line, error)


def _lines(blocks: Iterable[Block]) -> Iterator[Line]:
    for block in blocks:
        text = block.text.removeprefix(_BYTE_ORDER_MARK) if block.first_line == 1 else block.text
        for number, line in enumerate(text.split(b"\n"), block.first_line):
            if line := line.removesuffix(b"\r"):
                yield Line(block, number, line)


def _fields(text: bytes, needed: int) -> list[bytes]:
    fields = text.split(b"::")
    if len(fields) != needed:
        raise BadField("", f"{_count(text)} instead of {needed} separated by '::' ({_shown(text)})")
    return fields


def _number(field: str, text: bytes, limit: int = TOKENS) -> int:
    if (number := read_whole_number(text, limit)) is None:
        raise BadField(field, f"{_shown(text)} is not a whole number from 0 to {limit - 1}")
    return number


def _once(field: str, number: int, seen: set[int]) -> int:
    if number in seen:
        raise BadField(field, f"{number} is there a second time")
    seen.add(number)
    return number


def _count(text: bytes) -> str:
    fields = text.count(b"::") + 1
    return f"{fields} field{'s' * (fields > 1)}"


def _shown(field: bytes, limit: int = 40) -> str:
    text = field[: 4 * limit].decode("utf-8", errors="backslashreplace")
    return repr(text if len(text) <= limit and len(field) <= 4 * limit else text[:limit] + "…")
