"""Numbers texts by a hash of 64 bits, so that a different text takes 12 bytes of memory however long it is."""

from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

_TEXTS = 1 << 18


class HashedTexts(NamedTuple):
    """Different texts and what they are looked up by.

    Attributes:
        texts: (d,) strings, none of them null or twice.
        hashes: (d,) uint64.
    """

    texts: pa.StringArray
    hashes: np.ndarray

    @classmethod
    def of(cls, texts: pa.StringArray) -> "HashedTexts":
        """Hash (d,) different texts."""
        return cls(texts, hash_texts(texts))


def hash_texts(texts: pa.Array) -> np.ndarray:
    """Return (n,) uint64 SipHashes of n texts, none of them null: the same for a text and for its bytes in UTF-8."""
    hashes = np.empty(len(texts), dtype=np.uint64)
    for start in range(0, len(texts), _TEXTS):
        # In parts, since every text becomes a Python object for a moment.
        values = texts.slice(start, _TEXTS).to_numpy(zero_copy_only=False)
        hashes[start : start + _TEXTS] = pd.util.hash_array(values.astype(object, copy=False), categorize=False)
    return hashes


class TextIndex:
    """Finds texts by their hashes, and numbers new ones in the order they come in.

    Hashes lie in sorted runs of falling length; a run that is no longer much shorter than the one before it is merged
    with it, so that there are few of them. Two texts that share a hash would share a number; among ten million texts
    there are such two in one data set of 370,000.
    """

    def __init__(self) -> None:
        self._runs: list[tuple[np.ndarray, np.ndarray]] = []
        self.size = 0

    def find(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (n,) uint32 numbers of (n,) hashes, and (n,) bool, false where there is none yet."""
        numbers, found = np.zeros(len(hashes), dtype=np.uint32), np.zeros(len(hashes), dtype=np.bool_)
        for keys, values in self._runs:
            places = np.searchsorted(keys, hashes)
            places[places == len(keys)] = 0
            hit = keys[places] == hashes
            numbers[hit] = values[places[hit]]
            found |= hit
        return numbers, found

    def number(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (d,) uint32 numbers of (d,) hashes, each there once, and (d,) bool, true where a number is new."""
        order = np.argsort(hashes)  # neighbours in a run are looked up one after the other
        numbers, found = np.empty(len(hashes), dtype=np.uint32), np.empty(len(hashes), dtype=np.bool_)
        numbers[order], found[order] = self.find(hashes[order])
        fresh = ~found
        count = int(np.count_nonzero(fresh))
        numbers[fresh] = np.arange(self.size, self.size + count)
        self.size += count
        if count:
            of_fresh = order[fresh[order]]
            self._runs.append((hashes[of_fresh], numbers[of_fresh]))
        while len(self._runs) > 1 and len(self._runs[-2][0]) <= 2 * len(self._runs[-1][0]):
            self._runs.append(_merged(self._runs.pop(), self._runs.pop()))
        return numbers, fresh


def _merged(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    keys, values = np.concatenate([one[0], other[0]]), np.concatenate([one[1], other[1]])
    order = np.argsort(keys, kind="stable")  # two sorted runs are what a stable sort is fast at
    return keys[order], values[order]
