"""Values that are texts of any kind, read by looking them up among those that a vocabulary lists."""

import numpy as np
import pyarrow as pa
from pyarrow import compute as pc

from recemb.datasets.spelling import Spelling
from recemb.datasets.text_index import TextIndex, hash_texts


class Text(Spelling):
    """A text as the source has it, to the last character; the token of one is its place in the vocabulary.

    Args:
        values: (V - 1,) strings in id order, null for the missing value.
    """

    kind = "text"
    words = "a text exactly as in the data, or a whole number for its digits"
    takes_numbers = True

    def __init__(self, values: pa.Array | pa.ChunkedArray) -> None:
        values = values.cast(pa.large_string())
        self._values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
        self._index = TextIndex()
        self._index.number(hash_texts(self._values.cast(pa.large_binary()).fill_null(b"")))

    def tokens(self, texts: pa.BinaryArray) -> tuple[np.ndarray, np.ndarray]:
        """Look n texts up; what is not listed is said to be unreadable, which has the unknown value's id."""
        places, found = self._index.find(hash_texts(texts))
        places[~found] = 0
        if len(self._values):
            listed = self._values.take(pa.array(places)).cast(pa.large_binary())
            found &= np.asarray(pc.equal(listed, texts.cast(pa.large_binary())).fill_null(False))
        return places, found

    def texts(self, tokens: np.ndarray) -> pa.StringArray:
        """Return the texts at n places."""
        return self._values.take(pa.array(tokens)).cast(pa.string())
