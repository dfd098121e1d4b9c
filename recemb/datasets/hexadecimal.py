"""Decodes columns of hexadecimal tokens, eight characters at a time in one 64-bit word."""

import numpy as np
import pyarrow as pa

from recemb.datasets.spelling import Spelling


class Hexadecimal(Spelling):
    """A token written in hexadecimal digits; leading zeros and capitals make no difference."""

    kind = "hexadecimal"
    words = "1 to 8 hexadecimal digits"

    def tokens(self, texts: pa.BinaryArray) -> tuple[np.ndarray, np.ndarray]:
        """Decode what can be."""
        offsets, data = parts_of(texts)
        lengths = np.diff(offsets)
        readable = (lengths > 0) & (lengths <= 8)
        decoded, wrong = _decode_words(_pad(data, offsets[1:][readable], lengths[readable]))
        tokens = np.zeros(len(texts), dtype=np.uint32)
        tokens[readable] = decoded
        readable[readable] = wrong == 0
        return tokens, readable

    def texts(self, tokens: np.ndarray) -> pa.StringArray:
        """Write eight digits each."""
        digits = tokens.astype(">u4").tobytes().hex().encode()
        offsets = np.arange(len(tokens) + 1, dtype=np.int32) * np.int32(8)
        return pa.StringArray.from_buffers(len(tokens), pa.py_buffer(offsets), pa.py_buffer(digits))


def parts_of(column: pa.BinaryArray) -> tuple[np.ndarray, np.ndarray]:
    """Return the (n + 1,) int32 offsets and the uint8 bytes of a binary column."""
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, dtype=np.int32)[column.offset : column.offset + len(column) + 1]
    return ends, np.frombuffer(data, dtype=np.uint8) if data is not None else np.empty(0, dtype=np.uint8)


def decode_tokens(offsets: np.ndarray, data: np.ndarray) -> tuple[np.ndarray, np.ndarray | None] | None:
    """Decode a column of tokens of up to eight hexadecimal digits.

    Args:
        offsets: (n + 1,) int32, where each token starts in `data` and the last one ends.
        data: (m,) uint8 ASCII.

    Returns:
        (n,) uint32 values and (n,) bool, true where the token is empty (None when none is); or None when a token is
        not one to eight digits.
    """
    lengths = np.diff(offsets)
    n = len(lengths)
    text = data[offsets[0] : offsets[-1]] if n else data[:0]
    missing = lengths == 0
    some_missing = bool(missing.any())
    if len(text) == 8 * (n - np.count_nonzero(missing)) and (n == 0 or lengths.max() <= 8):
        words = text.view(np.uint64)
    else:
        if lengths.max() > 8:
            return None
        words = _pad(text, (offsets[1:] - offsets[0])[~missing], lengths[~missing])
    decoded, wrong = _decode_words(words)
    if np.any(wrong):
        return None
    if not some_missing:
        return decoded, None
    values = np.zeros(n, dtype=np.uint32)
    values[~missing] = decoded
    return values, missing


def _pad(text: np.ndarray, ends: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return tokens of one to eight characters as words of eight, filled up with "0" from the left."""
    places = ends[:, None] - np.arange(8, 0, -1)
    characters = text[np.maximum(places, 0)]
    characters[places < (ends - lengths)[:, None]] = ord("0")
    return characters.view(np.uint64)[:, 0]


def _bytes(value: int) -> np.uint64:
    """Repeat a byte over a word."""
    return np.uint64(value * 0x0101010101010101)


def _decode_words(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Decode (n,) uint64 of eight ASCII digits each, the first character in the lowest byte.

    Bit 6 tells letters (0x41-0x46, 0x61-0x66) from decimal digits (0x30-0x39).

    Returns:
        (n,) uint32 values, and (n,) uint64, not zero where a character is no digit.
    """
    ones = _bytes(1)
    letter = (words >> np.uint64(6)) & ones
    nibbles = (words & _bytes(0x0F)) + letter * np.uint64(9)
    # A digit has bit 7 clear, bit 4 unlike bit 6, and bit 5 or bit 6 set; its value fits four bits, and is ten or more
    # exactly for letters (seen in bit 4 after adding six).
    wrong = (words >> np.uint64(7)) | ~((words >> np.uint64(4)) ^ letter) | ~((words >> np.uint64(5)) | letter)
    wrong |= (nibbles >> np.uint64(4)) | (((nibbles + _bytes(6)) >> np.uint64(4)) ^ letter)
    wrong &= ones
    pairs = (nibbles << np.uint64(4) | nibbles >> np.uint64(8)) & np.uint64(0x00FF00FF00FF00FF)
    pairs = (pairs << np.uint64(8) | pairs >> np.uint64(16)) & np.uint64(0x0000FFFF0000FFFF)
    return ((pairs << np.uint64(16) | pairs >> np.uint64(32)) & np.uint64(0xFFFFFFFF)).astype(np.uint32), wrong
