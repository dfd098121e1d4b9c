"""Shapes of generated rows: how popular, how many and how often missing values are, and how to draw such values.

The numbers of `CRITEO` are rounded fits to the popularity curves of Criteo Kaggle, which has 45.8 million rows.
"""

from typing import NamedTuple

import numpy as np

from recemb.datasets.counter import key_of, random_bits, random_uniform
from recemb.datasets.criteo_text import CATEGORICAL, DENSE, transform_integers

_CRITEO_ROWS = 45_800_000


class CategoryShape(NamedTuple):
    """One categorical feature: the value of rank x in [0, U) has probability in proportion to (x + shift)^-exponent.

    Attributes:
        values: U at the size of Criteo; most of the long tails is never seen.
        growth: U is in proportion to rows^growth.
        exponent: how steep popularity falls.
        shift: how flat it is at the top.
        missing: share of rows without a value.
        group: features with the same number miss their values in the same rows.
    """

    values: int
    growth: float
    exponent: float
    shift: float
    missing: float = 0.0
    group: int = 0


CATEGORIES = (
    CategoryShape(1460, 0.03, 1.92, 0.88),
    CategoryShape(583, 0.02, 1.18, 2.2),
    CategoryShape(72_500_000, 0.57, 0.99, 2.5, 0.034, 1),
    CategoryShape(2_690_000, 0.48, 1.05, 2.8, 0.034, 1),
    CategoryShape(305, 0.12, 1.99, 0.45),
    CategoryShape(24, 0.11, 1.99, 1.3, 0.12, 2),
    CategoryShape(12_517, 0.07, 0.82, 2.6),
    CategoryShape(633, 0.12, 1.99, 0.64),
    CategoryShape(3, 0.0, 3.9, 0.6),
    CategoryShape(93_145, 0.31, 0.83, 0.004),
    CategoryShape(5683, 0.06, 0.88, 2.4),
    CategoryShape(58_100_000, 0.52, 1.02, 2.8, 0.034, 1),
    CategoryShape(3194, 0.01, 0.93, 3.4),
    CategoryShape(27, 0.0, 1.99, 1.7),
    CategoryShape(14_992, 0.16, 1.12, 17.0),
    CategoryShape(16_900_000, 0.49, 1.04, 3.7, 0.034, 1),
    CategoryShape(10, 0.0, 1.02, 0.19),
    CategoryShape(5652, 0.12, 1.26, 9.6),
    CategoryShape(2173, 0.08, 1.05, 0.002, 0.44, 3),
    CategoryShape(4, 0.0, 1.01, 3.0, 0.44, 3),
    CategoryShape(35_900_000, 0.49, 1.03, 3.2, 0.034, 1),
    CategoryShape(18, 0.05, 1.99, 0.75, 0.76, 4),
    CategoryShape(15, 0.0, 1.99, 1.5),
    CategoryShape(288_000, 0.3, 1.21, 3.5, 0.034, 1),
    CategoryShape(105, 0.11, 1.99, 2.7, 0.44, 3),
    CategoryShape(142_572, 0.35, 1.02, 1.2, 0.44, 3),
)


class IntegerShape(NamedTuple):
    """One integer feature: floor of a log-logistic variable.

    Attributes:
        median: of the variable.
        spread: of its logarithm; larger = a heavier tail.
        lowest: added to it.
        highest: what it is cut off at.
        missing: share of rows without a value.
        group: features with the same number miss their values in the same rows.
    """

    median: float
    spread: float
    highest: int
    missing: float = 0.0
    group: int = 0
    lowest: int = 0


INTEGERS = (
    IntegerShape(1.2, 0.85, 5775, 0.45, 5),
    IntegerShape(5.0, 1.7, 257_675, lowest=-2),
    IntegerShape(6.3, 0.95, 65_535, 0.21, 6),
    IntegerShape(4.6, 0.7, 969, 0.21, 7),
    IntegerShape(2800.0, 1.3, 23_159_456, 0.026, 8),
    IntegerShape(32.0, 1.05, 431_037, 0.22, 9),
    IntegerShape(3.3, 1.1, 56_311, 0.042, 10),
    IntegerShape(7.5, 0.8, 6047, 0.001, 11),
    IntegerShape(38.0, 0.95, 29_019, 0.042, 10),
    IntegerShape(1.0, 0.45, 11, 0.45, 5),
    IntegerShape(1.5, 0.75, 231, 0.042, 10),
    IntegerShape(0.5, 0.9, 4008, 0.77, 12),
    IntegerShape(4.8, 0.75, 7393, 0.21, 7),
)


