"""Metrics against scikit-learn and against closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from recemb.training.metrics import binary_metrics, paired_change


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(-6, 6), st.booleans()), min_size=2, max_size=80))
def test_auc_and_logloss_are_scikit_learns_ties_included(rows: list[tuple[int, bool]]):
    logits = np.array([score for score, _ in rows], dtype=np.float64)
    labels = np.array([label for _, label in rows], dtype=np.int64)
    found = binary_metrics(torch.from_numpy(logits), torch.from_numpy(labels))
    probability = 1 / (1 + np.exp(-logits))
    assert found["logloss"] == pytest.approx(log_loss(labels, probability, labels=[0, 1]), rel=1e-6)
    if 0 < labels.mean() < 1:
        assert found["auc"] == pytest.approx(roc_auc_score(labels, logits), abs=1e-6)
    else:
        assert math.isnan(found["auc"])


def test_scores_that_round_to_one_probability_are_still_ranked():
    logits = torch.tensor([40.0, 41.0, 42.0, 43.0], dtype=torch.float64)
    assert binary_metrics(logits, torch.tensor([0, 0, 1, 1]))["auc"] == 1.0


def test_the_constant_prediction_has_normalised_entropy_one():
    labels = (torch.rand(5000, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    rate = labels.double().mean()
    found = binary_metrics(torch.logit(rate).expand(5000), labels)
    assert found["ne"] == pytest.approx(1.0, abs=1e-9)
    assert found["auc"] == 0.5


def two_models(rows: int, seed: int, shift: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of two models that mostly agree, and labels that both know something of."""
    random = torch.Generator().manual_seed(seed)
    truth = torch.randn(rows, generator=random)
    labels = (torch.rand(rows, generator=random) < torch.sigmoid(truth)).float()
    first = truth + 0.5 * torch.randn(rows, generator=random)
    second = first + 0.3 * torch.randn(rows, generator=random) + shift * (2 * labels - 1)
    return first, second, labels


def test_a_paired_change_is_the_difference_of_the_metrics():
    before, after, labels = two_models(3000, seed=1)
    after = (after * 4).round() / 4  # ties
    change = paired_change(before, after, labels)
    for name in ("auc", "logloss"):
        wanted = binary_metrics(after, labels)[name] - binary_metrics(before, labels)[name]
        assert change[name].mean == pytest.approx(wanted, abs=1e-9)
        assert change[name].low < change[name].mean < change[name].high


def test_its_interval_is_as_wide_as_the_bootstraps():
    before, after, labels = two_models(2000, seed=2)
    random = np.random.default_rng(0)
    changes = []
    for _ in range(400):
        rows = torch.from_numpy(random.integers(0, 2000, 2000))
        values = [binary_metrics(one[rows], labels[rows]) for one in (before, after)]
        changes.append([values[1][name] - values[0][name] for name in ("auc", "logloss")])
    for name, spread in zip(("auc", "logloss"), np.std(changes, axis=0), strict=True):
        found = paired_change(before, after, labels)[name]
        assert (found.high - found.low) / 2 / 1.96 == pytest.approx(spread, rel=0.15)


def test_its_interval_holds_the_true_change_as_often_as_it_says():
    # Two models that are equally good: the interval must leave zero out in about one of twenty.
    outside = 0
    for seed in range(300):
        random = torch.Generator().manual_seed(seed)
        truth = torch.randn(500, generator=random)
        labels = (torch.rand(500, generator=random) < torch.sigmoid(truth)).float()
        first, second = (truth + torch.randn(500, generator=random) for _ in range(2))
        change = paired_change(first, second, labels)["auc"]
        outside += not change.low <= 0 <= change.high
    assert 5 <= outside <= 28


def test_the_same_model_twice_has_not_changed():
    before, _, labels = two_models(100, seed=3)
    assert paired_change(before, before, labels)["auc"] == (0.0, 0.0, 0.0)


def test_one_class_has_no_auc_to_change():
    before, after, _ = two_models(100, seed=4)
    change = paired_change(before, after, torch.ones(100))
    assert math.isnan(change["auc"].mean)
    assert math.isfinite(change["logloss"].mean)
