"""The runs as one flat table: a row for every `run.json` found, whatever became of it, and what its point came to."""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from recemb.report.analysis import METRICS
from recemb.report.grouping import Point, Section
from recemb.report.predictions import Scored
from recemb.report.records import Record
from recemb.report.structure import read_stages, read_structure
from recemb.report.values import whole

# Column, its pandas type, and where in a record it stands, nowhere where it is computed. The order and the names are
# the file's interface.
_PLACES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("dataset", "string", ("dataset",)),
    ("protocol", "string", ("data", "protocol")),
    ("min_count", "Int64", ("data", "min_count")),
    ("model", "string", ("model",)),
    ("method", "string", ("method",)),
    ("budget", "string", ("budget",)),
    ("kept", "Float64", ("kept",)),
    ("times_smaller", "Float64", ()),
    ("ids_kept", "Float64", ()),
    ("seed", "Int64", ("seed",)),
    *(
        (f"{split}_{metric}", "Float64", ("metrics", split, metric))
        for split in ("test", "valid")
        for metric in ("auc", "logloss", "ne")
    ),
    ("ceiling_auc", "Float64", ("data", "ceiling", "test", "auc")),
    ("ceiling_logloss", "Float64", ("data", "ceiling", "test", "logloss")),
    *(
        (f"bytes_{name}", "Int64", ("bytes", name))
        for name in ("tables_full", "tables_serving", "tables_training", "optimizer", "dense")
    ),
    ("bytes_parts", "json", ("bytes", "parts")),
    ("bytes_per_table", "json", ("bytes", "per_table")),
    *((f"rows_{split}", "Int64", ("data", "rows", split)) for split in ("train", "valid", "test")),
    ("positive_rate_test", "Float64", ("data", "positive_rate", "test")),
    ("epochs", "Float64", ("training", "epochs")),
    ("steps", "Int64", ("training", "steps")),
    ("best_step", "Int64", ("training", "best_step")),
    ("stopped", "string", ("training", "stopped")),
    ("seconds", "Float64", ("seconds",)),
    ("search_evaluations", "Int64", ()),
    ("trials", "Int64", ("tuning", "trials")),
    ("tuned_lr", "Float64", ("tuning", "best", "lr")),
    ("tuned_table_lr", "Float64", ("tuning", "best", "table_lr")),
    ("train_rows_per_second", "Float64", ("throughput", "train_rows_per_second")),
    ("started", "string", ("started",)),
    ("command", "string", ("command",)),
    ("fingerprint", "string", ("dataset_fingerprint",)),
    ("versions", "json", ("versions",)),
    ("config", "json", ("config",)),
)
# Of the point that a run belongs to, the same in all its runs, but for the two of calibration, which are the run's own.
_OF_POINT = {
    "point": "string",
    "baseline": "string",
    **{
        f"{metric}{part}": "Float64"
        for metric in METRICS
        for part in ("_mean", "_mean_low", "_mean_high", "_to_baseline", "_to_baseline_low", "_to_baseline_high")
    },
    "hypervolume": "Float64",
    "bytes_to_reach": "string",
    "expected_calibration_error": "Float64",
    "calibration_ratio": "Float64",
    "no_interval": "string",
}
COLUMNS = ("run", "status", "left_out", *(name for name, _, _ in _PLACES), *_OF_POINT)


def results_frame(
    records: Sequence[Record], left_out: Mapping[str, str], of_points: Mapping[str, Mapping[str, Any]]
) -> pd.DataFrame:
    """Flatten records to a frame with the columns `COLUMNS`, in the order of the records.

    Args:
        records: every record found.
        left_out: run name to the reason why it is not in the charts.
        of_points: run name to what `point_columns` knows of it.
    """
    rows = [
        _row(record, left_out.get(record.name)) | dict.fromkeys(_OF_POINT) | dict(of_points.get(record.name, {}))
        for record in records
    ]
    kinds = {"run": "string", "status": "string", "left_out": "string"}
    kinds |= {name: "string" if kind == "json" else kind for name, kind, _ in _PLACES} | _OF_POINT
    return pd.DataFrame({name: pd.array([row[name] for row in rows], dtype=kind) for name, kind in kinds.items()})


def point_columns(sections: Sequence[Section], scored: Mapping[str, Scored | str]) -> dict[str, dict[str, Any]]:
    """Give the columns that come from a run's point and from its predictions, by run name."""
    found = {}
    for section in sections:
        for point in section.points:
            shared = _of_point(section, point)
            for run in point.runs:
                own = scored.get(run.name)
                found[run.name] = shared | (
                    {
                        "expected_calibration_error": own.calibration.error,
                        "calibration_ratio": own.calibration.ratio,
                    }
                    if isinstance(own, Scored)
                    else {"no_interval": own}
                )
    return found


def _of_point(section: Section, point: Point) -> dict[str, Any]:
    analysis = section.analysis
    baseline = analysis.against.get(point.anchor)
    row: dict[str, Any] = {"point": point.label, "baseline": baseline.label if baseline else None}
    for metric in METRICS:
        spread, by_seed = getattr(point, metric), section.to_baseline(point, metric)
        compared = analysis.differences.get((point.anchor, metric))
        low, high = spread.interval or (None, None)
        row |= {f"{metric}_mean": spread.mean, f"{metric}_mean_low": low, f"{metric}_mean_high": high}
        row[f"{metric}_to_baseline"] = by_seed.mean if by_seed else None
        row[f"{metric}_to_baseline_low"] = compared.low if compared else None
        row[f"{metric}_to_baseline_high"] = compared.high if compared else None
    row["hypervolume"] = analysis.hypervolume.get(point.series)
    reached = {target.name: target.reached[point.series] for target in analysis.targets}
    row["bytes_to_reach"] = json.dumps(
        {name: None if size is None else round(size.bytes) for name, size in reached.items()}, ensure_ascii=False
    )
    return row


def as_csv(frame: pd.DataFrame) -> bytes:
    """Write a frame as CSV."""
    return frame.to_csv(index=False, lineterminator="\n").encode()


def as_parquet(frame: pd.DataFrame) -> bytes:
    """Write a frame as Parquet."""
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()


def _row(record: Record, left_out: str | None) -> dict[str, Any]:
    row: dict[str, Any] = {"run": record.name, "status": record.status, "left_out": left_out}
    for name, kind, place in _PLACES:
        row[name] = _cell(record, kind, place)
    kept = row["kept"]
    row["times_smaller"] = 1 / kept if kept and kept > 0 else None
    structure = read_structure(record.value("structure"))
    row["ids_kept"] = structure.share if structure else None
    evaluated = [stage.evaluated for stage in read_stages(record.value("stages")) if stage.evaluated is not None]
    row["search_evaluations"] = whole(sum(evaluated)) if evaluated else None
    return row


def _cell(record: Record, kind: str, place: tuple[str, ...]) -> Any:
    if not place:
        return None
    if kind == "string":
        return record.text(*place) or None
    if kind == "json":
        value = record.value(*place)
        return None if value is None else json.dumps(value, sort_keys=True, ensure_ascii=False)
    return record.whole(*place) if kind == "Int64" else record.number(*place)
