"""The three passes of a preparation, each in bounded memory.

1. Read the source once and park its columns (`spool`).
2. Count the values of every feature over the training rows and number them (`vocabulary`).
3. Replace values by ids and write the Arrow files (`writer`).
"""

import hashlib
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from recemb.datasets.bags import Bags
from recemb.datasets.base import DatasetConfig, RowSource
from recemb.datasets.machine import usable_cores
from recemb.datasets.parallel import ordered
from recemb.datasets.prepared import SCHEMA_VERSION
from recemb.datasets.splits import PROTOCOLS, SPLITS
from recemb.datasets.spool import Spool
from recemb.datasets.vocabulary import Mapper, RawIds, Vocabulary, count_values
from recemb.datasets.writer import SplitWriter, schema_of
from recemb.options import RecembError

_SLAB_ROWS = 1 << 17
_SLAB_VALUES = 1 << 21


class Preparation:
    """One run of the three passes.

    Args:
        config: how rows are split and numbered.
        source: the raw rows.
        folder: an empty folder, which gets everything but meta.json.
        progress: show progress bars on stderr.
    """

    def __init__(self, config: DatasetConfig, source: RowSource, folder: Path, progress: bool) -> None:
        self.config = config
        self.source = source
        self.folder = folder
        self.progress = progress
        sizes = (len(names) for names in (source.dense_names, source.categorical_names, source.multi_valued))
        self.spool = Spool(folder / "spool", *sizes)

    def run(self) -> dict[str, Any]:
        """Do it all and return the contents of meta.json."""
        pool = ThreadPoolExecutor(usable_cores(), thread_name_prefix="prepare")
        try:
            self._read(pool)
            vocabularies = self._count(pool)
            return self._write(pool, vocabularies)
        finally:
            pool.shutdown(cancel_futures=True)
            self.spool.close()

    def _read(self, pool: ThreadPoolExecutor) -> None:
        source, position, started = self.source, 0, time.perf_counter()
        with self._bar("reading", source.total, source.unit) as bar:
            for chunk in source.chunks(pool):
                self.spool.append(chunk)
                speed = self.spool.rows / (time.perf_counter() - started)
                bar.set_postfix_str(f"{speed:,.0f} rows/s", refresh=False)
                bar.update(chunk.position - position)
                position = chunk.position
            self.spool.finish(source.split_by, source.split_shown)
        self._check_splits()

    def _check_splits(self) -> None:
        rows, skipped = self.spool.rows, sum(self.source.skipped.values())
        # Only a small data set can have an empty split, and only there are all codes in memory at once.
        if rows >= 10_000 or len(np.unique(self._codes(0, rows))) == len(SPLITS):
            return
        left_out = f" (after {skipped} bad ones were left out)" if skipped else ""
        raise RecembError(
            f"{rows} rows{left_out} are too few for the three splits of protocol "
            f"{self.source.protocol or self.config.protocol}; "
            "give some dozens at least."
        )

    def _count(self, pool: ThreadPoolExecutor) -> list[Vocabulary | RawIds]:
        names = self.source.feature_names
        with self._bar("counting", self.spool.rows * len(names), "value") as bar:
            counts = count_values(self.spool, self._codes, pool, bar.update)
        if self.config.vocabulary == "none":
            return [RawIds(count.distinct) for count in counts]
        (self.folder / "vocabulary").mkdir()
        vocabularies: list[Vocabulary | RawIds] = []
        for feature, name in enumerate(names):
            # Popped, so that one feature's counts are gone before the next one's vocabulary is made.
            vocabulary = counts.pop(0).number(self.config.least_count(name))
            vocabulary.texts = self.spool.texts(feature)
            vocabulary.write(self.folder / "vocabulary" / f"{name}.arrow")
            vocabularies.append(vocabulary)
        return vocabularies

    def _write(self, pool: ThreadPoolExecutor, vocabularies: list[Vocabulary | RawIds]) -> dict[str, Any]:
        spool, source = self.spool, self.source
        raw = self.config.vocabulary == "none"
        schema = schema_of(source.dense_names, source.categorical_names, source.multi_valued, raw)
        digest = hashlib.sha256(schema.to_string().encode())
        features = []
        for name, vocabulary in zip(source.feature_names, vocabularies, strict=True):
            vocabulary.feed(digest, name)
            features.append(_describe(name, vocabulary, name in source.multi_valued))
        mappers = [vocabulary.mapper() for vocabulary in vocabularies]
        vocabularies.clear()
        writers = [SplitWriter(self.folder / f"{s}.arrow", schema, source.knows_probability) for s in SPLITS]
        try:
            with self._bar("writing", spool.rows, "row") as bar:
                self._map_rows(pool, mappers, writers, bar.update)
            for writer in writers:
                writer.finish()
        finally:
            for writer in writers:
                writer.abandon()
        spool.close()
        shutil.rmtree(spool.folder)
        for writer in writers:
            digest.update(writer.digest())
        return self._meta(features, writers, digest.hexdigest())

    def _map_rows(
        self,
        pool: ThreadPoolExecutor,
        mappers: list[Mapper],
        writers: list[SplitWriter],
        advance: Callable[[int], object],
    ) -> None:
        spool = self.spool
        step = _slab_rows(spool)
        slabs = [(start, min(start + step, spool.rows)) for start in range(0, spool.rows, step)]
        columns_of: list[Callable[[int, int], np.ndarray | Bags]] = [spool.labels]
        columns_of += [partial(spool.dense_column, j) for j in range(spool.dense)]
        columns_of += [partial(_ids, spool, mapper, j) for j, mapper in enumerate(mappers[: spool.categorical])]
        columns_of += [partial(_bags, spool, mapper, j) for j, mapper in enumerate(mappers[spool.categorical :])]
        work = ((column_of, slab) for slab in slabs for column_of in columns_of)
        # Two slabs ahead: one being mapped while the one before it is written.
        columns = ordered(pool, lambda item: item[0](*item[1]), work, ahead=2 * len(columns_of))
        for start, stop in slabs:
            slab = [next(columns) for _ in columns_of]
            flat = [column for column in slab if not isinstance(column, Bags)]
            bags = [column for column in slab if isinstance(column, Bags)]
            codes = self._codes(start, stop)
            probability = spool.probabilities(start, stop) if self.source.knows_probability else None
            for code, writer in enumerate(writers):
                writer.append(flat, bags, _rows_with(codes, code), probability)
            advance(stop - start)

    def _meta(self, features: list[dict[str, Any]], writers: list[SplitWriter], fingerprint: str) -> dict[str, Any]:
        by_split = dict(zip(SPLITS, writers, strict=True))
        meta: dict[str, Any] = {
            "schema": SCHEMA_VERSION,
            "recemb": _version(),
            "dataset": self.config.name,
            "protocol": self.source.protocol or self.config.protocol,
            "min_count": self.config.min_count,
            "vocabulary": self.config.vocabulary,
            "seed": self.config.seed,
            "rows": {split: writer.rows for split, writer in by_split.items()},
            "positive_rate": {split: writer.positives / writer.rows for split, writer in by_split.items()},
            "dense": list(self.source.dense_names),
            "categorical": features,
            "sources": self.source.files,
            "skipped": dict(sorted(self.source.skipped.items())),
            "fingerprint": fingerprint,
            "config": self.config.identity(),
        }
        if self.source.transforms:
            meta["transforms"] = self.source.transforms
        if self.source.knows_probability:
            meta["ceiling"] = {split: writer.ceiling() for split, writer in by_split.items()}
        return meta

    def _codes(self, start: int, stop: int) -> np.ndarray:
        if self.source.split_by:
            return self.spool.splits(start, stop)
        return PROTOCOLS[self.config.protocol](start, stop, self.spool.rows, self.config.seed)

    def _bar(self, what: str, total: int, unit: str) -> tqdm:
        # Without a terminal every update is a line in somebody's log.
        seconds = 0.2 if sys.stderr.isatty() else 10.0
        return tqdm(total=total, desc=what, unit=unit, unit_scale=True, disable=not self.progress, mininterval=seconds)


