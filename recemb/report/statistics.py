"""The numbers of a report: spread over seeds, differences by seed, the Pareto front, the error of one AUC."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from scipy.stats import t


class Spread(NamedTuple):
    """Mean over seeds; `std` is the sample standard deviation, None for one seed, whose spread is unknown."""

    mean: float
    std: float | None
    n: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the mean over seeds by Student's t, None for one seed; it knows nothing of the rows."""
        if self.std is None:
            return None
        reach = float(t.ppf(0.975, self.n - 1)) * self.std / math.sqrt(self.n)
        return self.mean - reach, self.mean + reach


class Difference(NamedTuple):
    """Mean difference to a reference; `pairs` is 0 where no seed matched and only the means were compared."""

    mean: float
    std: float | None
    pairs: int


def spread(values: Sequence[float]) -> Spread:
    """Summarise one number per seed.

    Example:
        >>> spread([0.5, 0.75])
        Spread(mean=0.625, std=0.1767766952966369, n=2)
    """
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Spread(mean, None, 1)
    return Spread(mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1)), n)


def difference(values: Mapping[int, float], reference: Mapping[int, float]) -> Difference:
    """Compare two points seed by seed: the same seed gives both the same order of rows, so its noise cancels.

    Args:
        values: metric by seed.
        reference: metric of the reference by seed.
    """
    seeds = sorted(values.keys() & reference.keys())
    if not seeds:
        return Difference(spread(list(values.values())).mean - spread(list(reference.values())).mean, None, 0)
    paired = spread([values[seed] - reference[seed] for seed in seeds])
    return Difference(paired.mean, paired.std, paired.n)


def pareto_front(costs: Sequence[float], qualities: Sequence[float]) -> list[bool]:
    """Tell which points no other point beats: none has a cost ≤ and a quality ≥ with one of them strict.

    Args:
        costs: one per point, less is better.
        qualities: one per point, more is better.

    Example:
        >>> pareto_front([1, 2, 2, 4], [0.5, 0.7, 0.6, 0.7])
        [True, True, False, False]
    """
    best_at: dict[float, float] = {}
    for cost, quality in zip(costs, qualities, strict=True):
        best_at[cost] = max(quality, best_at.get(cost, -math.inf))
    front: dict[float, float] = {}
    highest = -math.inf
    for cost in sorted(best_at):
        if best_at[cost] > highest:
            front[cost] = highest = best_at[cost]
    return [front.get(cost) == quality for cost, quality in zip(costs, qualities, strict=True)]


def auc_standard_error(auc: float, positives: int, negatives: int) -> float | None:
    """Standard error of one AUC that comes from the finite test set alone.

    Hanley and McNeil, "The meaning and use of the area under a receiver operating characteristic (ROC) curve",
    Radiology 143(1), 1982. It says nothing about seeds, and it is too wide for two models scored on the same
    rows, whose errors go together: those need a paired test.

    Args:
        auc: the measured area, in [0, 1].
        positives: test rows with label 1.
        negatives: test rows with label 0.
    """
    if positives < 1 or negatives < 1:
        return None
    two_positives = auc / (2 - auc)  # chance that two random positives both outrank one negative
    two_negatives = 2 * auc**2 / (1 + auc)
    variance = (
        auc * (1 - auc) + (positives - 1) * (two_positives - auc**2) + (negatives - 1) * (two_negatives - auc**2)
    ) / (positives * negatives)
    return math.sqrt(max(variance, 0.0))
