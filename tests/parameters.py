"""Values of test parameters of which only some are tried before a commit."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def mostly_wide(values: Iterable[Any], *keep: str, name: Callable[[Any], str] = str) -> list[Any]:
    """Return parameters named by `name` that are marked wide, except for those to keep."""
    values = list(values)
    assert set(keep) <= {name(value) for value in values}, keep
    return [
        pytest.param(value, id=name(value), marks=() if name(value) in keep else pytest.mark.wide) for value in values
    ]
