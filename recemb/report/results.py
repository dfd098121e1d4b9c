"""The runs as one flat table: a row for every `run.json` found, whatever became of it."""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

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
    ("train_rows_per_second", "Float64", ("throughput", "train_rows_per_second")),
    ("started", "string", ("started",)),
    ("command", "string", ("command",)),
    ("fingerprint", "string", ("dataset_fingerprint",)),
    ("versions", "json", ("versions",)),
    ("config", "json", ("config",)),
)
COLUMNS = ("run", "status", "left_out", *(name for name, _, _ in _PLACES))


def results_frame(records: Sequence[Record], left_out: Mapping[str, str]) -> pd.DataFrame:
    """Flatten records to a frame with the columns `COLUMNS`, in the order of the records.

    Args:
        records: every record found.
        left_out: run name to the reason why it is not in the charts.
    """
    rows = [_row(record, left_out.get(record.name)) for record in records]
    kinds = {"run": "string", "status": "string", "left_out": "string"}
    kinds |= {name: "string" if kind == "json" else kind for name, kind, _ in _PLACES}
    return pd.DataFrame({name: pd.array([row[name] for row in rows], dtype=kind) for name, kind in kinds.items()})


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
