"""How raw values are written: from texts to the tokens and numbers that preparation works with, and back to texts.

Preparation has fast parsers of its own for whole files; what is here looks at single values and must agree with them,
so a rule that is more than a call of Python is a function that both use.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import compute as pc

from recemb.options import RecembError

TOKENS = 1 << 32
"""Tokens lie below this."""

Read = TypeVar("Read")


class Spelling(ABC):
    """How the raw values of one categorical feature are written.

    Attributes:
        kind: its name, as an exported model keeps it.
        words: what a value looks like, for a person.
        takes_numbers: an integer means the value that is written with its decimal digits.
    """

    kind: ClassVar[str]
    words: str
    takes_numbers: ClassVar[bool] = False

    @abstractmethod
    def tokens(self, texts: pa.BinaryArray) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens of n texts, none of them null.

        Returns:
            (n,) uint32, and (n,) bool, false where no such text can be in the raw data; an empty text is one.
        """

    @abstractmethod
    def texts(self, tokens: np.ndarray) -> pa.StringArray:
        """Write (n,) uint32 tokens as a person would; `tokens` of the n texts gives them back."""


class OneByOne(Spelling):
    """A spelling that is read one text at a time; each text once, however many rows have it."""

    @abstractmethod
    def token(self, text: bytes) -> int | None:
        """Return the token of a text, None where no such text can be in the raw data."""

    @abstractmethod
    def text(self, token: int) -> str:
        """Return what the token stands for."""

    def tokens(self, texts: pa.BinaryArray) -> tuple[np.ndarray, np.ndarray]:
        """Read the different texts."""
        found, places = read_distinct(texts, self.token)
        readable = np.array([token is not None for token in found], dtype=np.bool_)
        tokens = np.array([token or 0 for token in found], dtype=np.uint32)
        return tokens[places], readable[places]

    def texts(self, tokens: np.ndarray) -> pa.StringArray:
        """Write one after the other."""
        return pa.array([self.text(token) for token in tokens.tolist()], pa.string())


class Decimal(OneByOne):
    """A token written as a whole number."""

    kind = "decimal"
    words = f"a whole number from 0 to {TOKENS - 1}"
    takes_numbers = True

    def token(self, text: bytes) -> int | None:
        """Return the number."""
        return read_whole_number(text)

    def text(self, token: int) -> str:
        """Return its digits."""
        return str(token)


class Listed(OneByOne):
    """One of a few texts.

    Args:
        tokens: the token of each.
    """

    kind = "listed"

    def __init__(self, tokens: Mapping[bytes, int]) -> None:
        self._tokens = tokens
        self._texts = {token: text.decode() for text, token in tokens.items()}
        self.words = f"one of {', '.join(self._texts.values())}"

    def token(self, text: bytes) -> int | None:
        """Look a text up."""
        return self._tokens.get(text)

    def text(self, token: int) -> str:
        """Look a token up."""
        return self._texts[token]


class Numbers(ABC):
    """How the numbers of one dense feature are written, and what becomes of them.

    Attributes:
        kind: name of the transform, as an exported model keeps it.
        formula: the transform in words.
    """

    kind: str
    formula: str

    @abstractmethod
    def read(self, text: bytes) -> float | None:
        """Return the number in a text, None where no such text can be in the raw data."""

    @abstractmethod
    def transform(self, values: np.ndarray) -> np.ndarray:
        """Turn (n,) float64, NaN = missing, into the (n,) float32 that models take."""

    def values(self, texts: pa.BinaryArray) -> np.ndarray:
        """Read and transform n texts, none of them null, into (n,) float32; NaN where one cannot be read."""
        found, places = read_distinct(texts, self.read)
        return self.transform(np.array([np.nan if x is None else x for x in found], dtype=np.float64)[places])


class AsTheyAre(Numbers):
    """Any finite numbers, not transformed."""

    kind = "none"
    formula = "x"

    def read(self, text: bytes) -> float | None:
        """Read what Python does."""
        try:
            number = float(text)
        except ValueError:
            return None
        return number if np.isfinite(number) else None

    def transform(self, values: np.ndarray) -> np.ndarray:
        """Round to float32."""
        with np.errstate(over="ignore"):
            return values.astype(np.float32)


