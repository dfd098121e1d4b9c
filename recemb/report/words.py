"""Numbers as people read them, and the sentences that open a report."""

from collections.abc import Sequence

from recemb.budget import format_bytes
from recemb.report.analysis import Analysis
from recemb.report.bootstrap import Comparison
from recemb.report.grouping import Section
from recemb.report.hypervolume import Reached
from recemb.report.records import LeftOut
from recemb.report.statistics import Difference, Spread
from recemb.report.structure import Stage, Structure

NONE = "–"
INTERVALS = (
    "of a mean over seeds by Student's t, and of a difference by a bootstrap over test rows, paired, with Student's t "
    "for the seeds"
)


def times_smaller(kept: float | None) -> str:
    """Write a kept share as "16.0x smaller"."""
    if not kept:
        return NONE
    times = 1 / kept
    return f"{times:,.1f}x" if times < 999.95 else f"{times:,.0f}x"


def kept_share(kept: float | None) -> str:
    """Write a kept share: "0.0625"."""
    return NONE if kept is None else f"{kept:.4f}" if kept >= 0.001 else f"{kept:.2g}"


def score(value: float | None) -> str:
    """Write an AUC or a logloss: "0.7891"."""
    return NONE if value is None else f"{value:.4f}"


def percent(share: float | None) -> str:
    """Write a share as "12.3%", never as none or all where it is neither."""
    if share is None:
        return NONE
    if share in (0, 1):
        return f"{share:.0%}"
    if share < 0.0001:
        return "<0.01%"
    return ">99.9%" if share > 0.9995 else f"{share:.1%}" if share >= 0.01 else f"{share:.2%}"


def few_digits(value: float) -> str:
    """Write a count or a mean of counts: "1,460", "10.5", "16"."""
    if 0 < value < 0.05:
        return "<0.1"
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}".removesuffix(".0")


def aligned(column: Sequence[float | None]) -> list[str]:
    """Write the numbers of a column with as many decimals each: none where all are whole or one is large."""
    known = [value for value in column if value is not None]
    decimals = 0 if all(value == round(value) for value in known) or max(known) >= 100 else 1
    return [NONE if value is None else f"{value:,.{decimals}f}" for value in column]


def rounded(count: float) -> str:
    """Write a count in little room: "432", "4.7k", "905k", "1.5M"."""
    for unit in ("", "k", "M", "G", "T", "P"):
        if count < 999.5:
            return f"{count:.1f}{unit}" if unit and count < 9.95 else f"{count:.0f}{unit}"
        count /= 1000
    return f"{count:.0f}E"


def with_spread(value: Spread) -> str:
    """Write "0.7891 ± 0.0005", or the number alone for one seed."""
    return score(value.mean) if value.std is None else f"{score(value.mean)} ± {_deviation(value.std)}"


def with_sign(value: Difference | None) -> str:
    """Write a difference: "−0.0012 ± 0.0003"."""
    if value is None:
        return NONE
    rounded = round(value.mean, 4)
    sign = "−" if rounded < 0 else "+" if rounded > 0 else ""
    return f"{sign}{abs(rounded):.4f}" + ("" if value.std is None else f" ± {_deviation(value.std)}")


def interval(ends: Comparison | tuple[float, float] | None, signed: bool = False) -> str:
    """Write a 95 % interval: "[0.7880, 0.7902]", or "[−0.0018, +0.0002]"; nothing where there is none."""
    if ends is None:
        return ""
    low, high = (ends.low, ends.high) if isinstance(ends, Comparison) else ends
    write = (lambda end: with_sign(Difference(end, None, 0))) if signed else score
    return f"[{write(low)}, {write(high)}]"


def baseline_name(analysis: Analysis) -> str:
    """Name the baseline in a sentence: "the full table", "hashing 1/16", "frequency of the same size"."""
    if analysis.baseline == "full":
        return "the full table"
    one = len({point.anchor for point in analysis.against.values()}) == 1
    return f"{analysis.baseline}" if one else f"{analysis.baseline} of the same size"


def fineness(value: float) -> str:
    """Write a smallest difference with two digits that count: "0.0019", "0.00031"."""
    return f"{value:.4f}" if value >= 0.00095 else f"{value:.2g}"


