import numpy as np
import pytest

from recemb.report.calibration import calibration, mean_calibration


def test_error_and_ratio_of_a_hand_case():
    # Two bins of two rows: predicted 0.2 and 0.8, observed 0.5 and 1.
    found = calibration(np.array([0, 1, 1, 1]), np.array([0.2, 0.2, 0.8, 0.8]), bins=2)
    assert found.predicted.tolist() == pytest.approx([0.2, 0.8])
    assert found.observed.tolist() == [0.5, 1.0]
    assert found.rows.tolist() == [2, 2]
    assert found.error == pytest.approx((0.3 + 0.2) / 2)
    assert found.ratio == pytest.approx(0.5 / 0.75)


def test_equal_probabilities_share_a_bin():
    labels = np.arange(1000) % 4 == 0
    found = calibration(labels, np.full(1000, 0.25))
    assert (found.rows.tolist(), found.error, found.ratio) == ([1000], pytest.approx(0), pytest.approx(1))


def test_bins_hold_as_many_rows_each():
    random = np.random.default_rng(0)
    found = calibration(random.random(3000) < 0.3, random.random(3000) ** 4)
    assert found.rows.size == 15
    assert found.rows.min() >= 199
    assert found.rows.sum() == 3000


def test_right_probabilities_show_the_error_that_chance_makes():
    random = np.random.default_rng(0)
    errors, noises = [], []
    for _ in range(200):
        probability = random.beta(1, 4, 2000)
        found = calibration(random.random(2000) < probability, probability)
        errors.append(found.error)
        noises.append(found.noise)
    assert np.mean(errors) == pytest.approx(np.mean(noises), rel=0.03)


def test_a_mean_over_seeds_leaves_out_bins_of_another_number():
    random = np.random.default_rng(0)
    labels = random.random(600) < 0.4
    seeds = [calibration(labels, random.random(600)) for _ in range(2)] + [calibration(labels, np.full(600, 0.4))]
    found = mean_calibration(seeds)
    assert found.predicted == pytest.approx((seeds[0].predicted + seeds[1].predicted) / 2)
    assert found.error == pytest.approx(np.mean([each.error for each in seeds]))
