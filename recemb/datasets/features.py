"""What is known of a categorical feature: its name, how many ids it has, and how frequent they are."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import torch
from pyarrow import ipc

from recemb.options import RecembError

OUT_OF_VOCABULARY_KEY = b"out_of_vocabulary_rows"
"""Key in the schema metadata of a vocabulary file: how many training rows (values, in bags) have id 0."""


@dataclass(frozen=True)
class Feature:
    """One categorical feature with V ids: numbered by falling training frequency, id 0 = out of vocabulary; or raw.

    Attributes:
        name: the column.
        num_embeddings: V; with raw ids, the different values among the training rows and one more.
        vocabulary: the Arrow file of its values and their counts; None where there is none.
        max_length: the most ids a row may have: 1, or None where a row has a bag of any size.
        raw: ids are the raw values, any number below 2**32, and -1 for a missing one, for methods that hash.
        frequencies: what the counts are where nobody has counted; None where they are of training rows, or unknown.
    """

    name: str
    num_embeddings: int
    vocabulary: Path | None = field(default=None, repr=False)
    max_length: int | None = 1
    raw: bool = False
    frequencies: str | None = None

    @cached_property
    def counts(self) -> torch.Tensor | None:
        """(V,) int64: how often each id is among the training rows; None without a vocabulary."""
        if self.vocabulary is None:
            return None
        try:
            with pa.memory_map(str(self.vocabulary)) as source, ipc.open_file(source) as reader:
                table = reader.read_all()
                counts = torch.empty(self.num_embeddings, dtype=torch.int64)
                counts[0] = int(table.schema.metadata[OUT_OF_VOCABULARY_KEY])
                counts[1:] = torch.from_numpy(table["count"].to_numpy().copy())
        except (OSError, ValueError, KeyError, RuntimeError, pa.ArrowException) as error:
            raise RecembError(
                f"{self.vocabulary} is missing or damaged ({error}); run recemb prepare again with overwrite=true."
            ) from error
        return counts