def relative(ratio: float) -> str:
    """Write a ratio to what was before as "−12.5%", "+0.3%" or "same"."""
    change = ratio - 1
    if abs(change) < 0.00005:
        return "same"
    return ("−" if change < 0 else "+") + f"{abs(change):.{1 if abs(change) >= 0.001 else 2}%}"


def reached(found: Reached | None) -> str:
    """Write bytes at which a quality is reached: "231 KiB", "≤ 64 KiB" where the smallest table is as good."""
    if found is None:
        return "not reached"
    return ("≤ " if found.at_most else "") + format_bytes(round(found.bytes))


def _deviation(std: float) -> str:
    return "<0.0001" if 0 < std < 0.00005 else f"{std:.4f}"


def plural(count: int, noun: str) -> str:
    """Write "1 run", "1,200 runs"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def overview(sections: Sequence[Section], left_out: Sequence[LeftOut]) -> str:
    """Say in one sentence what the report is made of."""
    points = [point for section in sections for point in section.points]
    runs = sum(len(point.runs) for point in points)
    methods = len({point.runs[0].method for point in points})
    comparisons = "one data set and backbone"
    if len(sections) > 1:
        comparisons = f"{len(sections)} pairings of data set and backbone, which are not compared with each other"
    sentence = f"{plural(runs, 'completed run')} of {plural(methods, 'method')} on {comparisons}"
    if left_out:
        sentence += f"; {plural(len(left_out), 'more run')} {'is' if len(left_out) == 1 else 'are'} not in the charts"
    return f"{sentence}."


def what_was_kept(structure: Structure) -> str:
    """Say in a sentence how much pruning left of the tables."""
    parts = [f"{percent(structure.share)} of {few_digits(structure.ids)} ids keep a row"]
    if structure.cells is not None:
        parts.append(f", which cover {percent(structure.cells)} of a feature's training cells on average")
    with_rows = [kept for kept in structure.per_table.values() if kept.kept]
    if with_rows:
        dims = _range([kept.dim for kept in with_rows])
        whole = all(kept.width == kept.dim for kept in with_rows)
        parts.append(
            f"; rows keep {'all' if whole else _range([kept.width for kept in with_rows]) + ' of'} {dims} floats"
        )
    return "".join(parts) + "."


def how_it_was_pruned(structure: Structure, runs: int) -> str:
    """Say in short sentences what was removed, what takes its place, and over how many runs the means are."""
    lines = [
        _PRUNING.get(structure.unit),
        _PRUNED_IDS.get(structure.pruned_ids),
        f"Map from ids to rows: {structure.map}" if structure.map else None,
        f"Means over {runs} seeds" if runs > 1 else "One seed",
    ]
    return " ".join(f"{line}." for line in lines if line)


_PRUNING = {"row": "Whole rows and columns were removed", "entry": "Single entries were removed"}
_PRUNED_IDS = {
    "zero": "Pruned ids read the zero vector",
    "shared": "Pruned ids share the row of unknown values",
}


def what_a_stage_did(stage: Stage) -> str:
    """Say what a stage came to: "best at step 700 of 782, validation AUC 0.7660", "612 candidates in 30 rounds"."""
    parts = []
    if stage.best_step is not None:
        parts.append(f"best at step {stage.best_step:,.0f} of {stage.steps:,.0f}")
    elif stage.steps is not None:
        parts.append(plural(round(stage.steps), "step"))
    if stage.evaluated is not None:
        rounds = "" if stage.rounds is None else f" in {plural(round(stage.rounds), 'round')}"
        parts.append(f"{plural(round(stage.evaluated), 'candidate')}{rounds}")
    if stage.best_after is not None:
        parts.append(f"the best found after {stage.best_after:,.0f}")
    if stage.valid_auc is not None:
        parts.append(f"validation AUC {score(stage.valid_auc)}")
    return ", ".join(parts) or NONE


def _range(values: Sequence[float]) -> str:
    low, high = few_digits(min(values)), few_digits(max(values))
    return low if low == high else f"{low} to {high}"


def seeds(value: Spread) -> str:
    """Write over how many seeds a mean was taken."""
    return "one seed" if value.n == 1 else f"{value.n} seeds"
