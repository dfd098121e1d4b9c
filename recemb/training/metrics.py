"""The three numbers a click model is judged by, exact over all rows of a split."""

import math

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc


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
    if not 0 < rate < 1:
        return {"auc": math.nan, "logloss": logloss, "ne": math.nan}
    entropy = -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate))
    # Ranks are what AUC needs: they keep apart scores whose probabilities would round to the same number.
    ranks = torch.unique(scores, return_inverse=True)[1].double()
    auc = float(binary_auroc(ranks / max(float(ranks.max()), 1.0), targets.long(), validate_args=False))
    return {"auc": auc, "logloss": logloss, "ne": logloss / entropy}
