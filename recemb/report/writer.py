"""Writes a report: reads the records, groups them, and puts page, pictures and tables into one folder."""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from recemb.options import RecembError
from recemb.report import changes, words
from recemb.report.analysis import analyse, baselines, names_of_baselines
from recemb.report.changes import Change
from recemb.report.charts import picture
from recemb.report.findings import findings
from recemb.report.grouping import Section, group
from recemb.report.markdown import as_markdown
from recemb.report.page import render_page
from recemb.report.predictions import Scored, score_runs
from recemb.report.records import LeftOut, Record, Run, check, find_records
from recemb.report.results import as_csv, as_parquet, point_columns, results_frame
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
        changes: one row per point of two folders that were compared; None where there was one folder only.
        runs: how many records were found.
        points: how many points the charts hold.
        left_out: runs that are in no chart, with reasons.
        summary: the report in a few sentences.
        changed: what changed from an earlier folder, in sentences; they are in the summary too.
    """

    html: Path
    csv: Path
    parquet: Path
    markdown: Path
    pictures: tuple[Path, ...]
    changes: Path | None
    runs: int
    points: int
    left_out: tuple[LeftOut, ...]
    summary: tuple[str, ...]
    changed: tuple[str, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """Everything that was written."""
        changes = (self.changes,) if self.changes else ()
        return (self.html, self.csv, self.parquet, self.markdown, *self.pictures, *changes)


def write_report(
    run_dirs: Sequence[Path],
    out: Path,
    title: str | None = None,
    *,
    baseline: str | None = None,
    targets: Sequence[float] = (),
    before: Sequence[Path] = (),
) -> Report:
    """Gather the records under some folders into a page, pictures and tables.

    Nothing is written before all of it is made, and every file appears whole or not at all.

    Args:
        run_dirs: folders that hold run folders at any depth.
        out: folder to write to; made where it is missing.
        title: heading of the page.
        baseline: what every point is compared with: "full", a point's label ("hashing 1/16"), or a series or method
            ("hashing"), whose table of the same budget is meant; the full table when not given.
        targets: test AUCs for which the fewest bytes are looked up; some below the full table when not given.
        before: folders of runs that those of `run_dirs` are compared with, point by point.

    Raises:
        RecembError: a folder is missing, no run is completed, nothing is called `baseline`, a target is no AUC, or
            `out` cannot be written.
    """
    if wrong := [target for target in targets if not 0 < target < 1]:
        raise RecembError(f"a target of {wrong[0]:g} is no AUC; give a number between 0 and 1, such as 0.75")
    records, sections, left_out = _gather(run_dirs)
    _check_baseline(sections, baseline)
    scored = _score(sections)
    sections = [replace(each, analysis=analyse(each, scored, baseline, targets)) for each in sections]
    found = _changes(before, sections, scored)
    changed = tuple(changes.summary(found)) if found else ()
    names = _picture_names(sections)
    frame = results_frame(records, dict(left_out), point_columns(sections, scored))
    contents = {
        "report.html": render_page(sections, left_out, styles_for(sections), title, found, Path(out)).encode(),
        "results.csv": as_csv(frame),
        "results.parquet": as_parquet(frame),
        "results.md": as_markdown(sections).encode(),
        **({"changes.csv": changes.as_csv(found)} if found else {}),
        **_pictures(sections, names),
    }
    out = Path(out)
    _write(out, contents)
    return Report(
        html=out / "report.html",
        csv=out / "results.csv",
        parquet=out / "results.parquet",
        markdown=out / "results.md",
        pictures=tuple(out / f"{name}.{kind}" for name in names for kind in ("png", "svg")),
        changes=out / "changes.csv" if found else None,
        runs=len(records),
        points=sum(len(section.points) for section in sections),
        left_out=tuple(left_out),
        summary=(words.overview(sections, left_out), *changed, *_findings(sections)),
        changed=changed,
    )


def _pictures(sections: Sequence[Section], names: Sequence[str]) -> dict[str, bytes]:
    styles = styles_for(sections)
    made = {}
    for section, name in zip(sections, names, strict=True):
        made[f"{name}.png"], made[f"{name}.svg"] = picture(section, styles)
    return made


def _gather(run_dirs: Sequence[Path]) -> tuple[list[Record], list[Section], list[LeftOut]]:
    records = find_records([Path(folder) for folder in run_dirs])
    checked = [check(record) for record in records]
    sections, replaced = group([run for run in checked if isinstance(run, Run)])
    left_out = sorted([*(each for each in checked if isinstance(each, LeftOut)), *replaced])
    if not sections:
        raise RecembError(_nothing_to_show(records, left_out))
    return records, sections, left_out


def _changes(before: Sequence[Path], after: Sequence[Section], scored: Mapping[str, Scored | str]) -> list[Change]:
    if not before:
        return []
    _, earlier, _ = _gather(before)
    return changes.changes(earlier, after, _score(earlier), scored)


def _score(sections: Sequence[Section]) -> dict[str, Scored | str]:
    """Score the runs of every section by itself: labels are alike within one."""
    scored: dict[str, Scored | str] = {}
    for section in sections:
        scored |= score_runs(run for point in section.points for run in point.runs)
    return scored


def _check_baseline(sections: Sequence[Section], baseline: str | None) -> None:
    if baseline is None or any(baselines(section, baseline) for section in sections):
        return
    known = names_of_baselines(sections)
    listed = ", ".join(known[:30]) + (" …" if len(known) > 30 else "")
    raise RecembError(f"no table here can be compared with --baseline {baseline!r}; choose one of: {listed}")


def _findings(sections: Sequence[Section]) -> list[str]:
    return [
        f"{section.name}, {section.circumstances}: {sentence}" if len(sections) > 1 else sentence
        for section in sections
        for sentence in findings(section)
    ]


def _nothing_to_show(records: Sequence[Record], left_out: Sequence[LeftOut]) -> str:
    counts = Counter(record.status for record in records)
    completed = {record.name for record in records if record.status == "completed"}
    first = min(left_out, key=lambda each: (each.run not in completed, each))
    advice = "mend what the completed ones were made from" if completed else "finish at least one run"
    found = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    return (
        f"none of the {words.plural(len(records), 'record')} found can be shown ({found}); "
        f"the first, {first.run}: {first.reason}; {advice}"
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
