"""MovieLens 1M: a million ratings of movies by users, as clicks and non-clicks of six features.

The protocol is that of Unified Embedding (Coleman et al., arXiv:2305.12102): ratings 1 and 2 are label 0, 4 and 5 are
label 1, 3 is left out; what is known of a rating is its user, its movie, and the user's gender, age, occupation and zip
code.
"""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

from recemb.datasets.base import DatasetConfig, RawChunk, RowSource
from recemb.datasets.containers import COMPRESSED, bare_name, format_of, open_text
from recemb.datasets.movielens_text import BadRows, read_movies, read_ratings, read_users, spelling_of
from recemb.datasets.parallel import ordered
from recemb.datasets.spelling import Spelling
from recemb.datasets.text import Block, describe, find_files, read_blocks
from recemb.options import RecembError, option

FILES = ("users.dat", "movies.dat", "ratings.dat")
FEATURES = ("user", "movie", "gender", "age", "occupation", "zip")


@dataclass(kw_only=True)
class MovieLens1MConfig(DatasetConfig):
    """The `ml-1m` folder of GroupLens: ratings.dat, users.dat and movies.dat, each compressed or not, or ml-1m.zip."""

    name: ClassVar[str] = "movielens_1m"

    path: str = option("data/movielens_1m", "folder of the prepared data set")
    source: str | None = option(
        None, "the ml-1m folder with ratings.dat, users.dat and movies.dat, plain or compressed; or ml-1m.zip"
    )
    protocol: str = option("random", "how rows are split: random; they lie by user, so that an order says nothing")
    min_count: int = option(1, "a value seen fewer times than this in the training rows is out of vocabulary")
    genres: bool = option(False, "add the movie's genres, a multi-valued feature")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.protocol == "last_day":
            raise RecembError(
                "dataset.protocol=last_day splits rows by their order, and those of MovieLens lie by user and not by "
                "time; leave it out, or choose random."
            )

    def open(self, *, on_bad_rows: str) -> RowSource:
        """Find the three files."""
        return MovieLensRows(self.source, on_bad_rows, self.genres)

    @classmethod
    def spelling(cls, feature: str) -> Spelling:
        """Say how each feature is written."""
        return spelling_of(feature)


class MovieLensRows(RowSource):
    """The ratings in the order of their file, without those of 3.

    Args:
        source: the folder, or an archive of it.
        on_bad_rows: "error" or "skip"; a rating of a user or movie that was left out is itself a bad row.
        genres: add the multi-valued feature.
        block_bytes: how much text is parsed at a time; 0 = the usual amount.
    """

    dense_names = ()
    categorical_names = FEATURES
    unit = "B"

    def __init__(
        self, source: str | None, on_bad_rows: str = "error", genres: bool = False, block_bytes: int = 0
    ) -> None:
        super().__init__()
        self._paths = _find(source)
        self._on_bad_rows = on_bad_rows
        self._block_bytes = block_bytes
        self.multi_valued = ("genres",) if genres else ()
        self.files = [describe(path) for path in dict.fromkeys(self._paths)]
        self.total = sum(file["size"] for file in self.files)

    def chunks(self, pool: ThreadPoolExecutor) -> Iterator[RawChunk]:
        """Yield all rows; users and movies, of which there are thousands, are read first and held."""
        users_path, movies_path, ratings_path = self._paths
        bad = BadRows(self._on_bad_rows)
        users = read_users(read_blocks([users_path], self._block_bytes, FILES[:1]), bad)
        movies, genres = read_movies(read_blocks([movies_path], self._block_bytes, FILES[1:2]), bad)
        self.skipped.update(bad.skipped)
        user_at, movie_at = pd.Index(users[0].astype(np.int64)), pd.Index(movies.astype(np.int64))
        before = self.total - self.files[-1]["size"]

        def parse(block: Block) -> tuple[RawChunk, Counter[str]]:
            bad = BadRows(self._on_bad_rows)
            user, movie, ratings = read_ratings(block, user_at, movie_at, bad)
            kept = ratings != 3
            user, movie = user[kept], movie[kept]
            tokens = [users[0][user], movies[movie], *(column[user] for column in users[1:])]
            bags = (genres[movie],) if self.multi_valued else ()
            labels = (ratings[kept] > 3).astype(np.uint8)
            return RawChunk(labels, [], tokens, [None] * len(tokens), before + block.position, bags=bags), bad.skipped

        for chunk, skipped in ordered(pool, parse, read_blocks([ratings_path], self._block_bytes, FILES[2:])):
            self.skipped.update(skipped)
            yield chunk


def _find(source: str | None) -> list[Path]:
    """Return the three files, users first."""
    needed = ", ".join(FILES)
    if source is None or not str(source).strip():
        raise RecembError(
            f"dataset.source is not given; name the ml-1m folder, which holds {needed}, e.g. dataset.source=ml-1m."
        )
    folder = Path(source).expanduser()
    if not folder.exists():
        raise RecembError(f"There is no folder {source}; dataset.source must be the ml-1m folder, with {needed}.")
    if folder.is_file() and format_of(folder):
        paths = [find_files(str(folder), members=(name,))[0] for name in FILES]
        if all(map(_is_archive_with, paths, FILES)):
            return paths
    if not folder.is_dir():
        raise RecembError(
            f"{source} is not a folder; dataset.source must be the ml-1m folder, with {needed}, or ml-1m.zip."
        )
    paths = []
    for name in FILES:
        found = [path for ending in ("", *COMPRESSED) if (path := folder / f"{name}{ending}").exists()]
        if not found:
            raise RecembError(f"{source} has no {name} or {name}.gz; dataset.source must be a whole ml-1m folder.")
        paths += find_files(str(found[0]))
    return paths


def _is_archive_with(path: Path, name: str) -> bool:
    with path.open("rb") as raw, open_text(path, raw, (name,)) as (where, _):
        return where != path and bare_name(where) == name
