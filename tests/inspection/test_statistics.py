import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from sklearn.metrics import mutual_info_score

from recemb.inspection.statistics import (
    SMOOTHING,
    coverage_curve,
    drift_between,
    encode_target,
    ids_holding,
    jensen_shannon_bits,
    mutual_information_bits,
    tails_of,
)

counts = st.lists(st.integers(1, 300), max_size=60).map(lambda seen: sorted(seen, reverse=True))


def by_id(seen, unknown):
    return np.array([unknown, *seen], dtype=np.int64)


@given(counts, st.integers(0, 50))
def test_coverage_rises_to_one(seen, unknown):
    if not seen and not unknown:
        unknown = 1
    curve = coverage_curve(by_id(seen, unknown))
    ids, cells = [point.ids for point in curve], [point.cells for point in curve]
    assert ids == sorted(set(ids))
    assert cells == sorted(cells)
    assert (ids[-1], cells[-1]) == (len(seen) + 1, 1.0)
    for point in curve[:-1]:
        assert point.cells == pytest.approx(sum(seen[: point.ids]) / (sum(seen) + unknown))
    assert {1 << power for power in range(6) if 1 << power <= len(seen)} <= set(ids)


@given(counts, st.integers(0, 50))
def test_ids_holding_a_share_are_the_fewest(seen, unknown):
    total = sum(seen) + unknown
    if total == 0:
        return
    for point in ids_holding(by_id(seen, unknown)):
        ordered = [*seen, unknown]
        assert sum(ordered[: point.ids]) >= point.cells * total
        assert sum(ordered[: point.ids - 1]) < point.cells * total


@given(counts, st.integers(0, 50), st.integers(1, 20))
def test_tails_hold_what_is_rare(seen, unknown, least):
    seen = [count for count in seen if count >= least]
    total = sum(seen) + unknown
    if total == 0:
        return
    tails = tails_of(by_id(seen, unknown), least)
    known = [tail.cells for tail in tails if tail.cells is not None]
    assert known == sorted(known)
    for tail in tails:
        assert tail.ids == (sum(count < tail.fewer_than for count in seen) / len(seen) if seen else 0)
        if unknown and tail.fewer_than < least:
            assert tail.cells is None
        else:
            assert tail.cells == pytest.approx(
                (unknown + sum(count for count in seen if count < tail.fewer_than)) / total
            )


@given(st.integers(1, 50), st.integers(0, 2**32 - 1))
def test_divergence_is_that_of_scipy(size, seed):
    draw = np.random.default_rng(seed)
    first, second = draw.integers(0, 40, (2, size)) + np.eye(size, dtype=np.int64)[0]
    bits = jensen_shannon_bits(first, second)
    assert bits == pytest.approx(jensenshannon(first / first.sum(), second / second.sum(), base=2) ** 2, abs=1e-9)
    assert bits == pytest.approx(jensen_shannon_bits(second, first), abs=1e-12)
    assert 0 <= bits <= 1


def test_divergence_ends():
    assert jensen_shannon_bits(np.array([5, 0]), np.array([0, 9])) == pytest.approx(1)
    assert jensen_shannon_bits(np.array([5, 10]), np.array([1, 2])) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("least", [1, 3])
def test_drift_of_one_distribution_is_what_chance_makes(least):
    draw = np.random.default_rng(0)
    seen = draw.zipf(1.2, 60_000) % 20_000
    train, test = seen[:50_000], seen[50_000:]
    values, times = np.unique(train, return_counts=True)
    kept = values[np.argsort(-times, kind="stable")][: (times >= least).sum()]
    number = np.zeros(20_000, dtype=np.int64)
    number[kept] = np.arange(1, len(kept) + 1)
    splits = [np.bincount(number[split], minlength=len(kept) + 1) for split in (train, test)]
    drift = drift_between(*splits, least)
    assert drift.bits > 0.03  # unseen and rare values make much of it
    assert drift.bits == pytest.approx(drift.expected, abs=3 * drift.expected_std)
    assert not drift.is_noticeable
    assert drift.psi == pytest.approx(drift.psi_expected, rel=0.8)

    splits[1][: len(kept) // 2] = splits[1][: len(kept) // 2][::-1]
    moved = drift_between(*splits, least)
    assert moved.is_noticeable
    assert moved.psi > 0.25


def test_no_drift_without_cells():
    assert drift_between(np.array([1, 2]), np.array([0, 0]), 1) is None


@given(st.integers(0, 2**32 - 1))
def test_mutual_information_is_that_of_sklearn_less_the_bias(seed):
    draw = np.random.default_rng(seed)
    ids, labels = draw.integers(0, 6, 300), draw.integers(0, 2, 300)
    labels[ids == 2] = 1
    found = mutual_information_bits(np.bincount(ids, minlength=8), np.bincount(ids, weights=labels, minlength=8))
    nats = mutual_info_score(ids, labels) - (len(set(ids.tolist())) - 1) / 600
    assert found == pytest.approx(max(nats / math.log(2), 0))


def test_mutual_information_ends():
    counts, positives = np.array([0, 500, 500]), np.array([0, 500, 0])
    assert mutual_information_bits(counts, positives) == pytest.approx(1, abs=0.001)
    assert mutual_information_bits(counts, counts // 2) == 0


def test_rates_are_smoothed_towards_the_overall_one():
    rates = encode_target(np.array([0, 20, 10**6]), np.array([0, 20, 10**6]), 0.5)
    assert rates[0] == 0.5
    assert rates[1] == pytest.approx((20 + 0.5 * SMOOTHING) / (20 + SMOOTHING))
    assert rates[2] == pytest.approx(1, abs=1e-4)
