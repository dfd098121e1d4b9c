"""The three numbers a click model is judged by, exact over all rows of a split."""

import math
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor


def binary_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Compute AUC, logloss and normalised entropy.

    Args:
        logits: (N,) float.
        labels: (N,) 0 or 1; both must occur for AUC and NE, which are NaN otherwise.

    Returns:
        `auc`: area under the ROC curve, ties counted half; `logloss`: mean binary cross-entropy in nats; `ne`: logloss
        over the entropy of the labels' own mean (He et al., "Practical Lessons from Predicting Clicks on Ads at
        Facebook", ADKDD 2014), so that 1 is the constant prediction.
    """
    scores, targets = logits.double(), labels.double()
    logloss = float(torch.nn.functional.binary_cross_entropy_with_logits(scores, targets))
    rate = float(targets.mean())
    if not 0 < rate < 1 or math.isnan(logloss):
        return {"auc": math.nan, "logloss": logloss, "ne": math.nan}
    entropy = -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate))
    # The Mann-Whitney form in float64: torchmetrics' own AUC accumulates in float32.
    positives, rows = float(targets.sum()), len(targets)
    wins = float(_ranks(scores)[targets > 0].sum()) - positives * (positives + 1) / 2
    return {"auc": wins / (positives * (rows - positives)), "logloss": logloss, "ne": logloss / entropy}


class Change(NamedTuple):
    """A difference of two models on the same rows, and the interval that it lies in 95 times of 100."""

    mean: float
    low: float
    high: float


def paired_change(before: Tensor, after: Tensor, labels: Tensor) -> dict[str, Change]:
    """Compare two models on the same rows, whose chance they share.

    DeLong, DeLong & Clarke-Pearson, "Comparing the Areas under Two or More Correlated Receiver Operating Characteristic
    Curves", Biometrics 1988, by ranks as Sun & Xu, IEEE Signal Processing Letters 2014, compute it. It says what other
    test rows could have shown, and nothing about other seeds.

    Args:
        before: (N,) logits of the one.
        after: (N,) logits of the other.
        labels: (N,) 0 or 1; with one class only, AUC's change is NaN.

    Returns:
        `auc` and `logloss`: after minus before.
    """
    targets = labels.double()
    losses = [
        torch.nn.functional.binary_cross_entropy_with_logits(one.double(), targets, reduction="none")
        for one in (before, after)
    ]
    per_row = losses[1] - losses[0]
    error = float(per_row.std()) / math.sqrt(len(per_row)) if len(per_row) > 1 else math.nan
    return {"auc": _auc_change(before, after, targets), "logloss": _interval(float(per_row.mean()), error)}


def _auc_change(before: Tensor, after: Tensor, targets: Tensor) -> Change:
    positive = targets > 0
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if min(positives, negatives) < 2:
        return Change(math.nan, math.nan, math.nan)
    of_positives, of_negatives = [], []
    for logits in (before.double(), after.double()):
        ranks = _ranks(logits)
        # The share of the other class that each row is on the right side of.
        of_positives.append((ranks[positive] - _ranks(logits[positive])) / negatives)
        of_negatives.append(1 - (ranks[~positive] - _ranks(logits[~positive])) / positives)
    gains, losses = of_positives[1] - of_positives[0], of_negatives[1] - of_negatives[0]
    error = math.sqrt(float(gains.var()) / positives + float(losses.var()) / negatives)
    return _interval(float(gains.mean()), error)


def _interval(mean: float, error: float) -> Change:
    reach = NormalDist().inv_cdf(0.975) * error
    return Change(mean, mean - reach, mean + reach)


def _ranks(scores: Tensor) -> Tensor:
    """Rank scores (N,) from 1, equal ones by their mean rank; float64."""
    _, place, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts.double() - 1) / 2)[place]
