"""What a run leaves for reports: its record, which `recemb.report.records` documents, and its predictions."""

import math
from collections.abc import Mapping
from typing import Any

RECORD = "run.json"
SCHEMA = 1
PREDICTIONS = "predictions.parquet"
"""Columns `label` (0 or 1) and `probability`; one line a test row, in the order of the rows."""

FREE_TO_CHANGE = (
    "device",
    "sharding",
    "cache_share",
    "pipeline",
    "checkpoint_minutes",
    "checkpoint_steps",
    "keep_checkpoints",
    "projector",
)
"""Options of the trainer that a run may be resumed with others of, since what is trained does not depend on them."""


def asked_options(config: Any, asked_table: Any, advice: Any) -> dict[str, Any]:
    """Give the options of a run as they were asked for, before a budget set a table's sizes or trials chose the table.

    Args: of a record: `config`, `asked_table` and `advice`; what is no mapping counts as absent.
    """
    if not isinstance(config, dict) or not config:
        return {}
    asked = advice.get("asked") if isinstance(advice, dict) else None
    return (
        config
        | ({"table": asked_table} if isinstance(asked_table, dict) else {})
        | (asked if isinstance(asked, dict) else {})
    )


def metric_text(value: float | None) -> str:
    """Write an AUC or a logloss: "0.7891", "not defined" where it is NaN, which is null in a record."""
    return "not defined" if value is None or math.isnan(value) else f"{value:.4f}"


def change_text(change: Mapping[str, float | None]) -> str:
    """Write a change of a metric, its `mean`, `low` and `high`: "+0.0012 [-0.0003, +0.0027]", or "not defined"."""
    known = [change[name] for name in ("mean", "low", "high")]
    if any(value is None or math.isnan(value) for value in known):
        return metric_text(None)
    mean, low, high = known
    return f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"
