"""Sorts runs into sections (what may be compared), points (runs that differ in the seed alone) and series (lines)."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from itertools import combinations
from pathlib import PurePath
from typing import Any, TypeVar

from recemb.record import FREE_TO_CHANGE
from recemb.report.analysis import FULL, Analysis
from recemb.report.records import LeftOut, Run, Scores
from recemb.report.statistics import Difference, Spread, difference, pareto_front, spread

NARROWER = "full, narrower"
BASELINES = (FULL, NARROWER, "frequency", "hashing")  # in the order legends and tables name them

_RANGES = ("tune.lr", "tune.table_lr")  # of one value they go without saying: the number of trials tells lines apart
_CIRCUMSTANCES = {"seed", "budget", "overwrite", "resume", "plan"}  # a plan's table and precision are in the config
_FREE_TO_CHANGE = {f"trainer.{name}" for name in FREE_TO_CHANGE}
_PATH_KEYS = {"out", "output", "folder", "path", "root", "dir", "directory"}
_PATH_ENDINGS = tuple(f"_{key}" for key in _PATH_KEYS)
Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point of a chart: runs that share all but the seed.

    `method` is the series' name without variant; "full" with fewer bytes than the full table is "full, narrower", or
    "full, int8" where its rows are held in fewer bits.
    `variant` names the options that set this series apart from another of the same method, and is mostly empty.
    """

    anchor: str
    method: str
    setting: str
    variant: str
    runs: tuple[Run, ...]
    options: Mapping[str, str]
    differing: Mapping[str, str]

    @property
    def series(self) -> str:
        """The name of the line that this point is on."""
        return f"{self.method} ({self.variant})" if self.variant else self.method

    @property
    def label(self) -> str:
        """The name of this point among all points of its section."""
        return f"{self.series} {self.setting}".strip()

    @cached_property
    def auc(self) -> Spread:
        """Test AUC over seeds."""
        return spread([run.test.auc for run in self.runs])

    @cached_property
    def logloss(self) -> Spread:
        """Test logloss over seeds."""
        return spread([run.test.logloss for run in self.runs])

    @cached_property
    def bytes_serving(self) -> Spread:
        """Serving bytes over seeds: equal, but for methods that learn what to keep."""
        return spread([run.bytes_serving for run in self.runs])

    @cached_property
    def kept(self) -> float | None:
        """Mean part of the full tables' bytes that is served."""
        kept = [run.kept for run in self.runs if run.kept is not None]
        return spread(kept).mean if kept else None

    def mean_bytes(self, kind: str) -> dict[str, int]:
        """Average a byte breakdown over seeds; `kind` is "parts", "per_table" or "other_bytes"."""
        names = dict.fromkeys(name for run in self.runs for name in getattr(run, kind))
        return {name: round(spread([getattr(run, kind).get(name, 0) for run in self.runs]).mean) for name in names}


@dataclass(frozen=True, kw_only=True)
class Section:
    """Points that may stand in one chart: the same prepared data, the same protocol, the same backbone.

    `analysis` is what the points amount to, empty until somebody works it out.
    """

    anchor: str
    points: tuple[Point, ...]
    ceiling: Scores | None
    front_auc: frozenset[str] = field(default_factory=frozenset)
    front_logloss: frozenset[str] = field(default_factory=frozenset)
    analysis: Analysis = field(default_factory=Analysis)

    @property
    def first(self) -> Run:
        """Any run: what the section shares can be read from it."""
        return self.points[0].runs[0]

    @property
    def name(self) -> str:
        """Data set and backbone, as a heading."""
        return f"{self.first.dataset} · {self.first.model}"

    @property
    def circumstances(self) -> str:
        """Protocol and rows, as the line below a heading."""
        rows = [
            f"{self.first.rows[split]:,} {split}" for split in ("train", "valid", "test") if split in self.first.rows
        ]
        return f"{self.first.protocol or 'unknown protocol'} · {' / '.join(rows) or 'unknown'} rows"

    def front(self, metric: str) -> frozenset[str]:
        """Anchors of the points on the Pareto front of "auc" or "logloss" against serving bytes."""
        return self.front_auc if metric == "auc" else self.front_logloss

    @cached_property
    def full(self) -> Point | None:
        """The full table; of several, the one that did best on the validation rows."""
        return _best_on_validation([point for point in self.points if point.method == FULL])

    def reference(self, point: Point) -> Point | None:
        """The full table that was trained as `point` was, or else the section's."""
        training = _training_options(point.options)
        same = [p for p in self.points if p.method == FULL and _training_options(p.options) == training]
        return _best_on_validation(same) or self.full

    def to_baseline(self, point: Point, metric: str) -> Difference | None:
        """Difference of `point` to its baseline in "auc" or "logloss", paired by seed where seeds match."""
        baseline = self.analysis.against.get(point.anchor)
        if baseline is None:
            return None
        return difference(
            {run.seed: getattr(run.test, metric) for run in point.runs},
            {run.seed: getattr(run.test, metric) for run in baseline.runs},
        )


