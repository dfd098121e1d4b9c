"""An invented folder in the form of MovieLens 1M, and the rows it stands for by plain Python."""

import gzip
import random
from dataclasses import dataclass
from typing import ClassVar

from recemb.datasets import MovieLens1MConfig
from recemb.datasets.movielens import MovieLensRows

FILES = ("users.dat", "movies.dat", "ratings.dat")
ZIPS = ("00000", "99999", "00007", "123456", "7654321", "000000000", "12345-6789", "00000-0000")
GENRES = ["Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy"]
GENRES += ["Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"]


@dataclass(kw_only=True)
class TinyBlocks(MovieLens1MConfig):
    """The same, read in blocks so small that lines straddle them."""

    block_bytes: ClassVar[int] = 50

    def open(self, *, on_bad_rows):
        return MovieLensRows(self.source, on_bad_rows, self.genres, self.block_bytes)


def make(count=400, seed=0):
    """Return the lines of the three files, each a list of fields."""
    draw = random.Random(seed)
    users = [
        [str(user), draw.choice("FM"), draw.choice(["1", "18", "56"]), str(draw.randint(0, 20)), draw.choice(ZIPS)]
        for user in draw.sample(range(1, 100), 20)
    ]
    titles = ["Ein Film (1999)", "One: Two (2000)", "A::B (2001)", "Café (2002)", ""]
    movies = [
        [str(movie), draw.choice(titles), "|".join(draw.sample(GENRES, draw.randint(0, 4)))]
        for movie in draw.sample(range(1, 4_000_000_000), 30)
    ]
    ratings = [
        [draw.choice(users)[0], draw.choice(movies)[0], str(draw.randint(1, 5)), str(draw.randint(0, 10**9))]
        for _ in range(count)
    ]
    return users, movies, ratings


def write(folder, tables, zipped=(), end="\n", encoding="utf-8"):
    """Write the three files; those named in `zipped` get .gz."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in zip(FILES, tables, strict=True):
        text = "".join("::".join(row) + end for row in rows).encode(encoding)
        if name in zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(text))
        else:
            (folder / name).write_bytes(text)
    return str(folder)


def expected(tables):
    """Return (label, [user, movie, gender, age, occupation, zip], genres) for every rating that is not 3."""
    users = {row[0]: row for row in tables[0]}
    movies = {row[0]: row for row in tables[1]}
    rows = []
    for user, movie, rating, _ in tables[2]:
        if rating != "3":
            _, gender, age, occupation, code = users[user]
            singles = [int(user), int(movie), ord(gender), int(age), int(occupation), zip_number(code)]
            names = movies[movie][2].split("|") if movies[movie][2] else []
            rows.append((int(int(rating) > 3), singles, [GENRES.index(name) + 1 for name in names]))
    return rows


def zip_number(code):
    """Count the codes that come before this one: shorter ones first, those with a hyphen last."""
    lengths = range(5, 10 if "-" in code else len(code))
    return sum(10**length for length in lengths) + int(code.replace("-", ""))
