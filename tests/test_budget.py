"""Budgets as people write them, and sizes as they read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recemb import RecembError
from recemb.budget import TooSmallBudgetError, format_bytes, largest_within, parse_budget


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
    "text",
    [
        "",
        "0",
        "-1",
        "1/0",
        "0/4",
        "-1/4",
        "1.5",
        "12 parrots",
        "MiB",
        "0MiB",
        "nan",
        "1e400x",
        "1e99999999",
        "1_000",
        "1.0000001",
    ],
)
def test_what_is_none(text: str):
    with pytest.raises(RecembError, match="is not a budget"):
        parse_budget(text, 1_000_000)


@pytest.mark.parametrize("text", ["1/1000001", 9e-7, "1e-30", "0.5B", "0.0001 KiB"])
def test_what_is_less_than_a_byte(text: object):
    with pytest.raises(TooSmallBudgetError, match=r"^budget=.* is less than a byte"):
        parse_budget(text, 1_000_000)
    assert parse_budget("1/1000000", 1_000_000) == parse_budget("1B", 1_000_000) == 1


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
    ("size", "words"),
    [(0, "0 B"), (1023, "1,023 B"), (1024, "1 KiB"), (262_144, "256 KiB"), (1_700_000, "1.62 MiB"), (2**40, "1 TiB"),
     (1023.9 * 1024, "1 MiB"), (10.04 * 2**20, "10 MiB"), (105_000, "103 KiB")],
)  # fmt: skip
def test_sizes_for_people(size: float, words: str):
    assert format_bytes(size) == words
