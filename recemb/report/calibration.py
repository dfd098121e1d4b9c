"""How far predicted probabilities are from frequencies: bids and rankings across requests need them to agree."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
BINS = 15


class Calibration(NamedTuple):
    """Probabilities beside frequencies.

    Attributes:
        error: expected calibration error, the mean distance of bins' frequencies from their mean probabilities.
        noise: the error that perfectly calibrated probabilities would show on average on as many rows.
        ratio: mean probability over the share of ones; above 1 predicts too much.
        predicted: (K,) mean probability of each bin.
        observed: (K,) share of ones of each bin.
        rows: (K,) rows of each bin.
    """

    error: float
    noise: float
    ratio: float
    predicted: Array
    observed: Array
    rows: Array


def calibration(labels: NDArray[Any], probability: NDArray[Any], bins: int = BINS) -> Calibration:
    """Compare probabilities with frequencies in bins of as many rows each.

    The error is that of Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015;
    bins of equal mass (Nixon et al., "Measuring Calibration in Deep Learning", CVPR workshops 2019) because click
    probabilities crowd near zero. The ratio is the calibration of He et al., "Practical Lessons from Predicting Clicks
    on Ads at Facebook", ADKDD 2014.

    Args:
        labels: (N,) 0 or 1, with a 1 among them.
        probability: (N,) predicted probabilities.
        bins: at most; equal probabilities are never parted, so that there may be fewer.
    """
    inner = np.quantile(probability, np.linspace(0, 1, bins + 1)[1:-1])
    _, place = np.unique(np.searchsorted(inner, probability, side="left"), return_inverse=True)
    rows = np.bincount(place).astype(np.float64)
    predicted, observed = np.bincount(place, probability) / rows, np.bincount(place, labels) / rows
    share = rows / rows.sum()
    # The mean distance of a normal variable from its mean is sqrt(2 / pi) standard deviations.
    noise = math.sqrt(2 / math.pi) * np.sqrt(predicted * (1 - predicted) / rows)
    return Calibration(
        error=float(share @ np.abs(predicted - observed)),
        noise=float(share @ noise),
        ratio=float(probability.mean() / labels.mean()),
        predicted=predicted,
        observed=observed,
        rows=rows,
    )


def mean_calibration(seeds: Sequence[Calibration]) -> Calibration:
    """Average over seeds, bin by bin; bins that differ in number stay those of the first seed."""
    first = seeds[0]
    alike = [each for each in seeds if each.rows.size == first.rows.size]
    return Calibration(
        error=float(np.mean([each.error for each in seeds])),
        noise=float(np.mean([each.noise for each in seeds])),
        ratio=float(np.mean([each.ratio for each in seeds])),
        predicted=np.mean([each.predicted for each in alike], axis=0),
        observed=np.mean([each.observed for each in alike], axis=0),
        rows=np.mean([each.rows for each in alike], axis=0),
    )
