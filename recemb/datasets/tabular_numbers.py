"""Dense columns of a table: how their numbers are written, and the two things that can become of them."""

import numpy as np
import pyarrow as pa
from pyarrow import compute as pc

from recemb.datasets.spelling import AsTheyAre, Numbers, read_distinct

DEFAULT = "none"
MISSING = ("", "na", "n/a", "#n/a", "nan", "null", "none", "\\n", "<na>")
"""Texts that say that there is no number, in small letters."""


class SignedLog(AsTheyAre):
    """Any finite numbers, and their logarithms, so that a few huge ones do not drown all others.

    It is close to a straight line where numbers lie in a narrow range, and keeps their order everywhere.
    """

    kind = "log"
    formula = "sign(x) * log(1 + |x|), natural logarithm, in float64, rounded to float32"

    def transform(self, values: np.ndarray) -> np.ndarray:
        """Take the logarithms."""
        return (np.sign(values) * np.log1p(np.abs(values))).astype(np.float32)


class Unchanged(AsTheyAre):
    """Any finite numbers that float32 can hold; others are missing."""

    def transform(self, values: np.ndarray) -> np.ndarray:
        """Round to float32."""
        rounded = super().transform(values)
        rounded[np.isinf(rounded)] = np.nan
        return rounded


TRANSFORMS: dict[str, Numbers] = {one.kind: one for one in (SignedLog(), Unchanged())}
"""What can become of a dense column's numbers, by the name it has in YAML."""


def read_numbers(column: pa.Array) -> tuple[np.ndarray, np.ndarray | None]:
    """Read a dense column.

    Args:
        column: n numbers, booleans, or texts; null where missing.

    Returns:
        (n,) float64, NaN where missing or infinite, and (n,) bool, true where a text is no number; None where all are.
    """
    wrong = None
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    try:
        numbers = column.cast(pa.float64(), safe=not pa.types.is_integer(column.type))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        texts = column.cast(pa.string()).cast(pa.binary()).fill_null(b"")
        found, places = read_distinct(texts, _read)
        numbers = pa.array([0.0 if x is None else x for x in found], pa.float64()).take(pa.array(places))
        wrong = np.array([x is None for x in found], dtype=np.bool_)[places]
    values = np.array(pc.fill_null(numbers, np.nan))
    values[np.isinf(values)] = np.nan
    return values, wrong if wrong is not None and wrong.any() else None


def _read(text: bytes) -> float | None:
    """Read a number as the trained model's `Numbers` does; NaN where one is missing or infinite, None for no number."""
    if text.strip().lower() in _MISSING_BYTES:
        return np.nan
    try:
        return float(text)
    except ValueError:
        return None


_MISSING_BYTES = frozenset(text.encode() for text in MISSING)
