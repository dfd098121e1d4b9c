"""Takes values out of somebody else's JSON: what comes out is clean and of its kind, or it is not there."""

import math
import unicodedata
from typing import Any

LONGEST_NAME = 120  # characters of a name that is a heading, a label or a table cell
LONGEST_SENTENCE = 400  # characters of why a run failed
HIGHEST_INTEGER = 2**63 - 1  # what Parquet's int64 holds


def at(value: Any, *path: str) -> Any:
    """Look up a nested key, None where any step is missing."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def label(value: Any, longest: int = LONGEST_NAME) -> str:
    """Take a text as one short line, fit for a heading; '' where it is not a text."""
    line = " ".join(value.split()) if isinstance(value, str) else ""
    return line if len(line) <= longest else line[: longest - 1] + "…"


def number(value: Any) -> float | None:
    """Take a number, which is finite once it is clean."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def whole(value: Any) -> int | None:
    """Take a whole number that a column of results can hold."""
    if number(value) is None or value != int(value) or abs(int(value)) > HIGHEST_INTEGER:
        return None
    return int(value)


def within(value: Any, low: float, high: float) -> float | None:
    """Take a number that lies between two others, themselves included."""
    found = number(value)
    return found if found is not None and low <= found <= high else None


def clean(value: Any) -> Any:
    """Drop what a writer would choke on: infinite and huge numbers, control characters, lone surrogates."""
    match value:
        case dict():
            return {clean(key): clean(item) for key, item in value.items()}
        case list():
            return [clean(item) for item in value]
        case str():
            return "".join(c if c in "\n\t" or unicodedata.category(c) not in _UNPRINTABLE else "\ufffd" for c in value)
        case float() if not math.isfinite(value):
            return None
        case int() if abs(value) > HIGHEST_INTEGER:
            return None
    return value


_UNPRINTABLE = {"Cc", "Cs", "Cn"}  # control, lone surrogate, and the noncharacters that XML forbids
