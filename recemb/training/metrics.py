"""The three numbers a click model is judged by, exact over all rows of a split."""

import math

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


def _ranks(scores: Tensor) -> Tensor:
    """Rank scores (N,) from 1, equal ones by their mean rank; float64."""
    _, place, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts.double() - 1) / 2)[place]
