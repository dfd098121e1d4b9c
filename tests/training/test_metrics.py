"""Metrics against scikit-learn and against closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from recemb.training.metrics import binary_metrics


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
