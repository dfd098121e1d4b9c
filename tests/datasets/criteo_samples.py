"""Small Criteo texts, and a preparation of them that is slow, plain and shares no code with the fast one."""

import gzip
import math
import random
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd

from recemb.datasets import CriteoConfig
from recemb.datasets.criteo import CriteoText

DENSE = [f"I{i}" for i in range(1, 14)]
CATEGORICAL = [f"C{i}" for i in range(1, 27)]


@dataclass(kw_only=True)
class TinyBlocks(CriteoConfig):
    """Criteo text read in blocks so small that lines straddle them."""

    block_bytes: ClassVar[int] = 100

    def open(self, *, on_bad_rows):
        return CriteoText(self.source, on_bad_rows, block_bytes=self.block_bytes)


def make_rows(count, seed=0, missing=0.1):
    """Return rows of 40 strings, with a few popular values and many rare ones in every feature."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        row = [draw.choice("0001")]
        for j in range(13):
            lowest = -3 if j == 1 else -1
            row.append("" if draw.random() < missing else str(int(draw.paretovariate(0.7)) + lowest))
        for j in range(26):
            value = min(int(draw.paretovariate(0.8)), 10 ** (1 + j % 4)) * 2654435761 % 2**32
            row.append("" if draw.random() < missing else f"{value:08x}")
        rows.append(row)
    return rows


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def to_text(rows, end="\n", last_end=True):
    text = end.join("\t".join(row) for row in rows)
    return (text + end if last_end else text).encode()


def write(path, rows, zipped=False, **options):
    text = to_text(rows, **options)
    path.write_bytes(gzip.compress(text) if zipped else text)
    return str(path)


def expected(rows, codes, least_count):
    """Prepare rows one value at a time.

    Returns:
        For each of the three split codes a DataFrame, and for each categorical feature its vocabulary as (value or
        None, count) in id order and the number of training rows without an id.
    """
    columns = {"label": [int(row[0]) for row in rows]}
    for j, name in enumerate(DENSE, 1):
        lowest, shift = (-3, 4) if name == "I2" else (0, 1)
        columns[name] = [math.log(max(int(row[j]), lowest) + shift) if row[j] else math.nan for row in rows]
    vocabularies = {}
    for j, name in enumerate(CATEGORICAL, 14):
        values = [int(row[j], 16) if row[j] else None for row in rows]
        counts = Counter(value for value, code in zip(values, codes, strict=True) if code == 0)
        kept = [value for value, count in counts.items() if count >= least_count(name)]
        kept.sort(key=lambda value: (-counts[value], -1 if value is None else value))
        ids = {value: i for i, value in enumerate(kept, 1)}
        columns[name] = [ids.get(value, 0) for value in values]
        out = sum(count for value, count in counts.items() if value not in ids)
        vocabularies[name] = [(value, counts[value]) for value in kept], out
    frame = pd.DataFrame(columns).astype(
        {"label": np.uint8} | dict.fromkeys(DENSE, np.float32) | dict.fromkeys(CATEGORICAL, np.int32)
    )
    codes = np.array(codes)
    return [frame[codes == code].reset_index(drop=True) for code in range(3)], vocabularies


def last_day_codes(count):
    train = count * 6 // 7
    valid = (count - train) // 2
    return [0] * train + [1] * valid + [2] * (count - train - valid)
