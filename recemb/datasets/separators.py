"""Makes one byte of what separates the columns of a CSV, since parsers take no more."""

import re
from itertools import pairwise
from pathlib import Path

from recemb.options import RecembError

BLANKS = r"\s+"
"""The separator that is any number of blanks and tabs, those at the ends of a line apart; as pandas writes it."""

_SPARE = (0x1F, 0x1E, 0x1D, 0x1C, *range(1, 9))


def one_byte(path: Path, text: bytes, separator: str, quoting: bool) -> tuple[bytes, str]:
    """Put a single byte, which the text does not hold, in the place of every separator of several.

    Args:
        path: the file, for what is said to a person.
        text: whole rows.
        separator: what separates their values.
        quoting: values in double quotes may hold separators, which stay.

    Returns:
        The text, and what separates its values now.

    Raises:
        RecembError: values in quotes and others are not told apart.
    """
    if len(separator.encode()) == 1:
        return text, separator
    spare = next((bytes([byte]) for byte in _SPARE if byte not in text), None)
    if spare is None:
        raise RecembError(
            f"{path} holds too many kinds of control characters for the separator {separator!r}; write it with a "
            "separator of one character, such as a tab."
        )
    if separator == BLANKS:
        return _blanks(path, text, spare, quoting), spare.decode()
    wanted = separator.encode()
    if not quoting or b'"' not in text:
        return text.replace(wanted, spare), spare.decode()
    # Every other part is between quotes; a doubled quote is an empty part outside of them.
    parts = text.split(b'"')
    outside = parts[::2]
    for number, (before, after) in enumerate(pairwise(outside)):
        begins = before.endswith((wanted, b"\n")) or (not before and number == 0)
        ends = after.startswith((wanted, b"\n", b"\r")) or (not after and number == len(outside) - 2)
        doubled_before, doubled_after = not before and number > 0, not after and number < len(outside) - 2
        if not ((begins or doubled_before) and (ends or doubled_after)):
            raise RecembError(
                f'{path} has a " in the midst of a value, which separators of several characters cannot be told by; '
                "mend it, or say quoting: false where quotes are part of the values."
            )
    parts[::2] = [part.replace(wanted, spare) for part in outside]
    return b'"'.join(parts), spare.decode()


def shown_text(text: str) -> str:
    """Return a text without what a terminal would obey."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def _blanks(path: Path, text: bytes, spare: bytes, quoting: bool) -> bytes:
    if quoting and b'"' in text:
        raise RecembError(
            f'{path} holds a ", which the separator {BLANKS} is not read with; say quoting: false where quotes are '
            "part of the values, else write it with another separator."
        )
    text = re.sub(rb"(?m)^[ \t]+|[ \t]+(?=\r?$)", b"", text)
    return re.sub(rb"[ \t]+", spare, text)
