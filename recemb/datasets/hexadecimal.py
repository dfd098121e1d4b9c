"""Decodes columns of hexadecimal tokens, eight characters at a time in one 64-bit word."""

import numpy as np


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
    decoded = _decode_words(words)
    if decoded is None:
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


def _decode_words(words: np.ndarray) -> np.ndarray | None:
    """Decode (n,) uint64 of eight ASCII digits each, the first character in the lowest byte; None if any is no digit.

    Bit 6 tells letters (0x41-0x46, 0x61-0x66) from decimal digits (0x30-0x39).
    """
    ones = _bytes(1)
    letter = (words >> np.uint64(6)) & ones
    nibbles = (words & _bytes(0x0F)) + letter * np.uint64(9)
    # A digit has bit 7 clear, bit 4 unlike bit 6, and bit 5 or bit 6 set; its value fits four bits, and is ten or more
    # exactly for letters (seen in bit 4 after adding six).
    wrong = (words >> np.uint64(7)) | ~((words >> np.uint64(4)) ^ letter) | ~((words >> np.uint64(5)) | letter)
    wrong |= (nibbles >> np.uint64(4)) | (((nibbles + _bytes(6)) >> np.uint64(4)) ^ letter)
    if np.any(wrong & ones):
        return None
    pairs = (nibbles << np.uint64(4) | nibbles >> np.uint64(8)) & np.uint64(0x00FF00FF00FF00FF)
    pairs = (pairs << np.uint64(8) | pairs >> np.uint64(16)) & np.uint64(0x0000FFFF0000FFFF)
    return ((pairs << np.uint64(16) | pairs >> np.uint64(32)) & np.uint64(0xFFFFFFFF)).astype(np.uint32)
