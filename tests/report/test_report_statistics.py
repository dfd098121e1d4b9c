import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from recemb.report.statistics import Difference, auc_standard_error, difference, pareto_front, spread

few_values = st.integers(0, 6).map(float)  # few, so that ties are common


@given(st.lists(st.tuples(few_values, few_values), max_size=12))
def test_pareto_front_is_what_no_other_point_beats(points):
    def beaten(point):
        return any(c <= point[0] and q >= point[1] and (c < point[0] or q > point[1]) for c, q in points)

    costs, qualities = [c for c, _ in points], [q for _, q in points]
    assert pareto_front(costs, qualities) == [not beaten(point) for point in points]


def test_spread_is_the_sample_deviation_and_unknown_for_one_value():
    values = [0.71, 0.74, 0.72]
    assert spread(values).mean == pytest.approx(np.mean(values))
    assert spread(values).std == pytest.approx(np.std(values, ddof=1))
    assert spread([0.7]).std is None


def test_difference_pairs_the_seeds_that_match():
    noise = {0: 0.01, 1: -0.02, 2: 0.03, 3: 0.5}
    full = {seed: 0.8 + noise[seed] for seed in (0, 1, 2)}
    small = {seed: 0.79 + noise[seed] for seed in (1, 2, 3)}
    found = difference(small, full)
    assert found.mean == pytest.approx(-0.01)
    assert found.std == pytest.approx(0, abs=1e-12)
    assert found.pairs == 2


def test_difference_without_a_common_seed_claims_no_pairs():
    assert difference({0: 0.5}, {1: 0.75}) == Difference(-0.25, None, 0)


def test_auc_standard_error_agrees_with_the_paper():
    # Hanley and McNeil 1982: 58 normal and 51 abnormal images, area 0.893, standard error printed as 0.032.
    assert auc_standard_error(0.893, 51, 58) == pytest.approx(0.032, abs=0.001)


def test_auc_standard_error_agrees_with_fresh_samples():
    generator = np.random.default_rng(0)
    labels = np.repeat([1, 0], [120, 280])
    areas = [roc_auc_score(labels, generator.normal(size=400) + labels) for _ in range(600)]
    assert auc_standard_error(float(np.mean(areas)), 120, 280) == pytest.approx(np.std(areas), rel=0.15)


def test_auc_standard_error_needs_both_labels():
    assert auc_standard_error(0.8, 0, 10) is None
    assert auc_standard_error(0.8, 10, 0) is None
