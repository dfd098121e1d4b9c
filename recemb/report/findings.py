"""The sentences that open a section: what it shows, and how sure that is."""

from collections.abc import Mapping, Sequence

from recemb.budget import format_bytes
from recemb.report.grouping import FULL, Point, Section
from recemb.report.statistics import auc_standard_error
from recemb.report.words import (
    baseline_name,
    fineness,
    interval,
    kept_share,
    plural,
    reached,
    score,
    seeds,
    times_smaller,
    with_sign,
    with_spread,
)

_MOST_NAMES = 4  # in one sentence


def findings(section: Section) -> list[str]:
    """Say in sentences what a section shows: the best point, what comes free, and how fine differences can be told."""
    best = max(section.points, key=lambda point: (point.auc.mean, -point.bytes_serving.mean))
    lines = [f"Best mean test AUC: {_named(best)}."]
    if section.analysis.differences:
        lines += [_not_told_apart(section), _told_apart(section), _resolution(section)]
    else:
        lines += [_nearly_free(section), _error_of_one(section, section.full or best)]
    lines += [_ranks(section), *_sizes_for_targets(section), _calibration(section)]
    if section.ceiling:
        lines.append(
            f"The best reachable on these test rows is AUC {score(section.ceiling.auc)} "
            f"and logloss {score(section.ceiling.logloss)}."
        )
    lines += [_tuned(section), _unusable(section.analysis.unusable)]
    return [line for line in lines if line]


def _not_told_apart(section: Section) -> str:
    analysis = section.analysis
    alike = [
        point
        for point in section.points
        if (found := analysis.differences.get((point.anchor, "auc")))
        and not found.told_apart
        and point.bytes_serving.mean < analysis.against[point.anchor].bytes_serving.mean
    ]
    name = baseline_name(analysis)
    if not alike:
        smaller = any(
            point.bytes_serving.mean < other.bytes_serving.mean
            for point in section.points
            if (other := analysis.against.get(point.anchor))
        )
        return f"Every smaller table can be told apart from {name} in AUC." if smaller else ""
    smallest = min(alike, key=lambda point: (point.bytes_serving.mean, -point.auc.mean))
    found = analysis.differences[smallest.anchor, "auc"]
    difference = f"{with_sign(section.to_baseline(smallest, 'auc'))} {interval(found, signed=True)}"
    return f"Smallest table that cannot be told apart from {name}: {_named(smallest)}, difference in AUC {difference}."


def _told_apart(section: Section) -> str:
    worse: list[str] = []
    better: list[str] = []
    rest = 0
    for point in section.points:
        found = section.analysis.differences.get((point.anchor, "auc"))
        if found is not None and found.told_apart:
            (worse if found.mean < 0 else better).append(point.label)
        elif found is not None:
            rest += 1
    parts = [
        f"{len(labels)} {verdict} ({_some(labels)})"
        for labels, verdict in ((better, "better"), (worse, "worse"))
        if labels
    ]
    text = ", ".join([*parts, f"{rest} not told apart"]) if rest else ", ".join(parts)
    return f"Against {baseline_name(section.analysis)} in AUC, by 95 % intervals: {text}."


def _resolution(section: Section) -> str:
    analysis = section.analysis
    counts = sorted({found.seeds for found in analysis.differences.values()})
    rows = section.first.rows.get("test")
    over = f"{rows:,} test rows" if rows else "the test rows"
    if counts[-1] > 1:
        over += f" and {counts[0]} seeds" if counts[0] == counts[-1] else f" and up to {counts[-1]} seeds"
    text = (
        f"Differences under {fineness(analysis.resolution['auc'])} AUC or "
        f"{fineness(analysis.resolution['logloss'])} logloss to {baseline_name(analysis)} cannot be told apart here "
        f"(paired bootstrap over {over})"
    )
    if counts[-1] == 1:
        return f"{text}; what other seeds would show is not in it."
    if min(analysis.resolution_of_rows.values()) < 1e-5:
        return f"{text}; more seeds would resolve smaller ones."  # what the rows leave is too little to be estimated
    finest = {metric: fineness(value) for metric, value in analysis.resolution_of_rows.items()}
    return f"{text}; with many more seeds these rows would resolve {finest['auc']} AUC or {finest['logloss']} logloss."


def _ranks(section: Section) -> str:
    areas = section.analysis.hypervolume
    if len(areas) < 2:
        return ""
    low, high = (format_bytes(size) for size in section.analysis.bounds)
    ranked = sorted(areas, key=lambda name: (-areas[name], name))
    listed = "; ".join(f"{name} {score(areas[name])}" for name in ranked[:_MOST_NAMES])
    listed += f"; and {len(ranked) - _MOST_NAMES} more" if len(ranked) > _MOST_NAMES else ""
    return f"Hypervolume, the mean AUC above 0.5 that a method buys from {low} to {high}: {listed}."


