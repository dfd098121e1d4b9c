"""Paired comparison of trained models: what other test rows and other seeds could have shown.

Two models that were scored on the same rows share the luck of those rows, and two runs of one seed share the luck of
that seed, so differences are resampled and not the models. Rows and seeds are crossed: every seed scores every row.

**Rows** are drawn with replacement, the same draws for every model and seed (Efron & Tibshirani, "An Introduction to
the Bootstrap", 1993, chapter 8). The logloss is a mean over rows, and so is, up to a remainder that shrinks as 1/rows,
the AUC: a row's component is the share of the other class that it is on the right side of (DeLong, DeLong &
Clarke-Pearson, "Comparing the Areas under Two or More Correlated Receiver Operating Characteristic Curves", Biometrics
1988; by ranks as Sun & Xu, IEEE Signal Processing Letters 2014). A replicate is then a product of counts and components
and not a sort, which `scipy.stats.bootstrap` would need for each. Above `MOST_GROUPS` rows, groups of rows are drawn
instead of single ones: sums over independent rows have the same variance, and millions of rows take seconds.

**Seeds** are few. Drawing 3 of 3 with replacement knows ten samples, whose variance is too small by a third and whose
percentiles are closer still (Hesterberg, "What Teachers Should Know About the Bootstrap", The American Statistician
2015); and drawing both rows and seeds counts their interaction three times (Owen, "The Pigeonhole Bootstrap", Annals of
Applied Statistics 2007; Owen & Eckles, "Bootstrapping Data Arrays of Arbitrary Order", 2012). Therefore each replicate
adds to the drawn rows a draw from Student's t with the seeds' own standard error, which holds all that differs from
seed to seed, the interaction included; and the drawn rows are scaled to what all seeds share, the mean covariance of
two seeds over the replicates. Nothing is counted twice, and for normal effects this is the Behrens-Fisher problem's
fiducial interval, which errs to the safe side.
"""

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata, t

Array = NDArray[np.float64]

REPLICATES = 2000
MOST_GROUPS = 10_000
CONFIDENCE = 0.95
_LEAST_PROBABILITY = 2.0**-25  # half the step of float32 below 1: what a saturated probability stands for


class Replicates(NamedTuple):
    """A metric of one run on the test rows, and on every resampling of them: (replicates,) float64."""

    value: float
    resampled: Array


class Comparison(NamedTuple):
    """A difference of two points, with what 95 of 100 intervals hold.

    Attributes:
        mean: the difference on the test rows, a mean over seeds.
        low: lower end of the 95 % interval.
        high: upper end.
        error: standard error that the rows and, where `seeds` is above 1, the seeds leave.
        error_of_rows: the part of it that no number of further seeds would take away.
        seeds: seeds behind the interval; with 1 it holds for other test rows only, not for other seeds.
        paired: whether the same seeds stand on both sides.
    """

    mean: float
    low: float
    high: float
    error: float
    error_of_rows: float
    seeds: int
    paired: bool = True

    @property
    def told_apart(self) -> bool:
        """Whether the interval leaves zero out."""
        return not self.low <= 0 <= self.high

    @property
    def reach(self) -> float:
        """Half the width of the interval: differences below it cannot be told apart."""
        return (self.high - self.low) / 2


def row_replicates(
    labels: NDArray[Any], probability: NDArray[Any], replicates: int = REPLICATES, seed: int = 0
) -> dict[str, Replicates]:
    """Compute AUC and logloss on the rows and on resamplings of them.

    Args:
        labels: (N,) 0 or 1; with fewer than two of either the AUC is NaN.
        probability: (N,) predicted probabilities, in the order of the labels.
        replicates: how many resamplings.
        seed: of the resampling, which depends on it and on N alone: models are paired where both are the same.

    Returns:
        `auc` and `logloss`.
    """
    positive = np.asarray(labels) > 0
    known = min(positive.sum(), (~positive).sum()) >= 2
    components = auc_components(labels, probability) if known else np.full(len(positive), np.nan)
    losses = row_losses(labels, probability)
    auc, logloss = float(components[positive].mean()) if known else math.nan, float(losses.mean())
    columns = (positive, (components - auc) * positive, ~positive, (components - auc) * ~positive, losses - logloss)
    groups = min(len(positive), MOST_GROUPS)
    # Taken in turn, so that neighbours in time come into different groups.
    group = np.arange(len(positive)) % groups
    sums = np.stack([np.bincount(group, column, groups) for column in columns], axis=1).astype(np.float32)
    drawn = (_draws(groups, replicates, seed) @ sums).astype(np.float64)
    positives, of_positives, negatives, of_negatives, of_losses = drawn.T
    rows = np.maximum(positives + negatives, 1)
    change = of_positives / np.maximum(positives, 1) + of_negatives / np.maximum(negatives, 1)
    return {"auc": Replicates(auc, auc + change), "logloss": Replicates(logloss, logloss + of_losses / rows)}