def group(runs: Sequence[Run]) -> tuple[list[Section], list[LeftOut]]:
    """Group completed runs; of two runs with the same config and seed the one started last counts.

    Returns:
        The sections, the largest first, and the runs that a later one replaces.
    """
    sections, replaced = [], []
    for members in _by(runs, comparable).values():
        groups = []
        for same in _by(members, point_key).values():
            latest, older = _latest_per_seed(same)
            groups.append(latest)
            replaced.extend(older)
        sections.append(groups)
    sections.sort(key=lambda groups: (-sum(map(len, groups)), str(comparable(groups[0][0]))))
    return [_section(groups, number) for number, groups in enumerate(sections, start=1)], sorted(replaced)


def options_of_run(config: Mapping[str, Any]) -> dict[str, str]:
    """Flatten a nested config to dotted names and texts, without what says where, how or which time a run was.

    That is seeds, budgets, places on a disk, and what a run may be resumed with others of. The options of the data set
    are not among them either: its fingerprint says what they came to.

    Example:
        >>> options_of_run({"seed": 3, "table": {"width": 8}, "data_dir": "/somewhere"})
        {'table.width': '8'}
    """
    found: dict[str, str] = {}

    def visit(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key in sorted(value):
                visit(f"{prefix}.{key}" if prefix else key, value[key])
        elif not _is_circumstance(prefix, value):
            found[prefix] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)

    visit("", {key: value for key, value in config.items() if key != "dataset"})
    found.pop("", None)
    return found


def _is_circumstance(name: str, value: Any) -> bool:
    """Whether an option, by its dotted name, says where, how or which time a run was, not what it was."""
    key = name.rpartition(".")[2]
    if name in _FREE_TO_CHANGE or key in _CIRCUMSTANCES | _PATH_KEYS or key.endswith(_PATH_ENDINGS):
        return True
    return isinstance(value, str) and (value.startswith("~/") or PurePath(value).is_absolute())


def _section(groups: list[list[Run]], number: int) -> Section:
    groups = sorted(groups, key=_reading_order)
    options = [options_of_run(runs[0].config) for runs in groups]
    asked = [options_of_run(runs[0].asked) for runs in groups]
    varying = _varying(options)
    telling = {method: _telling(same) for method, same in _by(groups, lambda runs: _method(runs[0])).items()}
    points = []
    for index, runs in enumerate(groups):
        method = _method(runs[0])
        apart, sizes, usual = telling[method]
        points.append(
            Point(
                anchor=f"point-{number}-{index + 1}",
                method=method,
                setting=runs[0].budget or _phrase(asked[index], sizes),
                variant=_phrase(asked[index], {name for name in apart if usual.get(name) != asked[index].get(name)}),
                runs=tuple(runs),
                options=options[index],
                differing={name: text for name, text in options[index].items() if name in varying},
            )
        )
    sizes_of_points = [point.bytes_serving.mean for point in points]
    on_auc = pareto_front(sizes_of_points, [point.auc.mean for point in points])
    on_logloss = pareto_front(sizes_of_points, [-point.logloss.mean for point in points])
    return Section(
        anchor=f"section-{number}",
        points=tuple(points),
        ceiling=next((run.ceiling for runs in groups for run in runs if run.ceiling), None),
        front_auc=frozenset(point.anchor for point, on in zip(points, on_auc, strict=True) if on),
        front_logloss=frozenset(point.anchor for point, on in zip(points, on_logloss, strict=True) if on),
    )


