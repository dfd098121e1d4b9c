"""Budgets as people write them, and sizes as they read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recemb import RecembError
from recemb.budget import format_bytes, largest_within, parse_budget


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1/16", 62_500),
        ("1/3", 333_333),
        (0.25, 250_000),
        ("1", 1_000_000),
        (1, 1_000_000),
        ("64MiB", 64 * 2**20),
        ("64 mb", 64_000_000),
        ("1.5KiB", 1536),
        (4096, 4096),
        ("4096B", 4096),
    ],
)
def test_what_is_a_budget(text: object, expected: int):
    assert parse_budget(text, 1_000_000) == expected


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "1/0", "0/4", "-1/4", "1.5", "12 parrots", "MiB", "0MiB", "nan", "1e400x"]
)
def test_what_is_none(text: str):
    with pytest.raises(RecembError, match="is not a budget"):
        parse_budget(text, 1_000_000)


@given(st.integers(0, 500), st.integers(0, 500), st.integers(1, 40), st.integers(0, 30_000))
def test_the_largest_size_within_is_found(smallest: int, more: int, per: int, budget: int):
    largest = smallest + more
    fits = [size for size in range(smallest, largest + 1) if size * per + 7 <= budget]
    if fits:
        assert largest_within(budget, lambda size: size * per + 7, smallest, largest, "x") == fits[-1]
    else:
        with pytest.raises(RecembError, match=f"least possible is {smallest * per + 7:,} bytes"):
            largest_within(budget, lambda size: size * per + 7, smallest, largest, "x")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (820 * 1024, "820 KiB"), (2**20, "1 MiB"), (3 * 2**40, "3 TiB")],
)
def test_sizes_for_people(count: int, text: str):
    assert format_bytes(count) == text