def auc_components(labels: NDArray[Any], scores: NDArray[Any]) -> Array:
    """Give each row the share of the other class that it is on the right side of, ties counted half.

    The mean over the rows of either class is the area under the ROC curve.

    Args:
        labels: (N,) 0 or 1, at least one of each.
        scores: (N,) the higher, the likelier a 1.

    Returns:
        (N,) in [0, 1].
    """
    positive = np.asarray(labels) > 0
    components = np.empty(len(positive))
    ranks = rankdata(scores)
    for of_class, others in ((positive, (~positive).sum()), (~positive, positive.sum())):
        components[of_class] = (ranks[of_class] - rankdata(scores[of_class])) / others
    components[~positive] = 1 - components[~positive]
    return components


def row_losses(labels: NDArray[Any], probability: NDArray[Any]) -> Array:
    """Give each row's log loss in nats, (N,); a probability that was rounded to 0 or 1 stands for one close to it."""
    positive = np.asarray(labels) > 0
    given = np.asarray(probability, dtype=np.float64)
    return -np.log(np.maximum(np.where(positive, given, 1 - given), _LEAST_PROBABILITY))


def compare(point: Mapping[int, Replicates], baseline: Mapping[int, Replicates], seed: int = 0) -> Comparison:
    """Compare two points over seeds and rows, see the top of this file.

    Seeds that both have are paired, and the others left out. Where they have none in common, each side's seeds vary
    by themselves (Welch's problem), and the rows alone are paired.

    Args:
        point: by seed, made by `row_replicates` with one number of rows and one seed of the resampling.
        baseline: likewise.
        seed: of the draws from Student's t.

    Returns:
        `point` minus `baseline`.
    """
    common = sorted(point.keys() & baseline.keys())
    if common:
        resampled = np.stack([point[s].resampled - baseline[s].resampled for s in common])
        values = np.array([point[s].value - baseline[s].value for s in common])
        return _over_seeds([(values, resampled)], seed, len(common), paired=True)
    sides = [
        (sign * np.array([each.value for each in side.values()]), sign * np.stack([e.resampled for e in side.values()]))
        for sign, side in ((1, point), (-1, baseline))
    ]
    return _over_seeds(sides, seed, min(len(point), len(baseline)), paired=False)


def compare_two(labels: NDArray[Any], before: NDArray[Any], after: NDArray[Any]) -> dict[str, Comparison]:
    """Compare two models on the same rows: `after` minus `before` in `auc` and `logloss`.

    Args:
        labels: (N,) 0 or 1.
        before: (N,) probabilities of the one.
        after: (N,) probabilities of the other.
    """
    one, other = row_replicates(labels, before), row_replicates(labels, after)
    return {metric: compare({0: other[metric]}, {0: one[metric]}) for metric in one}


def _over_seeds(sides: list[tuple[Array, Array]], seed: int, seeds: int, paired: bool) -> Comparison:
    """Add up sides, each the values (R,) of its seeds and their replicates (R, B)."""
    mean = math.fsum(float(values.mean()) for values, _ in sides)
    rows = np.sum([resampled.mean(axis=0) for _, resampled in sides], axis=0) - mean
    if seeds > 1:
        rows *= _share_of_all_seeds(sides, rows)
    error = error_of_rows = float(rows.std())
    if seeds > 1:
        random = np.random.default_rng(seed)
        # Evenly spaced quantiles in random order: drawn ones would leave the far ends of Student's t to chance.
        even = (np.arange(rows.size) + 0.5) / rows.size
        for values, _ in sides:
            of_seeds = float(values.std(ddof=1)) / math.sqrt(values.size)
            rows = rows + of_seeds * random.permutation(t.ppf(even, values.size - 1))
            error = math.hypot(error, of_seeds)
    low, high = mean + np.quantile(rows, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Comparison(mean, float(low), float(high), error, error_of_rows, seeds, paired)


def _share_of_all_seeds(sides: list[tuple[Array, Array]], rows: Array) -> float:
    """Factor that leaves of the rows' deviation what does not differ from seed to seed."""
    total = float(rows.var())
    own = 0.0
    for _, resampled in sides:
        count = len(resampled)
        # What two replicates of one seed share beyond those of different seeds is the seeds' own part of the variance.
        spread = float(resampled.var(axis=1).mean()) - float(resampled.mean(axis=0).var())
        own += spread / (count - 1)
    return math.sqrt(max(1 - own / total, 0.0)) if total > 0 else 0.0


@lru_cache(maxsize=2)
def _draws(rows: int, replicates: int, seed: int) -> NDArray[np.float32]:
    """Count how often each of `rows` is drawn: (replicates, rows), every row of it sums to `rows`."""
    random = np.random.default_rng(seed)
    counts = np.empty((replicates, rows), dtype=np.float32)
    for count in counts:
        count[:] = np.bincount(random.integers(rows, size=rows), minlength=rows)
    return counts
