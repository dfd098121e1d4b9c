"""The report's table as Markdown, for a results page, an issue or a pull request."""

from collections.abc import Sequence

from recemb.budget import format_bytes
from recemb.report import words
from recemb.report.grouping import Point, Section
from recemb.report.statistics import spread

_COLUMNS = (
    "method", "asked for", "table bytes", "kept", "smaller", "test AUC", "AUC to full", "test logloss",
    "validation AUC", "validation logloss", "seeds",
)  # fmt: skip


def as_markdown(sections: Sequence[Section]) -> str:
    """Write one heading, the findings and one table for each section."""
    return "\n".join(line for section in sections for line in _section(section))


def _section(section: Section) -> list[str]:
    lines = [f"## {_safe(section.name)}", "", f"{_safe(section.circumstances)}.", ""]
    lines += [_safe(sentence) for sentence in words.findings(section)]
    lines += ["", f"| {' | '.join(_COLUMNS)} |", "|---" * 2 + "|--:" * (len(_COLUMNS) - 2) + "|"]
    lines += [f"| {' | '.join(_safe(cell) for cell in _cells(section, point))} |" for point in section.points]
    return [*lines, ""]


def _cells(section: Section, point: Point) -> list[str]:
    valid = [run.valid for run in point.runs if run.valid is not None]
    return [
        point.series,
        point.setting or words.NONE,
        format_bytes(point.bytes_serving.mean),
        words.kept_share(point.kept),
        words.times_smaller(point.kept),
        words.with_spread(point.auc),
        words.with_sign(section.to_full(point, "auc")),
        words.with_spread(point.logloss),
        words.with_spread(spread([one.auc for one in valid])) if valid else words.NONE,
        words.with_spread(spread([one.logloss for one in valid])) if valid else words.NONE,
        str(len(point.runs)),
    ]


def _safe(text: str) -> str:
    """Keep a record's text from ending a cell or starting a tag."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
