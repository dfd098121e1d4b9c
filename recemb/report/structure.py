"""What pruning left of the tables and how it got there: read from a record, and averaged over seeds."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

from recemb.report.values import HIGHEST_INTEGER, at, label, whole, within

UNITS = ("row", "entry")
PRUNED_IDS = ("zero", "shared")
LONGEST_STAGE = 1e9  # seconds, which is thirty years


class Kept(NamedTuple):
    """What one feature keeps; whole numbers in one run, means over several.

    Attributes:
        ids: ids of the feature.
        kept: ids that keep a row of their own.
        width: floats of a kept row.
        dim: floats of a row of the full table.
        cells: share of the training cells whose id keeps a row.
    """

    ids: float
    kept: float
    width: float
    dim: float
    cells: float | None

    @property
    def share(self) -> float:
        """Share of the ids that keep a row."""
        return self.kept / self.ids


class Structure(NamedTuple):
    """What all features keep; a text is '' where it is not known."""

    unit: str
    pruned_ids: str
    map: str
    per_table: dict[str, Kept]

    @property
    def ids(self) -> float:
        """Ids of all features."""
        return sum(table.ids for table in self.per_table.values())

    @property
    def share(self) -> float:
        """Share of all ids that keep a row."""
        return sum(table.kept for table in self.per_table.values()) / self.ids

    @property
    def cells(self) -> float | None:
        """Share of all training cells whose id keeps a row, each feature having as many cells."""
        known = [table.cells for table in self.per_table.values() if table.cells is not None]
        return sum(known) / len(known) if len(known) == len(self.per_table) else None


class Stage(NamedTuple):
    """One of the things that a run did, one after another.

    Attributes:
        name: "supernet", "search" or "retrain".
        seconds: wall time.
        steps: steps of training.
        best_step: the step whose weights were kept.
        evaluated: candidates that a search looked at.
        rounds: rounds of the search.
        best_after: candidates that the search had looked at when it found its best.
        valid_auc: AUC on the validation rows, of the best candidate in a search.
    """

    name: str
    seconds: float | None = None
    steps: float | None = None
    best_step: float | None = None
    evaluated: float | None = None
    rounds: float | None = None
    best_after: float | None = None
    valid_auc: float | None = None


def read_structure(found: Any) -> Structure | None:
    """Read a record's `structure`; None where it is absent or no table in it is plausible."""
    tables = at(found, "per_table")
    if not isinstance(tables, dict):
        return None
    per_table = {name: kept for name, value in tables.items() if (kept := _read_kept(value)) is not None}
    unit, pruned_ids = at(found, "unit"), at(found, "pruned_ids")
    return _in_order(
        unit if unit in UNITS else "",
        pruned_ids if pruned_ids in PRUNED_IDS else "",
        label(at(found, "map")),
        per_table,
    )


def read_stages(found: Any) -> tuple[Stage, ...]:
    """Read a record's `stages`, without what is no stage; a name that comes again is numbered."""
    stages, seen = [], Counter[str]()
    for value in found if isinstance(found, list) else ():
        if name := label(at(value, "name")):
            seen[name] += 1
            stages.append(_read_stage(value, name if seen[name] == 1 else f"{name} {seen[name]}"))
    return tuple(stages)


def mean_structure(structures: Sequence[Structure]) -> Structure | None:
    """Average what runs kept, feature by feature over the runs that name it; None where there is no run."""
    found: dict[str, list[Kept]] = defaultdict(list)
    for structure in structures:
        for name, kept in structure.per_table.items():
            found[name].append(kept)
    units, pruned_ids = {each.unit for each in structures}, {each.pruned_ids for each in structures}
    return _in_order(
        units.pop() if len(units) == 1 else "",
        pruned_ids.pop() if len(pruned_ids) == 1 else "",
        " or ".join(sorted({each.map for each in structures} - {""})),  # each run takes the form that is smallest
        {name: _mean_kept(same) for name, same in found.items()},
    )


def mean_stages(runs: Sequence[Sequence[Stage]]) -> list[Stage]:
    """Average the stages of runs, name by name; a number is that of the runs which know it."""
    found: dict[str, list[Stage]] = defaultdict(list)
    for stages in runs:
        for stage in stages:
            found[stage.name].append(stage)
    numbers = Stage._fields[1:]
    return [
        Stage(name, *(_mean([getattr(stage, n) for stage in same]) for n in numbers)) for name, same in found.items()
    ]


def _in_order(unit: str, pruned_ids: str, form: str, per_table: dict[str, Kept]) -> Structure | None:
    """Put the features with most ids first, which are the ones that pruning is for."""
    names = sorted(per_table, key=lambda name: (-per_table[name].ids, name))
    return Structure(unit, pruned_ids, form, {name: per_table[name] for name in names}) if names else None


def _read_kept(value: Any) -> Kept | None:
    ids, kept, dim = (whole(at(value, key)) for key in ("ids", "kept", "dim"))
    if ids is None or kept is None or dim is None or not (0 <= kept <= ids and ids > 0 and dim > 0):
        return None
    width = within(at(value, "width"), 0, dim) if kept else 0.0  # no row has no width
    cells = within(at(value, "cells"), 0, 1)
    if width is None or (cells is None and at(value, "cells") is not None):
        return None
    return Kept(ids, kept, width, dim, cells)


def _read_stage(value: Any, name: str) -> Stage:
    steps, evaluated = _count(at(value, "training", "steps")), _count(at(value, "evaluated"))
    best_auc = at(value, "best") if at(value, "valid") is None else at(value, "valid", "auc")
    return Stage(
        name=name,
        seconds=within(at(value, "seconds"), 0, LONGEST_STAGE),
        steps=steps,
        best_step=_count(at(value, "training", "best_step"), steps),
        evaluated=evaluated,
        rounds=_count(at(value, "rounds")),
        best_after=_count(_best_after(at(value, "history")), evaluated),
        valid_auc=within(best_auc, 0, 1),
    )


def _best_after(history: Any) -> int | None:
    """Say how many evaluations a search had made when it first reached its best."""
    best, after = -1.0, None
    for entry in history if isinstance(history, list) else ():
        count, auc = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
        auc = within(auc, 0, 1)
        if auc is not None and auc > best:
            best, after = auc, _count(count)
    return after


def _count(value: Any, most: int | None = HIGHEST_INTEGER) -> int | None:
    """Take a count of at most `most`; None where that is not known."""
    count = whole(value)
    return count if count is not None and most is not None and 0 <= count <= most else None


def _mean_kept(same: Sequence[Kept]) -> Kept:
    ids, kept, dim = (fmean(getattr(each, field) for each in same) for field in ("ids", "kept", "dim"))
    width = _mean([each.width for each in same if each.kept])  # a run that keeps no row has no width
    return Kept(ids, kept, width or 0.0, dim, _mean([each.cells for each in same]))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
