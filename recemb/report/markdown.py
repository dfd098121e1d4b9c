"""The report's table as Markdown, for a results page, an issue or a pull request."""

from collections.abc import Sequence

from recemb.budget import format_bytes
from recemb.report import words
from recemb.report.findings import findings
from recemb.report.grouping import FULL, Point, Section
from recemb.report.statistics import spread

_COLUMNS = (
    "method", "asked for", "table bytes", "kept", "smaller", "test AUC", "AUC to full", "test logloss",
    "validation AUC", "validation logloss", "calibration error", "calibration ratio", "seeds",
)  # fmt: skip


def as_markdown(sections: Sequence[Section]) -> str:
    """Write one heading, the findings and one table for each section."""
    return "\n".join(line for section in sections for line in _section(section))


def _section(section: Section) -> list[str]:
    lines = [f"## {_safe(section.name)}", "", f"{_safe(section.circumstances)}.", ""]
    lines += [_safe(sentence) for sentence in findings(section)]
    lines += [f"In brackets: 95 % intervals, {words.INTERVALS}.", ""]
    columns = [name.replace("to full", f"to {_safe(section.analysis.baseline or FULL)}") for name in _COLUMNS]
    lines += [f"| {' | '.join(columns)} |", "|---" * 2 + "|--:" * (len(_COLUMNS) - 2) + "|"]
    lines += [f"| {' | '.join(_safe(cell) for cell in _cells(section, point))} |" for point in section.points]
    return [*lines, ""]


def _cells(section: Section, point: Point) -> list[str]:
    compared = section.analysis.differences.get((point.anchor, "auc"))
    calibration = section.analysis.calibration.get(point.anchor)
    valid = [run.valid for run in point.runs if run.valid is not None]
    aucs = [scores.auc for scores in valid if scores.auc is not None]
    return [
        point.series,
        point.setting or words.NONE,
        format_bytes(point.bytes_serving.mean),
        words.kept_share(point.kept),
        words.times_smaller(point.kept),
        f"{words.with_spread(point.auc)} {words.interval(point.auc.interval)}".strip(),
        f"{words.with_sign(section.to_baseline(point, 'auc'))} {words.interval(compared, signed=True)}".strip(),
        f"{words.with_spread(point.logloss)} {words.interval(point.logloss.interval)}".strip(),
        words.with_spread(spread(aucs)) if aucs else words.NONE,
        words.with_spread(spread([scores.logloss for scores in valid])) if valid else words.NONE,
        words.score(calibration.error if calibration else None),
        f"{calibration.ratio:.3f}" if calibration else words.NONE,
        str(len(point.runs)),
    ]


def _safe(text: str) -> str:
    """Keep a record's text from ending a cell or starting a tag."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