def _sizes_for_targets(section: Section) -> list[str]:
    lines = []
    for target in section.analysis.targets:
        found = {name: size for name, size in target.reached.items() if size is not None and name != FULL}
        ranked = sorted(found, key=lambda name: (found[name].bytes, name))[:_MOST_NAMES]
        missed = sum(1 for name, size in target.reached.items() if size is None and name != FULL)
        listed = "; ".join(f"{name} {reached(found[name])}" for name in ranked) or "no method gets there"
        tail = f"; not reached by {missed}" if found and missed else ""
        shown = f"AUC {score(target.auc)}" + ("" if target.name.startswith("AUC") else f" ({target.name})")
        lines.append(f"Fewest bytes for {shown}: {listed}{tail}.")
    return lines


def _calibration(section: Section) -> str:
    found = [(point, section.analysis.calibration.get(point.anchor)) for point in section.points]
    known = [(point, each) for point, each in found if each is not None]
    if not known:
        return ""
    ratios = [each.ratio for _, each in known]
    point, worst = max(known, key=lambda pair: pair[1].error)
    return (
        f"Mean prediction over observed rate: {min(ratios):.3f} to {max(ratios):.3f}. Largest expected calibration "
        f"error: {worst.error:.4f} ({point.label}); right probabilities would show {worst.noise:.4f} by chance."
    )


def _tuned(section: Section) -> str:
    """Say by how many trials learning rates were chosen, and warn where points had not the same chances."""
    points_of: dict[int, dict[str, None]] = {}
    for point in section.points:
        for run in point.runs:
            points_of.setdefault(run.trials, {})[point.label] = None
    if len(points_of) > 1:
        listed = "; ".join(
            f"{plural(trials, 'trial')}: {_some(list(points_of[trials]))}" for trials in sorted(points_of)
        )
        return (
            "Learning rates were chosen on validation rows by different numbers of trials, so that differences between "
            f"points are not those of the methods alone: {listed}."
        )
    (trials,) = points_of
    if not trials:
        return ""
    return f"The learning rates of every run were chosen by {plural(trials, 'trial')} on validation rows."


def _unusable(reasons: Mapping[str, str]) -> str:
    if not reasons:
        return ""
    first, why = next(iter(reasons.items()))
    return (
        f"No intervals on test rows where predictions are missing: {plural(len(reasons), 'run')} cannot be used, "
        f"the first is {first}: {why}."
    )


def _some(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - _MOST_NAMES} more" if len(labels) > _MOST_NAMES else ""
    return ", ".join(labels[:_MOST_NAMES]) + more


def _named(point: Point) -> str:
    size = format_bytes(point.bytes_serving.mean)
    if point.method != FULL and point.kept:
        size += f", kept {kept_share(point.kept)}, {times_smaller(point.kept)} smaller"
    name = "the full table" if point.series == FULL else point.label
    return f"{name} with {with_spread(point.auc)} over {seeds(point.auc)} ({size})"


def _nearly_free(section: Section) -> str:
    full = section.full
    if full is None:
        if section.analysis.against:
            return ""
        return "There is no run of the full table, so no difference to it can be shown; --baseline chooses another."
    if full.auc.std is None:
        return "The full table has one seed only, so its noise is unknown and no table can be called as good as it."
    floor = full.auc.mean - full.auc.std
    within = [p for p in section.points if p.method != FULL and p.auc.mean >= floor]
    band = f"the full table's noise (AUC {with_spread(full.auc)} over {seeds(full.auc)})"
    if not within:
        return f"No smaller table is within {band}."
    smallest = min(within, key=lambda point: (point.bytes_serving.mean, -point.auc.mean))
    return f"Smallest table within {band}: {_named(smallest)}."


def _error_of_one(section: Section, point: Point) -> str:
    run = section.first
    rows = run.rows.get("test")
    rate = next((r.positive_rate for p in section.points for r in p.runs if r.positive_rate is not None), None)
    if not rows or rate is None or not 0 <= rate <= 1:
        return ""
    positives = round(rows * rate)
    error = auc_standard_error(point.auc.mean, positives, rows - positives)
    if error is None:
        return ""
    return (
        f"With {rows:,} test rows ({rate:.1%} positive) the standard error of one AUC is {error:.2g}: "
        "smaller differences need paired tests."
    )
