"""The Criteo Display Advertising data (Kaggle 2014): seven days of ad impressions, 13 integers and 26 categories."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from recemb.datasets.base import DatasetConfig, RawChunk, RowSource
from recemb.datasets.criteo_text import CATEGORICAL, DENSE, CriteoSpelling, parse_block
from recemb.datasets.parallel import ordered
from recemb.datasets.text import describe, find_files, read_blocks
from recemb.options import option

MEMBERS = ("train.txt",)
"""What Criteo's archives call the rows with labels."""


@dataclass(kw_only=True)
class CriteoConfig(CriteoSpelling, DatasetConfig):
    """Criteo text files: `train.txt` of the Kaggle release, or any other of the same form, compressed or not."""

    name: ClassVar[str] = "criteo"

    path: str = option("data/criteo", "folder of the prepared data set")
    source: Any = option(
        None, "raw text, plain or compressed, or dac.tar.gz: a file, a glob pattern, or several in a list"
    )

    def open(self, *, on_bad_rows: str) -> RowSource:
        """Find the files."""
        return CriteoText(self.source, on_bad_rows)


class CriteoText(RowSource):
    """The rows of Criteo text files, in the order given.

    Args:
        source: see `CriteoConfig`.
        on_bad_rows: "error" or "skip".
        block_bytes: how much text is parsed at a time; 0 = the usual amount.
    """

    dense_names = DENSE
    categorical_names = CATEGORICAL
    unit = "B"

    def __init__(self, source: Any, on_bad_rows: str = "error", block_bytes: int = 0) -> None:
        super().__init__()
        self._paths = find_files(source, members=MEMBERS)
        self._on_bad_rows = on_bad_rows
        self._block_bytes = block_bytes
        self.files = [describe(path) for path in self._paths]
        self.total = sum(file["size"] for file in self.files)

    def chunks(self, pool: ThreadPoolExecutor) -> Iterator[RawChunk]:
        """Yield the rows of all files."""
        parse = partial(parse_block, on_bad_rows=self._on_bad_rows)
        for chunk, skipped in ordered(pool, parse, read_blocks(self._paths, self._block_bytes, MEMBERS)):
            self.skipped.update(skipped)
            yield chunk
