"""Writes a report: reads the records, groups them, and puts page, pictures and tables into one folder."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recemb.options import RecembError
from recemb.report import words
from recemb.report.charts import picture
from recemb.report.grouping import Section, group
from recemb.report.markdown import as_markdown
from recemb.report.page import render_page
from recemb.report.records import LeftOut, Record, Run, check, find_records
from recemb.report.results import as_csv, as_parquet, results_frame
from recemb.report.styles import styles_for


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a report was made of, and where it is.

    Attributes:
        html: the page.
        csv: one row per run.
        parquet: the same rows.
        markdown: one row per point.
        pictures: AUC against bytes as PNG and SVG, for every pairing of data set and backbone.
        runs: how many records were found.
        points: how many points the charts hold.
        left_out: runs that are in no chart, with reasons.
        summary: the report in a few sentences.
    """

    html: Path
    csv: Path
    parquet: Path
    markdown: Path
    pictures: tuple[Path, ...]
    runs: int
    points: int
    left_out: tuple[LeftOut, ...]
    summary: tuple[str, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """Everything that was written."""
        return (self.html, self.csv, self.parquet, self.markdown, *self.pictures)


def write_report(run_dirs: Sequence[Path], out: Path, title: str | None = None) -> Report:
    """Gather the records under some folders into a page, pictures and tables.

    Nothing is written before all of it is made, and every file appears whole or not at all.

    Args:
        run_dirs: folders that hold run folders at any depth.
        out: folder to write to; made where it is missing.
        title: heading of the page.

    Raises:
        RecembError: a folder is missing, no run is completed, or `out` cannot be written.
    """
    records = find_records([Path(folder) for folder in run_dirs])
    checked = [check(record) for record in records]
    sections, replaced = group([run for run in checked if isinstance(run, Run)])
    left_out = sorted([*(each for each in checked if isinstance(each, LeftOut)), *replaced])
    if not sections:
        raise RecembError(_nothing_to_show(records, left_out))
    styles = styles_for(sections)
    frame = results_frame(records, dict(left_out))
    contents = {
        "report.html": render_page(sections, left_out, styles, title).encode(),
        "results.csv": as_csv(frame),
        "results.parquet": as_parquet(frame),
        "results.md": as_markdown(sections).encode(),
    }
    for section, name in zip(sections, _picture_names(sections), strict=True):
        contents[f"{name}.png"], contents[f"{name}.svg"] = picture(section, styles)
    _write(Path(out), contents)
    html, csv, parquet, markdown, *pictures = (Path(out) / name for name in contents)
    return Report(
        html=html,
        csv=csv,
        parquet=parquet,
        markdown=markdown,
        pictures=tuple(pictures),
        runs=len(records),
        points=sum(len(section.points) for section in sections),
        left_out=tuple(left_out),
        summary=(words.overview(sections, left_out), *_findings(sections)),
    )


def _findings(sections: Sequence[Section]) -> list[str]:
    return [
        f"{section.name}, {section.circumstances}: {sentence}" if len(sections) > 1 else sentence
        for section in sections
        for sentence in words.findings(section)
    ]


def _nothing_to_show(records: Sequence[Record], left_out: Sequence[LeftOut]) -> str:
    first = left_out[0]
    counts: dict[str, int] = {}
    for record in records:
        counts[record.status] = counts.get(record.status, 0) + 1
    found = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    return (
        f"none of the {words.plural(len(records), 'record')} found can be shown ({found}); "
        f"the first, {first.run}: {first.reason}; finish at least one run"
    )


def _picture_names(sections: Sequence[Section]) -> list[str]:
    """Name the largest section's picture "tradeoff", and the others after their data set and backbone."""
    names = ["tradeoff"]
    for section in sections[1:]:
        slug = re.sub(r"[^a-z0-9]+", "-", section.name.lower()).strip("-")[:60]
        name = f"tradeoff-{slug}" if slug else "tradeoff"
        names.append(name if name not in names else f"{name}-{len(names) + 1}")
    return names


def _write(folder: Path, contents: dict[str, bytes]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            unfinished = folder / f".{name}.{os.getpid()}"
            try:
                unfinished.write_bytes(content)
                unfinished.replace(folder / name)
            finally:
                unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise RecembError(f"cannot write the report to {folder}: {error.strerror}; choose another folder") from error