class Shape(NamedTuple):
    """The features of generated rows.

    Attributes:
        categories: shape of each categorical feature by name.
        integers: shape of each integer feature by name.
    """

    categories: dict[str, CategoryShape]
    integers: dict[str, IntegerShape]


CRITEO = Shape(dict(zip(CATEGORICAL, CATEGORIES, strict=True)), dict(zip(DENSE, INTEGERS, strict=True)))

# A catalogue's users, items and their attributes: the number of values grows with the rows, so that each value of C1
# occurs about 20 times at any size, and popularity falls so slowly that most of the signal is in rare values.
CATALOG = Shape(
    {
        "C1": CategoryShape(2_400_000, 1.0, 0.5, 5.0),
        "C2": CategoryShape(1_200_000, 1.0, 0.6, 5.0),
        "C3": CategoryShape(600_000, 1.0, 0.6, 5.0),
        "C4": CategoryShape(300_000, 1.0, 0.7, 5.0),
        "C5": CategoryShape(100_000, 1.0, 0.7, 5.0),
        "C6": CategoryShape(30_000, 1.0, 0.8, 5.0),
    },
    dict(zip(DENSE[:4], INTEGERS[:4], strict=True)),
)


class Drawn(NamedTuple):
    """Values of one categorical feature in n rows.

    Attributes:
        hashes: (n,) uint64, of the values.
        tokens: (n,) uint32, the values.
        missing: (n,) bool, or None when the feature never misses its value.
    """

    hashes: np.ndarray
    tokens: np.ndarray
    missing: np.ndarray | None


class Categories:
    """Draws the values of one categorical feature.

    Args:
        shape: its shape.
        rows: rows of the whole data set.
        seed: of the data set.
        feature: number of the feature, for a stream of its own.
    """

    def __init__(self, shape: CategoryShape, rows: int, seed: int, feature: int) -> None:
        self.shape = shape
        self.values = max(3, round(shape.values * min(rows / _CRITEO_ROWS, 1.0) ** shape.growth))
        self._draws, self._hashes, salt = (key_of(seed, stream, feature) for stream in (0, 1, 2))
        self._salt = np.uint32(salt & 0xFFFFFFFF)

    def draw(self, rows: np.ndarray, chance: np.ndarray) -> Drawn:
        """Draw for (n,) uint64 row numbers.

        Args:
            rows: (n,) uint64.
            chance: (n,) float64 in (0, 1), below the missing share where the value is missing.
        """
        ranks = self._ranks(random_uniform(self._draws, rows))
        missing = None
        if self.shape.missing:
            missing = chance < self.shape.missing
            ranks[missing] = self.values  # one past the last: the missing value has a weight of its own
        return Drawn(random_bits(self._hashes, ranks), _scramble(ranks.astype(np.uint32), self._salt), missing)

    def _ranks(self, uniform: np.ndarray) -> np.ndarray:
        """Invert the cumulative popularity; (n,) float64 in (0, 1) to (n,) uint64."""
        shift, power = self.shape.shift, 1.0 - self.shape.exponent
        low, high = shift**power, (self.values + shift) ** power
        uniform *= high - low
        uniform += low
        np.power(uniform, 1.0 / power, out=uniform)
        uniform -= shift
        return np.clip(uniform, 0, self.values - 1, out=uniform).astype(np.uint64)


class Integers:
    """Draws the values of one integer feature.

    Args:
        name: of the feature, which decides its transform.
        shape: its shape.
        seed: of the data set.
    """

    def __init__(self, name: str, shape: IntegerShape, seed: int) -> None:
        self.shape = shape
        self._name = name
        self._draws = key_of(seed, 5, int(name[1:]))

    def draw(self, rows: np.ndarray, chance: np.ndarray) -> np.ndarray:
        """Return (n,) float32, transformed as real integers are, NaN = missing; see `Categories.draw`."""
        uniform = random_uniform(self._draws, rows)
        value = np.log(uniform / (1.0 - uniform))
        value *= self.shape.spread
        np.exp(value, out=value)
        value *= self.shape.median
        value = np.minimum(np.floor(value) + self.shape.lowest, self.shape.highest)
        if self.shape.missing:
            value[chance < self.shape.missing] = np.nan
        return transform_integers(self._name, value)


def _scramble(x: np.ndarray, salt: np.uint32) -> np.ndarray:
    """Map (n,) uint32 to tokens that look hashed, different ones to different ones (murmur3's finalizer)."""
    x = x ^ salt
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x85EBCA6B)
    x ^= x >> np.uint32(13)
    x *= np.uint32(0xC2B2AE35)
    x ^= x >> np.uint32(16)
    return x