def _telling(groups: Sequence[Sequence[Run]]) -> tuple[set[str], set[str], dict[str, str | None]]:
    """Sort the options that vary among the points of one method into those that set lines apart, and sizes.

    Where there are three lines or more, the third result is what is usual among them, which need not be said.

    Whatever is not of the table sets lines apart. An option of the table does so only where it differs between
    tables of one size: else it may be what makes the size. What a budget made of the options does not count.
    """
    options = [options_of_run(runs[0].asked) for runs in groups]
    unsaid = {name for name in _RANGES if len({one[name] for one in options if name in one}) == 1}
    varying = _varying(options) - unsaid
    apart = {name for name in varying if not name.startswith("table.")}
    for (runs, one), (others, other) in combinations(zip(groups, options, strict=True), 2):
        if _same_size(runs[0], others[0]):
            apart |= _varying([one, other]) - unsaid
    lines = list(dict.fromkeys(tuple(each.get(name) for name in sorted(apart)) for each in options))
    usual = {}
    if len(lines) > 2:
        for name, values in zip(sorted(apart), zip(*lines, strict=True), strict=True):
            usual[name] = Counter(values).most_common(1)[0][0]
    return apart, varying - apart, usual


def comparable(run: Run) -> tuple[Any, ...]:
    """Say what runs must share to stand in one section."""
    # The test rows are named beside the fingerprint: a run on a part of them must not share a chart with the rest.
    data = run.fingerprint or json.dumps(run.config.get("dataset"), sort_keys=True)
    return (run.dataset, run.model, run.protocol, run.min_count, data, run.rows.get("test"))


def point_key(run: Run) -> tuple[Any, ...]:
    """Say what runs of one section must share to be one point: all but the seed."""
    options = tuple(options_of_run(run.asked).items())
    return (run.method, run.budget, options or run.bytes_serving)  # without a config only the size tells runs apart


def _method(run: Run) -> str:
    if run.method != FULL or (run.kept or 1.0) >= 1.0:
        return run.method
    precision = run.config.get("precision", "fp32")
    return NARROWER if precision == "fp32" else f"{FULL}, {precision}"


def _same_size(one: Run, other: Run) -> bool:
    return one.bytes_serving == other.bytes_serving or bool(one.budget and one.budget == other.budget)


def _reading_order(runs: Sequence[Run]) -> tuple[Any, ...]:
    method = _method(runs[0])
    rank = BASELINES.index(method) if method in BASELINES else len(BASELINES)
    return (rank, method, -runs[0].bytes_serving, runs[0].budget, str(point_key(runs[0])))


def _training_options(options: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in options.items() if not name.startswith("table.")}


def _best_on_validation(points: Sequence[Point]) -> Point | None:
    def score(point: Point) -> tuple[float, float, float]:
        """Score by the mean AUC; by logloss where the validation rows, which are those of all points, have no AUC."""
        valid = [run.valid for run in point.runs if run.valid]
        aucs = [scores.auc for scores in valid if scores.auc is not None]
        return (
            spread(aucs).mean if aucs else -math.inf,
            -spread([scores.logloss for scores in valid]).mean if valid else -math.inf,
            point.auc.mean,
        )

    return max(points, key=score, default=None)


def _latest_per_seed(runs: Iterable[Run]) -> tuple[list[Run], list[LeftOut]]:
    latest, older = [], []
    for same in _by(runs, lambda run: run.seed).values():
        *earlier, last = sorted(same, key=lambda run: (_moment(run.started), run.name))
        latest.append(last)
        older += [LeftOut(run.name, f"run again with the same config and seed as {last.name}") for run in earlier]
    return sorted(latest, key=lambda run: run.seed), older


def _moment(started: str) -> datetime:
    try:
        moment = datetime.fromisoformat(started)
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _varying(options: Sequence[Mapping[str, str]]) -> set[str]:
    names = {name for each in options for name in each}
    return {name for name in names if len({each.get(name) for each in options}) > 1}


def _phrase(options: Mapping[str, str], names: set[str]) -> str:
    """Write options as "width=8, combine=add", without the group of a name where that is clear."""
    short = [name.partition(".")[2] or name for name in names]
    return ", ".join(
        f"{name if short.count(last) > 1 else last}={options[name]}"
        for name in sorted(names)
        if (last := name.partition(".")[2] or name) and name in options
    )


def _by(items: Iterable[Item], key: Callable[[Item], Hashable]) -> dict[Hashable, list[Item]]:
    found: dict[Hashable, list[Item]] = defaultdict(list)
    for item in items:
        found[key(item)].append(item)
    return found