def read_whole_number(text: bytes, limit: int = TOKENS) -> int | None:
    """Return the number that ASCII digits and nothing else stand for, None unless it is below `limit`."""
    # The length is looked at first: int() is quadratic in it, and refuses very long texts in its own words.
    if text.isdigit() and len(text.lstrip(b"0")) <= 19 and (number := int(text.lstrip(b"0") or b"0")) < limit:
        return number
    return None


def read_distinct(texts: pa.BinaryArray, read: Callable[[bytes], Read]) -> tuple[list[Read], np.ndarray]:
    """Read each different one of n texts, none of them null, once.

    Returns:
        d results, and (n,) int32, which of them each text has.
    """
    coded = texts.dictionary_encode()
    return [read(text) for text in coded.dictionary.to_pylist()], coded.indices.to_numpy(zero_copy_only=False)


def as_texts(name: str, values: Any, takes_numbers: bool, words: str) -> pa.BinaryArray:
    """Turn n values as Python, numpy, pandas or pyarrow hold them into texts, null where one is missing.

    Args:
        name: the feature, for what is said to a person.
        values: texts, or numbers where they are taken; None, NaN, NA and an empty text are missing.
        takes_numbers: see `Spelling`.
        words: what a value looks like.

    Raises:
        RecembError: not a list, or of another type.
    """
    if not is_list(values):
        raise RecembError(f"{name} needs a list of values, one a row, not {_type_of(values)}.")
    texts = _columnwise(values, takes_numbers)
    if texts is None:
        texts = pa.array([_text_of(name, value, takes_numbers, words) for value in values], pa.binary())
    return pc.if_else(pc.equal(pc.binary_length(texts), 0), pa.scalar(None, pa.binary()), texts)


def is_list(values: Any) -> bool:
    """Tell a list or array of any kind from a text, a mapping or a single value."""
    if isinstance(values, (str, bytes, bytearray, Mapping)) or getattr(values, "ndim", 1) != 1:
        return False
    return hasattr(values, "__len__") and hasattr(values, "__iter__")


def is_missing(value: Any) -> bool:
    """Tell None, NaN, NaT, NA and an empty text."""
    if isinstance(value, (str, bytes)):
        return not value
    return value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and value != value)


def _columnwise(values: Any, takes_numbers: bool) -> pa.BinaryArray | None:
    """Convert a column of one type at once; None where it has to be looked at value by value."""
    try:
        array = values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(values, from_pandas=True)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):  # mixed, huge, not Unicode or not for Arrow
        return None
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = array.type
    if array.null_count == len(array):
        return pa.nulls(len(array), pa.binary())
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind):
        return array.cast(pa.binary())
    if takes_numbers and pa.types.is_integer(kind):
        return array.cast(pa.string()).cast(pa.binary())
    if takes_numbers and pa.types.is_floating(kind):
        return texts_of_floats(array.cast(pa.float64()))
    return None


def texts_of_floats(array: pa.Array) -> pa.BinaryArray:
    """Write floats, whole ones as integers: a column of integers with gaps is one of floats in pandas."""
    numbers = array.to_numpy(zero_copy_only=False)
    whole = (np.abs(numbers) < 2.0**63) & (numbers == np.floor(numbers))
    integers = pa.array(np.where(whole, numbers, 0.0).astype(np.int64))
    others = pa.array(numbers, from_pandas=True)
    return pc.if_else(pa.array(whole), integers.cast(pa.string()), others.cast(pa.string())).cast(pa.binary())


def _text_of(name: str, value: Any, takes_numbers: bool, words: str) -> bytes | None:
    if isinstance(value, (np.generic, pa.Scalar)):
        value = value.item() if isinstance(value, np.generic) else value.as_py()
    if is_missing(value):
        return None
    if isinstance(value, str):
        return value.encode("utf-8", errors="backslashreplace")  # half a surrogate pair comes in no raw text
    if isinstance(value, bytes):
        return value
    if takes_numbers and isinstance(value, int) and not isinstance(value, bool):
        return (str(value) if abs(value) < 1 << 64 else hex(value)).encode()  # str() refuses the very long
    if takes_numbers and isinstance(value, float):
        return str(int(value) if abs(value) < 2.0**63 and value == int(value) else value).encode()
    wanted = "a text or a number" if takes_numbers else "a text"
    raise RecembError(f"{name} needs {wanted} ({words}) or None, not {_type_of(value)}.")


def _type_of(value: Any) -> str:
    return f"{value!r:.40} of type {type(value).__name__}"
