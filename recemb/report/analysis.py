"""What a section's numbers amount to: differences that can be told apart, ranks of series, calibration."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from recemb.report.bootstrap import CONFIDENCE, Comparison, compare
from recemb.report.calibration import Calibration, mean_calibration
from recemb.report.hypervolume import Reached, bytes_to_reach, hypervolume
from recemb.report.predictions import Scored
from recemb.report.records import Run

if TYPE_CHECKING:
    from recemb.report.grouping import Point, Section

FULL = "full"
METRICS = ("auc", "logloss")
_TWO_SIDED = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
_BELOW = (0.001, 0.005, 0.01)  # AUC that the usual targets lie below the full table


class Target(NamedTuple):
    """A test AUC, how it is called, and the bytes at which each series reaches it, None where it does not."""

    name: str
    auc: float
    reached: Mapping[str, Reached | None]


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """What a section's numbers amount to.

    Attributes:
        baseline: how the baseline is named: "full", a point's label or a series; None where the section has none.
        against: the baseline of each point, by the point's anchor; the baseline itself has none.
        differences: by anchor and metric, each point to its baseline; only where predictions allow it.
        resolution: by metric, the smallest difference to the baseline that could be told apart: the median over points
            of half the 95 % interval. Absent where no point has an interval.
        resolution_of_rows: the same if there were any number of seeds: what the test rows cannot resolve.
        calibration: by anchor, means over seeds.
        bounds: bytes between which the hypervolume is taken.
        hypervolume: by series; empty where all tables are of one size.
        targets: test AUCs to reach.
        unusable: run name and reason of the runs whose predictions are missing or broken.
    """

    baseline: str | None = None
    against: Mapping[str, "Point"] = field(default_factory=dict)
    differences: Mapping[tuple[str, str], Comparison] = field(default_factory=dict)
    resolution: Mapping[str, float] = field(default_factory=dict)
    resolution_of_rows: Mapping[str, float] = field(default_factory=dict)
    calibration: Mapping[str, Calibration] = field(default_factory=dict)
    bounds: tuple[float, float] = (0.0, 0.0)
    hypervolume: Mapping[str, float] = field(default_factory=dict)
    targets: Sequence[Target] = ()
    unusable: Mapping[str, str] = field(default_factory=dict)


def analyse(
    section: "Section", scored: Mapping[str, Scored | str], baseline: str | None = None, targets: Sequence[float] = ()
) -> Analysis:
    """Work out what a section's numbers amount to.

    Args:
        section: what to look at.
        scored: by run name, what its predictions come to, or why they cannot be used.
        baseline: a point's label, a series or a method; the full table when not given.
        targets: test AUCs to reach; the usual ones, below the full table or else the best point, when not given.
    """
    against = baselines(section, baseline or FULL)
    by_seed = {point.anchor: scored_by_seed(point.runs, scored) for point in section.points}
    differences = {
        (anchor, metric): difference(by_seed[anchor], by_seed[other.anchor], metric)
        for anchor, other in against.items()
        if by_seed[anchor] and by_seed[other.anchor]
        for metric in METRICS
    }
    by_metric = {metric: [found for (_, other), found in differences.items() if other == metric] for metric in METRICS}
    by_metric = {metric: found for metric, found in by_metric.items() if found}
    series = _series(section)
    bounds = _bounds(section)
    # The full table is the upper bound itself and buys nothing below it.
    areas = {name: hypervolume(points, *bounds) for name, points in series.items() if name != FULL}
    return Analysis(
        baseline=(baseline or FULL) if against else None,
        against=against,
        differences=differences,
        resolution={metric: statistics.median(each.reach for each in found) for metric, found in by_metric.items()},
        resolution_of_rows={
            metric: _TWO_SIDED * statistics.median(each.error_of_rows for each in found)
            for metric, found in by_metric.items()
        },
        calibration={
            anchor: mean_calibration([run.calibration for run in runs.values()])
            for anchor, runs in by_seed.items()
            if runs
        },
        bounds=bounds,
        hypervolume={name: area for name, area in areas.items() if area is not None},
        targets=[
            Target(name, auc, {of: bytes_to_reach(points, auc) for of, points in series.items()})
            for name, auc in _targets(section, targets)
        ],
        unusable={
            run.name: reason
            for point in section.points
            for run in point.runs
            if isinstance(reason := scored.get(run.name), str)
        },
    )


def baselines(section: "Section", name: str) -> dict[str, "Point"]:
    """Find each point's baseline by anchor.

    The name of a point is the baseline of all, and that of a series or a method is for each point its table of the same
    budget or size. "full" is the full table that was trained as the point was.

    Returns:
        An empty mapping where the section has nothing of that name.
    """
    points = section.points
    if name == FULL:
        found = {point.anchor: section.reference(point) for point in points}
    elif one := next((point for point in points if point.label == name), None):
        found = {point.anchor: one for point in points}
    else:
        rivals = [point for point in points if point.series == name]
        rivals = rivals or [point for point in points if name in (point.method, point.runs[0].method)]
        found = {point.anchor: _of_one_size(point, rivals) for point in points}
    return {
        point.anchor: other
        for point in points
        if (other := found[point.anchor]) is not None and other.anchor != point.anchor
    }


def names_of_baselines(sections: Iterable["Section"]) -> list[str]:
    """List what a baseline can be called: series first, then points."""
    points = [point for section in sections for point in section.points]
    return list(dict.fromkeys([*(point.series for point in points), *(point.label for point in points)]))


def difference(point: Mapping[int, Scored], baseline: Mapping[int, Scored], metric: str) -> Comparison:
    """Compare two points, each the scored runs by seed, on the same test rows: `point` minus `baseline`."""
    one, other = ({seed: run.metrics[metric] for seed, run in side.items()} for side in (point, baseline))
    return compare(one, other)


def scored_by_seed(runs: Sequence[Run], scored: Mapping[str, Scored | str]) -> dict[int, Scored]:
    """Give what the predictions of a point's runs come to; empty where those of any cannot be used."""
    found = {run.seed: each for run in runs if isinstance(each := scored.get(run.name), Scored)}
    return found if len(found) == len(runs) else {}


def _of_one_size(point: "Point", rivals: Sequence["Point"]) -> "Point | None":
    same = [rival for rival in rivals if rival.setting == point.setting and point.runs[0].budget]
    same = same or [rival for rival in rivals if rival.bytes_serving.mean == point.bytes_serving.mean]
    return same[0] if same else None


def _series(section: "Section") -> dict[str, list[tuple[float, float]]]:
    series: dict[str, list[tuple[float, float]]] = {}
    for point in section.points:
        series.setdefault(point.series, []).append((point.bytes_serving.mean, point.auc.mean))
    return series


def _bounds(section: "Section") -> tuple[float, float]:
    """From the smallest table to the full one, which is 1x, or the largest there is."""
    sizes = [point.bytes_serving.mean for point in section.points]
    full = max((run.bytes_full or 0 for point in section.points for run in point.runs), default=0)
    return min(sizes), max(*sizes, full)


def _targets(section: "Section", asked: Sequence[float]) -> list[tuple[str, float]]:
    if asked:
        return [(f"AUC {auc:g}", auc) for auc in asked]
    full = section.full
    name, top = (FULL, full.auc.mean) if full else ("best", max(point.auc.mean for point in section.points))
    return [(f"{name} − {below:g}", top - below) for below in _BELOW]
