"""Raw columns on disk between the passes: one plain binary file a column, two for a column of bags.

How many rows there are is known only after the first pass, and the vocabulary only after the second, so every row is
parked here. Reads go through `pread` into fresh arrays: a memory map would count its pages into the peak memory.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from recemb.datasets.bags import Bags
from recemb.datasets.base import RawChunk
from recemb.datasets.hexadecimal import parts_of
from recemb.datasets.spelling import TOKENS
from recemb.datasets.split_columns import KINDS, split_codes
from recemb.datasets.text_index import TextIndex
from recemb.options import RecembError


class Spool:
    """The raw rows of one preparation; F categorical, K dense and M multi-valued features.

    Args:
        folder: created here, deleted by the owner.
        dense: K.
        categorical: F.
        multi_valued: M.
    """

    def __init__(self, folder: Path, dense: int, categorical: int, multi_valued: int = 0) -> None:
        folder.mkdir()
        self.folder = folder
        self.dense = dense
        self.categorical = categorical
        self.multi_valued = multi_valued
        self.rows = 0
        self.values = [0] * multi_valued
        self._texts: dict[int, TextIndex] = {}
        self._text_bytes: Counter[int] = Counter()
        self._files: dict[str, BinaryIO] = {}

    def append(self, chunk: RawChunk) -> None:
        """Add the rows of a chunk."""
        n = len(chunk.labels)
        sizes = [len(bags) for bags in chunk.bags]
        if sizes != [n] * self.multi_valued:
            raise ValueError(f"a chunk of {n} rows has bags of {sizes} rows instead of {self.multi_valued} times {n}")
        if chunk.texts:
            chunk = self._numbered(chunk)
        self._write("label", chunk.labels)
        for j, column in enumerate(chunk.dense):
            self._write(f"dense{j}", column)
        for j, column in enumerate(chunk.tokens):
            self._write(f"token{j}", column)
        # Eight features share one byte a row, so that any range of rows can be read without unpacking its neighbours.
        for first in range(0, self.categorical, 8):
            plane = np.zeros(n, dtype=np.uint8)
            for bit, missing in enumerate(chunk.missing[first : first + 8]):
                if missing is not None:
                    plane |= missing.view(np.uint8) << np.uint8(bit)
            self._write(f"missing{first // 8}", plane)
        if chunk.probability is not None:
            self._write("probability", chunk.probability)
        if chunk.split is not None:
            self._write("split column", chunk.split)
        for j, bags in enumerate(chunk.bags):
            if self.rows == 0 and f"end{j}" not in self._files:
                self._write(f"end{j}", np.zeros(1, dtype=np.int64))
            self._write(f"end{j}", bags.offsets[1:].astype(np.int64) - int(bags.offsets[0]) + self.values[j])
            self._write(f"bag{j}", bags.flat.astype(np.uint32, copy=False))
            self.values[j] += len(bags.flat)
        self.rows += n

    def finish(self, split_by: str = "", split_shown: str = "") -> None:
        """Hand everything to the operating system, and split by what the rows say; reading may begin.

        Args:
            split_by: see `RowSource`.
            split_shown: see `RowSource`.

        Raises:
            RecembError: the column leaves a split without rows.
        """
        self._flush()
        if split_by and self.rows:
            column = partial(self._read, "split column", KINDS[split_by])
            for codes in split_codes(split_by, column, self.rows, split_shown):
                self._write("split", codes)
            self._flush()

    def close(self) -> None:
        """Close the files; what does not fit on the disk any more is lost, as it may be by then."""
        for file in self._files.values():
            with suppress(OSError):
                file.close()
        self._files.clear()

    def labels(self, start: int, stop: int) -> np.ndarray:
        """Return (stop - start,) uint8."""
        return self._read("label", np.uint8, start, stop)

    def splits(self, start: int, stop: int) -> np.ndarray:
        """Return (stop - start,) uint8 split codes, for sources that split by a column."""
        return self._read("split", np.uint8, start, stop)

    def texts(self, feature: int) -> Callable[[pa.Array], pa.LargeStringArray] | None:
        """Return the function from tokens, null where missing, to texts; None for a feature that has no texts.

        Features count from the single-valued ones on.
        """
        if feature not in self._texts:
            return None
        size = self._texts[feature].size
        if size == 0:
            return pa.array([], pa.large_string()).take
        # Mapped, since texts may be long, and only those of the vocabulary are looked at.
        parts = (pa.memory_map(str(self.folder / name)).read_buffer() for name in _text_files(feature))
        return pa.LargeStringArray.from_buffers(size, *parts).take

    def dense_column(self, feature: int, start: int, stop: int) -> np.ndarray:
        """Return (stop - start,) float32 of one dense feature."""
        return self._read(f"dense{feature}", np.float32, start, stop)

    def probabilities(self, start: int, stop: int) -> np.ndarray:
        """Return (stop - start,) float64, for sources that know them."""
        return self._read("probability", np.float64, start, stop)

    def tokens(self, feature: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (stop - start,) uint32 and (stop - start,) bool, true where the value is missing."""
        plane = self._read(f"missing{feature // 8}", np.uint8, start, stop)
        missing = (plane >> np.uint8(feature % 8)) & np.uint8(1)
        return self._read(f"token{feature}", np.uint32, start, stop), missing.view(np.bool_)

    def bags(self, feature: int, start: int, stop: int) -> Bags:
        """Return (stop - start) bags of uint32 of one multi-valued feature."""
        ends = self._read(f"end{feature}", np.int64, start, stop + 1)
        return Bags(self._read(f"bag{feature}", np.uint32, int(ends[0]), int(ends[-1])), ends - ends[0])

    def spans(self, feature: int, start: int, stop: int, most: int) -> Iterator[tuple[int, int]]:
        """Cut a range of rows so that each part has at most `most` values of a multi-valued feature, or is one row."""
        ends = self._read(f"end{feature}", np.int64, start, stop + 1)
        at = 0
        while at < stop - start:
            until = max(int(np.searchsorted(ends, ends[at] + most, side="right")) - 1, at + 1)
            yield start + at, start + until
            at = until

    def _flush(self) -> None:
        for file in self._files.values():
            file.flush()

    def _numbered(self, chunk: RawChunk) -> RawChunk:
        """Turn places in a chunk's own texts into tokens, and keep the texts that are new."""
        tokens, bags = list(chunk.tokens), list(chunk.bags)
        for feature, (texts, hashes) in enumerate(chunk.texts):
            numbers, fresh = self._texts.setdefault(feature, TextIndex()).number(hashes)
            if self._texts[feature].size > TOKENS:
                raise RecembError(
                    f"a feature has more than {TOKENS:,} different values, which is the most there can be."
                )
            self._keep_texts(feature, texts.filter(pa.array(fresh)))
            numbers = np.append(numbers, np.uint32(0))  # a chunk without any text has a place for the missing ones
            if feature < self.categorical:
                tokens[feature] = numbers[tokens[feature]]
            else:
                places = bags[feature - self.categorical]
                bags[feature - self.categorical] = Bags(numbers[places.flat], places.offsets - places.offsets[0])
        return chunk._replace(tokens=tokens, bags=tuple(bags))

    def _keep_texts(self, feature: int, texts: pa.StringArray) -> None:
        ends_file, bytes_file = _text_files(feature)
        if ends_file not in self._files:
            self._write(ends_file, np.zeros(1, dtype=np.int64))
        offsets, data = parts_of(texts)
        self._write(ends_file, offsets[1:].astype(np.int64) - int(offsets[0]) + self._text_bytes[feature])
        self._write(bytes_file, data[offsets[0] : offsets[-1]])
        self._text_bytes[feature] += int(offsets[-1] - offsets[0])

    def _write(self, name: str, column: np.ndarray) -> None:
        if name not in self._files:
            # Kept open over all passes and closed by `close`.
            self._files[name] = (self.folder / name).open("w+b", buffering=1 << 16)
        self._files[name].write(np.ascontiguousarray(column).data)

    def _read(self, name: str, dtype: type[np.generic], start: int, stop: int) -> np.ndarray:
        column: np.ndarray = np.empty(stop - start, dtype=dtype)
        buffer = column.view(np.uint8).data
        offset = start * column.itemsize
        while len(buffer):
            got = os.preadv(self._files[name].fileno(), [buffer], offset)
            if got == 0:
                raise OSError(f"{self.folder / name} ended early; something else changed it.")
            buffer, offset = buffer[got:], offset + got
        return column


def _text_files(feature: int) -> tuple[str, str]:
    """Return the names of the files that hold where each text ends, and the texts."""
    return f"textend{feature}", f"text{feature}"
