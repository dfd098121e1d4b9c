"""Invented clicks in CSV and Parquet, and a preparation of them that is slow, plain and shares no code with ours."""

import csv
import gzip
import io
import math
import random
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
from pyarrow import feather

from recemb.datasets import TabularConfig, prepare
from recemb.datasets.tabular import TabularRows
from recemb.datasets.tabular_columns import read_columns

USERS = [
    "007", "7", "-40", "18446744073709551616", "NA", "null", "Ünï", "ünï", " a", "a ", "a,b", 'say "hi"', "two\nlines",
    "日本", "🛒", "true", "1e5", "0x1F", "ё" * 300, "\t", "#", "'", "\\N",
]  # fmt: skip
TAGS = ["red", "blau|grün", "x y", "7", "NA", ""]
COLUMNS = {
    "label": "clicked",
    "dense": {"price": "log", "age": "none"},
    "categorical": ["user", "item"],
    "multi_valued": {"tags": ";"},
    "split": {"column": "part"},
}
SPLITS = ("train", "valid", "test")


@dataclass(kw_only=True)
class TinyBlocks(TabularConfig):
    """Tables read in blocks so small that rows straddle them."""

    block_bytes: ClassVar[int] = 400

    def open(self, *, on_bad_rows):
        columns = read_columns(self.columns, self.seed)
        return TabularRows(self.source, columns, on_bad_rows, self.vocabulary == "none", block_bytes=self.block_bytes)


def make_rows(count, seed=0):
    """Return rows as dictionaries of raw values; None is missing, and tags are a list."""
    draw = random.Random(seed)
    return [
        {
            "clicked": draw.randint(0, 1),
            "price": None if draw.random() < 0.1 else round(draw.gauss(0, 1) * 10 ** draw.randint(0, 6), 3),
            "age": None if draw.random() < 0.1 else draw.randint(-5, 99),
            "user": None if draw.random() < 0.1 else USERS[min(int(draw.paretovariate(0.6)), len(USERS)) - 1],
            "item": draw.choice([-(2**63), 2**63 - 1, 2**31, 0, 1, 2, *range(100, 400)]),
            "tags": [draw.choice(TAGS) for _ in range(draw.randint(0, 4))],
            "part": draw.choices(SPLITS, [8, 1, 1])[0],
            "when": draw.randint(0, 10**6),
        }
        for _ in range(count)
    ]


def to_csv(rows, names=None, ends="\n", header=True):
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator=ends)
    names = names or list(rows[0])
    if header:
        writer.writerow(names)
    for row in rows:
        cells = {name: ";".join(value) if isinstance(value, list) else value for name, value in row.items()}
        writer.writerow(["" if cells[name] is None else cells[name] for name in names])
    return text.getvalue().encode()


def write_csv(path, rows, **options):
    text = to_csv(rows, **options)
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return str(path)


def expected(rows, least_count=2):
    """Prepare rows one value at a time.

    Returns:
        For each split a DataFrame, and for each categorical feature its vocabulary as (text or None, count) in id order
        and the number of training values without an id.
    """
    cells = {name: [[text_of(row[name])] for row in rows] for name in ("user", "item")}
    cells["tags"] = [[tag for tag in row["tags"] if tag] for row in rows]
    columns = {
        "label": np.array([row["clicked"] for row in rows], np.uint8),
        "price": np.array([log_of(row["price"]) for row in rows], np.float32),
        "age": np.array([math.nan if row["age"] is None else row["age"] for row in rows], np.float32),
    }
    vocabularies = {}
    for name, column in cells.items():
        first = {value: place for place, value in reversed(list(enumerate(v for row in column for v in row)))}
        training = [values for values, row in zip(column, rows, strict=True) if row["part"] == "train"]
        counts = Counter(value for values in training for value in values)
        kept = [value for value in counts if counts[value] >= least_count]
        kept.sort(key=lambda value: (-counts[value], -1 if value is None else first[value]))
        ids = {value: i for i, value in enumerate(kept, 1)}
        found = [np.array([ids.get(value, 0) for value in values], np.int32) for values in column]
        columns[name] = found if name == "tags" else np.concatenate(found)
        vocabularies[name] = [(v, counts[v]) for v in kept], sum(counts[v] for v in counts if v not in ids)
    frame = pd.DataFrame(columns)
    parts = np.array([row["part"] for row in rows])
    return [frame[parts == split].reset_index(drop=True) for split in SPLITS], vocabularies


def text_of(value):
    return None if value is None or value == "" else str(value)


def log_of(number):
    return math.nan if number is None else math.copysign(math.log1p(abs(number)), number)


def prepared(tmp_path, source, columns=None, config=TinyBlocks, on_bad_rows="error", **options):
    columns = COLUMNS if columns is None else columns
    return prepare(
        config(path=str(tmp_path / "out"), source=source, columns=columns, **options),
        on_bad_rows=on_bad_rows,
        progress=False,
    )


def tables(dataset):
    return {split: pd.read_feather(dataset.path / f"{split}.arrow") for split in SPLITS}


def assert_prepared(dataset, rows, least_count=2):
    frames, vocabularies = expected(rows, least_count)
    for split, frame in zip(SPLITS, frames, strict=True):
        pd.testing.assert_frame_equal(tables(dataset)[split], frame, rtol=1e-6)
        assert dataset.num_rows(split) == len(frame)
    for feature in dataset.features:
        wanted, out = vocabularies[feature.name]
        table = feather.read_table(dataset.path / "vocabulary" / f"{feature.name}.arrow")
        assert list(zip(table["value"].to_pylist(), table["count"].to_pylist(), strict=True)) == wanted
        assert feature.counts.tolist() == [out, *(count for _, count in wanted)]
