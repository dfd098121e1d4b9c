"""Reads files that somebody else may have written, and says what the system says of files."""

import errno
import json
from pathlib import Path
from typing import Any


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, or nested more deeply than Python reads.
    """
    return parse_json(path.read_text(encoding="utf-8"))


def parse_json(text: str) -> Any:
    """Read a JSON text.

    Raises:
        ValueError: it is no JSON, or nested more deeply than Python reads.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def reason_of(error: OSError) -> str:
    """Return what the system says went wrong with a file, without the file's name."""
    return "the disk is full" if error.errno == errno.ENOSPC else (error.strerror or str(error))
