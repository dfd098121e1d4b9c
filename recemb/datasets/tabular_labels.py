"""Labels of a table: 0 and 1, true and false, or whatever a rule such as ">=4" makes of a value."""

import operator
import re
from collections.abc import Callable

from recemb.options import RecembError

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, "<=": operator.le, "==": operator.eq, ">": operator.gt, "<": operator.lt,
}  # fmt: skip
_WORDS = {"true": 1, "false": 0}

Rule = Callable[[str], int | None]
"""From the text of a value to 0 or 1, None where it is neither."""


def label_rule(positive: str, where: str) -> Rule:
    """Return what makes labels.

    Args:
        positive: >=, <=, ==, > or < and a number, == and any text, or "" where values are labels already.
        where: the file it is from, for the sentence about it.

    Raises:
        RecembError: it is none.
    """
    if not positive:
        return _zero_or_one
    parts = re.fullmatch(r"\s*(>=|<=|==|>|<)\s*(.+?)\s*", positive)
    bound = _number(parts[2]) if parts else None
    if parts is None or (bound is None and parts[1] != "=="):
        raise RecembError(f"{where}: the rule of the label is {positive!r}; it must be like '>=4' or '==click'.")
    sign, text = parts[1], parts[2]
    if bound is None:
        return lambda value: int(value == text) if value else None
    compare, limit = _COMPARE[sign], bound

    def compared(value: str) -> int | None:
        number = _number(value)
        return None if number is None else int(compare(number, limit))

    return compared


def words_of(positive: str) -> str:
    """Say what a value must be, after "is not"."""
    if not positive:
        return "0, 1, true or false; a rule makes labels of other values, e.g. label: {rating: '>=4'}"
    return "a number" if positive.lstrip(" <>=") and _number(positive.lstrip(" <>=")) is not None else "a text"


def _zero_or_one(value: str) -> int | None:
    if (word := value.strip().lower()) in _WORDS:
        return _WORDS[word]
    number = _number(value)
    return int(number) if number in (0.0, 1.0) else None


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if number == number else None
