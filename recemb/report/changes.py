"""Compares two folders of runs point by point: what was before, what is after, and whether the change can be told."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from recemb.report import words
from recemb.report.analysis import METRICS, difference, scored_by_seed
from recemb.report.bootstrap import Comparison
from recemb.report.grouping import Point, Section, comparable, options_of_run, point_key
from recemb.report.predictions import Scored
from recemb.report.statistics import Difference
from recemb.report.statistics import difference as difference_by_seed


@dataclass(frozen=True, kw_only=True)
class Change:
    """One point before and after; None where a side has no such runs.

    `compared` holds paired comparisons by metric, after minus before, where predictions allow them; `why_not` says why
    they do not. Seeds are paired where both sides have them.
    """

    section: str
    before: Point | None
    after: Point | None
    compared: Mapping[str, Comparison]
    why_not: str = ""

    @property
    def label(self) -> str:
        """The point's name, that of after where there are both."""
        point = self.after or self.before
        assert point is not None  # a change has a side at least
        return point.label

    @property
    def bytes_ratio(self) -> float | None:
        """Serving bytes after over before."""
        if self.before is None or self.after is None:
            return None
        return self.after.bytes_serving.mean / self.before.bytes_serving.mean

    def by_seed(self, metric: str) -> Difference | None:
        """Difference of the records' test "auc" or "logloss", after minus before."""
        if self.before is None or self.after is None:
            return None
        after, before = (
            {run.seed: getattr(run.test, metric) for run in point.runs} for point in (self.after, self.before)
        )
        return difference_by_seed(after, before)


def changes(
    before: Sequence[Section],
    after: Sequence[Section],
    scored_before: Mapping[str, Scored | str],
    scored_after: Mapping[str, Scored | str],
) -> list[Change]:
    """Pair the points of two folders that have the same method, budget and config.

    Only what may be compared is: the same prepared data, protocol, backbone and test rows. Options that one side alone
    knows, as another version of the program writes them, are looked past where that leaves one pair.

    Args:
        before: sections of the one folder.
        after: sections of the other.
        scored_before: by run name, see `predictions.score_runs`.
        scored_after: likewise.
    """
    earlier = {comparable(section.first): section for section in before}
    found = []
    for section in after:
        old = earlier.pop(comparable(section.first), None)
        for one, other in _pairs(old.points if old else (), section.points):
            compared, why_not = _compared(one, other, scored_before, scored_after)
            found.append(Change(section=section.name, before=one, after=other, compared=compared, why_not=why_not))
    for section in earlier.values():
        found += [Change(section=section.name, before=point, after=None, compared={}) for point in section.points]
    return found


def as_csv(found: Sequence[Change]) -> bytes:
    """Write one row a point."""
    buffer = io.StringIO()
    pd.DataFrame([_row(change) for change in found]).to_csv(buffer, index=False, lineterminator="\n")
    return buffer.getvalue().encode()


def summary(found: Sequence[Change]) -> list[str]:
    """Say in sentences what changed."""
    both = [change for change in found if change.before and change.after]
    told = [(change, change.compared["auc"]) for change in both if "auc" in change.compared]
    better = [change.label for change, each in told if each.told_apart and each.mean > 0]
    worse = [change.label for change, each in told if each.told_apart and each.mean < 0]
    lines = [f"{words.plural(len(both), 'point')} of both folders compared."] if both else []
    if not both:
        lines.append("No point stands in both folders on the same data, so nothing can be compared.")
    if told:
        verdicts = [("better", better), ("worse", worse)]
        parts = [f"{len(names)} {verdict} ({', '.join(names[:4])})" for verdict, names in verdicts if names]
        parts.append(f"{len(told) - len(better) - len(worse)} cannot be told apart")
        lines.append(f"Test AUC after against before, by 95 % intervals: {', '.join(parts)}.")
    sizes = [change for change in both if round(change.bytes_ratio or 1, 4) != 1]
    if both:
        lines.append(f"Serving bytes changed for {len(sizes)}." if sizes else "Serving bytes are the same for all.")
    for side, missing in (("before", [c for c in found if not c.after]), ("after", [c for c in found if not c.before])):
        if missing:
            names = ", ".join(change.label for change in missing[:4]) + (" …" if len(missing) > 4 else "")
            lines.append(f"Only {side}: {words.plural(len(missing), 'point')} ({names}).")
    return lines


def _pairs(before: Sequence[Point], after: Sequence[Point]) -> list[tuple[Point | None, Point | None]]:
    by_key = {point_key(point.runs[0]): point for point in before}
    same = {point.anchor: by_key.get(point_key(point.runs[0])) for point in after}
    taken = {one.anchor for one in same.values() if one}
    old = [point for point in before if point.anchor not in taken]
    new = [point for point in after if same[point.anchor] is None]
    for point in new:
        rivals = [one for one in old if _alike(one, point)]
        if len(rivals) == 1 and sum(_alike(rivals[0], other) for other in new) == 1:
            same[point.anchor] = rivals[0]
    taken = {one.anchor for one in same.values() if one}
    gone = [point for point in before if point.anchor not in taken]
    return [*((same[point.anchor], point) for point in after), *((point, None) for point in gone)]


def _alike(one: Point, other: Point) -> bool:
    """Whether method, budget and every option that both configs have are the same."""
    (mine, options), (theirs, others) = ((point.runs[0], options_of_run(point.runs[0].asked)) for point in (one, other))
    shared = options.keys() & others.keys()
    return (mine.method, mine.budget) == (theirs.method, theirs.budget) and all(
        options[name] == others[name] for name in shared
    )


def _compared(
    before: Point | None,
    after: Point | None,
    scored_before: Mapping[str, Scored | str],
    scored_after: Mapping[str, Scored | str],
) -> tuple[dict[str, Comparison], str]:
    if before is None or after is None:
        return {}, ""
    for side, point, scored in (("before", before, scored_before), ("after", after, scored_after)):
        for run in point.runs:
            if isinstance(reason := scored[run.name], str):
                return {}, f"{side}, {run.name}: {reason}"
    one, other = scored_by_seed(before.runs, scored_before), scored_by_seed(after.runs, scored_after)
    if len({run.labels for run in (*one.values(), *other.values())}) > 1:
        return {}, "the labels of the test rows differ"
    return {metric: difference(other, one, metric) for metric in METRICS}, ""


def _row(change: Change) -> dict[str, Any]:
    row: dict[str, Any] = {"section": change.section, "point": change.label}
    for side, point in (("before", change.before), ("after", change.after)):
        row[f"seeds_{side}"] = len(point.runs) if point else None
        row[f"bytes_{side}"] = point.bytes_serving.mean if point else None
        for metric in METRICS:
            row[f"{metric}_{side}"] = getattr(point, metric).mean if point else None
    row["bytes_ratio"] = change.bytes_ratio
    for metric in METRICS:
        by_seed, compared = change.by_seed(metric), change.compared.get(metric)
        row[f"{metric}_change"] = by_seed.mean if by_seed else None
        row[f"{metric}_change_low"] = compared.low if compared else None
        row[f"{metric}_change_high"] = compared.high if compared else None
    row["no_interval"] = change.why_not or None
    return row
