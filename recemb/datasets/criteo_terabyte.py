"""The Criteo 1TB Click Logs: 24 files of a day each, in the form of the Kaggle data."""

import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from recemb.datasets.base import DatasetConfig, RawChunk, RowSource
from recemb.datasets.containers import bare_name
from recemb.datasets.criteo import CriteoText
from recemb.datasets.criteo_text import CriteoSpelling, parse_block
from recemb.datasets.parallel import ordered
from recemb.datasets.text import Block, find_files, read_blocks
from recemb.options import RecembError, option


@dataclass(kw_only=True)
class CriteoTerabyteConfig(CriteoSpelling, DatasetConfig):
    """day_0 to day_23 or some of them, compressed or not; the number in a file's name is its day."""

    name: ClassVar[str] = "criteo_terabyte"

    path: str = option("data/criteo_terabyte", "folder of the prepared data set")
    source: Any = option(
        None, "the folder with day_0 to day_23, plain or compressed, or some of these files, in any order"
    )
    protocol: str = option(
        "last_day",
        "how rows are split: last_day (all days but the last train; the first half of the last is validation, the "
        "second the test) or random",
    )

    def open(self, *, on_bad_rows: str) -> RowSource:
        """Find the files."""
        return CriteoDays(self.source, self.protocol, on_bad_rows)


class CriteoDays(CriteoText):
    """The rows of several days, in the order of the days.

    Args:
        source: see `CriteoTerabyteConfig`.
        protocol: "last_day" or "random".
        on_bad_rows: "error" or "skip".
        block_bytes: how much text is parsed at a time; 0 = the usual amount.
    """

    def __init__(self, source: Any, protocol: str, on_bad_rows: str = "error", block_bytes: int = 0) -> None:
        self._day_of = _days(source)
        super().__init__([str(path) for path in self._day_of], on_bad_rows, block_bytes)
        if protocol == "last_day":
            self.split_by, self.split_shown = "day", f"dataset.source={source}"

    def chunks(self, pool: ThreadPoolExecutor) -> Iterator[RawChunk]:
        """Yield the rows of all days."""

        def parse(block: Block) -> tuple[RawChunk, Counter[str]]:
            chunk, skipped = parse_block(block, self._on_bad_rows)
            return chunk._replace(
                split=np.full(
                    len(chunk.labels),
                    self._day_of[block.path if block.path in self._day_of else block.path.parent],
                    np.uint16,
                )
            ), skipped

        for chunk, skipped in ordered(pool, parse, read_blocks(self._paths, self._block_bytes)):
            self.skipped.update(skipped)
            yield chunk if self.split_by else chunk._replace(split=None)


def _days(source: Any) -> dict[Path, int]:
    """Return the files in the order of their days, and these."""
    folder = Path(source).expanduser() if isinstance(source, str) and source else None
    if folder is not None and folder.is_dir():
        paths = [path for path in folder.iterdir() if re.fullmatch(r"day_[0-9]{1,4}", bare_name(path))]
        if not paths:
            raise RecembError(f"{source} has no files day_0, day_1, … in it; name the folder that holds them.")
        paths = find_files([str(path) for path in paths])
    else:
        paths = find_files(source)
    days: dict[int, Path] = {}
    for path in paths:
        number = re.fullmatch(r"\D*([0-9]{1,4})(\D.*)?", path.name)
        if number is None:
            raise RecembError(f"{path} does not say which day it is; name it as Criteo did, e.g. day_7 or day_7.gz.")
        if (other := days.setdefault(int(number[1]), path)) != path:
            raise RecembError(f"{other} and {path} are both day {int(number[1])}; name one of them.")
    return {days[day]: day for day in sorted(days)}
