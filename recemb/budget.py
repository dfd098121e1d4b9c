"""Bytes: read a budget, size a method for it, and print sizes for people."""

import bisect
import re
from collections.abc import Callable
from fractions import Fraction

from recemb.options import RecembError

FLOAT32_BYTES = 4


class TooSmallBudgetError(RecembError):
    """No size of a method is within the budget."""


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SIZES = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_NUMBER = re.compile(r"\d{1,20}(\.\d{1,20})?(e-?\d{1,2})?|\d{1,20}/\d{1,20}", re.ASCII)
_SIZE = re.compile(r"(\d{1,20}(?:\.\d{1,20})?)\s*([a-zA-Z]*)", re.ASCII)


def parse_budget(budget: str | int | float, full_bytes: int) -> int:
    """Turn a budget into bytes.

    Args:
        budget: a share of the full tables, such as `"1/16"` or `0.0625` (greater than 0, at most 1), or a size such as
            `"64MiB"`, `"64MB"` or `67108864` (bytes). A plain number up to 1 is a share, above 1 it is bytes.
        full_bytes: bytes of the full fp32 tables, which a share refers to.

    Returns:
        The budget in bytes, rounded down.

    Raises:
        RecembError: the text is none of these, or not positive.
        TooSmallBudgetError: it is less than a byte.
    """
    text = str(budget).strip()
    wanted = f"budget={text} is not a budget: give a share of the full tables such as 1/16, or a size such as 64MiB."
    if _NUMBER.fullmatch(text):
        try:
            share = Fraction(text)
        except ZeroDivisionError:
            raise RecembError(wanted) from None
        if share <= 0 or (share > 1 and share.denominator != 1):
            raise RecembError(wanted)
        if share > 1:
            return int(share)
        return _at_least_a_byte(text, share * full_bytes, " of the full tables")
    size = _SIZE.fullmatch(text)
    if size is None or size[2].upper() not in _UNITS:
        raise RecembError(wanted)
    wanted_bytes = Fraction(size[1]) * _UNITS[size[2].upper()]
    if wanted_bytes <= 0:
        raise RecembError(wanted)
    return _at_least_a_byte(text, wanted_bytes)


def _at_least_a_byte(text: str, wanted_bytes: Fraction, of: str = "") -> int:
    if wanted_bytes < 1:
        raise TooSmallBudgetError(
            f"budget={text} is less than a byte{of}; give a larger share such as 1/16, or a size such as 64MiB."
        )
    return int(wanted_bytes)


def largest_within(budget_bytes: int, bytes_of: Callable[[int], int], smallest: int, largest: int, what: str) -> int:
    """Find the largest value of a size knob whose bytes stay within a budget.

    Args:
        budget_bytes: the budget, in bytes.
        bytes_of: bytes at a value of the knob; must not fall as the knob grows.
        smallest: least value of the knob that makes sense.
        largest: greatest value of the knob.
        what: the method and its knob, for the error.

    Returns:
        The knob's value, in `smallest..largest`.

    Raises:
        TooSmallBudgetError: even the smallest value is over the budget; the sentence names the least possible budget.
    """
    least = bytes_of(smallest)
    if least > budget_bytes:
        raise too_small(what, budget_bytes, least)
    return smallest + bisect.bisect_right(range(smallest, largest + 1), budget_bytes, key=bytes_of) - 1


def too_small(what: str, budget_bytes: int, least: int) -> TooSmallBudgetError:
    """Return the error of a budget that is less than the least possible bytes of what it is for."""
    asked, possible = format_bytes(budget_bytes), format_bytes(least)
    if asked == possible:  # to three digits, which then say nothing
        wanted, needed = f"{budget_bytes:,} bytes", f"{least:,} bytes"
    else:
        wanted, needed = f"{asked} ({budget_bytes:,} bytes)", f"{least:,} bytes ({possible})"
    return TooSmallBudgetError(
        f"{what} cannot be made as small as {wanted}: the least possible is {needed}. Give a budget of at least that."
    )


def format_bytes(size: float) -> str:
    """Write a size with three significant digits.

    Example:
        >>> format_bytes(262144), format_bytes(1_700_000)
        ('256 KiB', '1.62 MiB')
    """
    unit = 0
    while size >= 1023.5 and unit < len(_SIZES) - 1:
        size, unit = size / 1024, unit + 1
    decimals = 0 if size >= 99.95 or unit == 0 else 1 if size >= 9.995 else 2
    number = f"{size:,.{decimals}f}"
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number} {_SIZES[unit]}"