def _ids(spool: Spool, mapper: Mapper, feature: int, start: int, stop: int) -> np.ndarray:
    return mapper(*spool.tokens(feature, start, stop))


def _bags(spool: Spool, mapper: Mapper, feature: int, start: int, stop: int) -> Bags:
    tokens = spool.bags(feature, start, stop)
    return Bags(mapper(tokens.values, None), tokens.offsets)


def _slab_rows(spool: Spool) -> int:
    """Return how many rows are mapped at a time: fewer where bags are so long that they would fill the memory."""
    longest = max(spool.values, default=0)
    return max(1, min(_SLAB_ROWS, _SLAB_VALUES * spool.rows // max(longest, 1)))


def _rows_with(codes: np.ndarray, code: int) -> slice | np.ndarray:
    """Return the rows of one split: a slice where they lie together, which costs no copy, else (n,) bool."""
    chosen = codes == code
    where = np.flatnonzero(chosen)
    if len(where) == 0:
        return slice(0, 0)
    if where[-1] - where[0] + 1 == len(where):
        return slice(int(where[0]), int(where[-1]) + 1)
    return chosen


def _describe(name: str, vocabulary: Vocabulary | RawIds, multi_valued: bool) -> dict[str, Any]:
    return {
        "name": name,
        "cardinality": vocabulary.num_embeddings,
        "distinct": vocabulary.distinct,
        "out_of_vocabulary_rows": vocabulary.out_of_vocabulary_rows if isinstance(vocabulary, Vocabulary) else None,
        "max_length": None if multi_valued else 1,
    }


def _version() -> str:
    try:
        return version("recemb")
    except PackageNotFoundError:
        return "unknown"
