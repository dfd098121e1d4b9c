import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recemb.report.hypervolume import Reached, bytes_to_reach, hypervolume

points = st.lists(
    st.tuples(st.integers(1, 256).map(float), st.integers(50, 90).map(lambda n: n / 100)), min_size=1, max_size=6
)


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ([(1, 0.6)], 0.1),  # holds from the first byte on
        ([(16, 0.9)], 0.0),  # only at the last
        ([(4, 0.7)], 0.1),  # half of the way
        ([(1, 0.6), (4, 0.8)], 0.2),
        ([(1, 0.6), (4, 0.8), (8, 0.7)], 0.2),  # beaten by a smaller table
        ([(1, 0.4)], 0.0),  # worse than a coin
        ([(0.5, 0.7)], 0.2),  # below the bounds: what it buys, it buys at the lower one
        ([(32, 0.9), (4, 0.7)], 0.1),  # above them: not for sale
    ],
)
def test_hypervolume_of_hand_cases(tables, expected):
    assert hypervolume(tables, low=1, high=16) == pytest.approx(expected)


def test_hypervolume_needs_room():
    assert hypervolume([(4, 0.7)], low=4, high=4) is None


@given(points)
def test_hypervolume_is_the_mean_of_the_best_over_sizes(tables):
    sizes = 2 ** (np.arange(8000) / 1000 + 0.0005)
    best = [max([0.5, *(quality for size, quality in tables if size <= at)]) - 0.5 for at in sizes]
    assert hypervolume(tables, low=1, high=256) == pytest.approx(np.mean(best), abs=1e-3)


@given(points, st.tuples(st.integers(1, 256).map(float), st.just(0.7)))
def test_another_table_never_lowers_the_hypervolume(tables, other):
    assert hypervolume([*tables, other], 1, 256) >= hypervolume(tables, 1, 256) - 1e-12


def test_bytes_to_reach_is_on_the_line_over_log_bytes():
    tables = [(64, 0.78), (4, 0.70), (16, 0.74)]
    assert bytes_to_reach(tables, 0.72) == Reached(pytest.approx(8), at_most=False)
    assert bytes_to_reach(tables, 0.74) == Reached(pytest.approx(16), at_most=False)
    assert bytes_to_reach(tables, 0.70) == Reached(4, at_most=True)
    assert bytes_to_reach(tables, 0.79) is None


def test_bytes_to_reach_takes_the_first_crossing_and_the_best_of_one_size():
    assert bytes_to_reach([(4, 0.7), (8, 0.8), (16, 0.6), (32, 0.9)], 0.75).bytes == pytest.approx(math.sqrt(32))
    assert bytes_to_reach([(4, 0.6), (4, 0.8)], 0.75) == Reached(4, at_most=True)
