"""Finds, reads and checks `run.json`, the one record that reports read: a run folder holds one of them.

The schema, version 1 (`null` or an absent key where something is not known):

    schema       1
    status       "completed" | "interrupted" | "failed" | "running"
    error        null, or why the run failed
    method       name of the table method: "hashing"
    dataset      name of the data set: "criteo"
    model        name of the backbone: "dlrm"
    seed         0
    budget       what was asked for: "1/16" | "64MiB" | null
    kept         serving bytes of the tables / bytes of the full fp32 tables, in (0, 1]
    command      the command line that repeats the run
    bytes        {"tables_full", "tables_serving", "tables_training", "optimizer", "dense": int,
                  "parts": {"rows": int, "constants": int, ...}     what the serving bytes are made of
                  "per_table": {"C1": int, ...}}                    and which table holds them
    metrics      {"valid": {"auc", "logloss", "ne": float}, "test": {...}}
    data         {"protocol": "last_day", "min_count": 2,
                  "rows": {"train", "valid", "test": int}, "positive_rate": {"train", "valid", "test": float},
                  "ceiling": null | {"test": {"auc", "logloss": float}}}   best reachable, for a known teacher
    training     {"epochs": float, "best_step": int, "steps": int, "stopped": "early" | "epochs"}
    throughput   {"train_rows_per_second": float}
    seconds      wall time of the run
    config       the whole nested config, {"table": {...}, ...}, the table's sizes set
    asked_table  the table's options as they were before a budget set its sizes
    structure    what pruning left, absent for other methods
                 {"unit": "row" | "entry",              whole rows and columns were removed, or single entries
                  "pruned_ids": "zero" | "shared",      ids without a row read the zero vector, or the row of
                                                        unknown values
                  "map": "bitmap" | "keys8" | ...,      form of the map from ids to rows
                  "per_table": {"C1": {"ids": int,      ids of the feature
                                       "kept": int,     ids that keep a row of their own
                                       "width": float,  floats of a kept row, the mean where rows differ
                                       "dim": int,      floats of a row of the full table
                                       "cells": float   share of the training cells whose id keeps a row, may be null
                                      }, ...}}
    stages       what the run did one after another, absent for methods that train once
                 [{"name": "supernet", "seconds": float, "training": {...}, "valid": {...}},   as above
                  {"name": "search", "seconds": float, "evaluated": int, "rounds": int,
                   "best": float,                       best validation AUC
                   "history": [[int, float], ...],      evaluations so far, best validation AUC so far
                   "widths": {"C1": int, ...}},         floats of a row, of the best; not read here
                  {"name": "retrain", ...}]             like "supernet"
    tuning       how the learning rates were chosen, absent where they are as the config has them
                 {"trials": int, "ranges": {"lr": [float, float], "table_lr": [float, float]},
                  "monitor": "logloss" | "auc",         what is better on validation rows
                  "tried": [{"lr": float, "table_lr": float,       every trial, the config's own rates first
                             "valid": {...} | null, "seconds": float,   null where the loss became no number,
                             "error": str}, ...],                       and then alone why
                  "best": {"trial": int,                whose training is the run's, from 1; null before it is known
                           "lr": float, "table_lr": float}}             the rates that the run was trained with
    advice       how the table was chosen, absent where it was named: see `recemb.advice.record`; beside that
                 {"asked": {"precision": "fp32"}}       what was asked for where the choice has another
    versions     {"torch": "2.13.0+cpu", ...}
    dataset_fingerprint   equal only for identical prepared data
    started      ISO 8601 time

A record is somebody else's file: everything read from it is cleaned here (no control characters, no lone
surrogates, no infinite numbers), so that the writers of HTML, SVG, CSV and Parquet need not care.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from recemb.options import RecembError
from recemb.record import RECORD, SCHEMA, asked_options
from recemb.report import values
from recemb.report.structure import Stage, Structure, read_stages, read_structure
from recemb.report.values import HIGHEST_INTEGER

HIGHEST_LOGLOSS = 1000.0  # -log of the smallest float64 is 745: more than this is not a mean of log losses


class LeftOut(NamedTuple):
    """A run that is not in the charts, and why."""

    run: str
    reason: str


class Scores(NamedTuple):
    """Metrics of one split."""

    auc: float
    logloss: float
    ne: float | None = None


class ValidScores(NamedTuple):
    """Metrics of the validation rows; they have no AUC, which is None, where all of them have one label."""

    auc: float | None
    logloss: float


@dataclass(frozen=True)
class Record:
    """What one `run.json` holds, cleaned but unchecked; `data` is empty where the file could not be read."""

    name: str
    data: dict[str, Any]
    unreadable: str | None = None
    folder: Path | None = None

    def value(self, *path: str) -> Any:
        """Look up a nested key, None where any step is missing."""
        return values.at(self.data, *path)

    def text(self, *path: str) -> str:
        """Look up a text, '' where it is missing or not a text."""
        found = self.value(*path)
        return found if isinstance(found, str) else ""

    def label(self, *path: str) -> str:
        """Look up a text as one short line, fit for a heading."""
        return values.label(self.value(*path))

    def number(self, *path: str) -> float | None:
        """Look up a finite number."""
        return values.number(self.value(*path))

    def whole(self, *path: str) -> int | None:
        """Look up a whole number."""
        return values.whole(self.value(*path))

    def wholes(self, *path: str) -> dict[str, int]:
        """Look up a mapping of names to whole numbers, without the entries that are something else."""
        found = self.value(*path)
        items = found.items() if isinstance(found, dict) else ()
        return {key: count for key, value in items if (count := values.whole(value)) is not None}

    @property
    def status(self) -> str:
        """The status as written, "unreadable" for a file that is no record."""
        return "unreadable" if self.unreadable else self.label("status") or "unknown"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A completed run: everything a point in a chart needs is there and plausible."""

    name: str
    method: str
    dataset: str
    model: str
    protocol: str
    fingerprint: str
    min_count: int | None
    seed: int
    budget: str
    command: str
    started: str
    test: Scores
    valid: ValidScores | None
    ceiling: Scores | None
    bytes_serving: int
    bytes_full: int | None
    other_bytes: dict[str, int]
    parts: dict[str, int]
    per_table: dict[str, int]
    rows: dict[str, int]
    positive_rate: float | None
    rows_per_second: float | None
    structure: Structure | None
    stages: tuple[Stage, ...]
    trials: int
    config: dict[str, Any]
    asked: dict[str, Any]
    folder: Path | None = None

    @property
    def kept(self) -> float | None:
        """Serving bytes over the bytes of the full fp32 tables."""
        return self.bytes_serving / self.bytes_full if self.bytes_full else None


def find_records(folders: Sequence[Path]) -> list[Record]:
    """Read every `run.json` under the given folders, in the order of their paths.

    Raises:
        RecembError: a folder does not exist, or no folder holds a record.
    """
    if not folders:
        raise RecembError("a report needs at least one folder of runs; name the folder that `recemb train` wrote to")
    for folder in folders:
        if not folder.is_dir():
            raise RecembError(f"{folder} is not a folder; name the folder that `recemb train` wrote to")
    roots = [folder.resolve() for folder in folders]
    root = Path(os.path.commonpath(roots))
    files = {Path(at, RECORD) for top in roots for at, _, names in os.walk(top) if RECORD in names}
    if not files:
        listed = ", ".join(str(folder) for folder in folders)
        raise RecembError(f"no {RECORD} under {listed}; `recemb train` writes one into every run folder")
    return [read_record(file, _name_of(file.parent, root)) for file in sorted(files)]


def read_record(file: Path, name: str) -> Record:
    """Read one record; a file that is no record becomes a Record that says why, never an error."""
    try:
        if not file.is_file():  # a pipe or a device would block for ever
            return Record(name, {}, f"{RECORD} is not a regular file")
        data = values.clean(json.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        return Record(name, {}, f"{RECORD} cannot be read: {error.strerror}")
    except UnicodeDecodeError:
        return Record(name, {}, f"{RECORD} is not UTF-8 text")
    except RecursionError:
        return Record(name, {}, f"{RECORD} is nested too deeply")
    except ValueError as error:
        return Record(name, {}, f"{RECORD} is not JSON: {error}")
    if not isinstance(data, dict):
        return Record(name, {}, f"{RECORD} holds a {type(data).__name__}, not an object")
    return Record(name, data, folder=file.parent)


def check(record: Record) -> Run | LeftOut:
    """Turn a record into a Run, or say why it cannot stand in a chart."""
    reason = record.unreadable or _why_not_completed(record) or _why_not_plausible(record)
    if reason is not None:
        return LeftOut(record.name, reason)
    full = record.whole("bytes", "tables_full")
    test = _scores(record, "metrics", "test")
    serving, seed = record.whole("bytes", "tables_serving"), record.whole("seed")
    assert test is not None  # _why_not_plausible has looked
    assert serving is not None
    assert seed is not None
    config = record.value("config")
    config = config if isinstance(config, dict) else {}
    return Run(
        name=record.name,
        method=record.label("method"),
        dataset=record.label("dataset"),
        model=record.label("model"),
        protocol=record.label("data", "protocol"),
        fingerprint=record.label("dataset_fingerprint"),
        min_count=record.whole("data", "min_count"),
        seed=seed,
        budget=record.label("budget"),
        command=record.text("command"),
        started=record.text("started"),
        test=test,
        valid=_valid_scores(record),
        ceiling=_scores(record, "data", "ceiling", "test"),
        bytes_serving=serving,
        bytes_full=full if full and full > 0 else None,
        other_bytes={
            name: size
            for name in ("tables_training", "optimizer", "dense")
            if (size := record.whole("bytes", name)) is not None
        },
        parts=record.wholes("bytes", "parts"),
        per_table=record.wholes("bytes", "per_table"),
        rows=record.wholes("data", "rows"),
        positive_rate=record.number("data", "positive_rate", "test"),
        rows_per_second=record.number("throughput", "train_rows_per_second"),
        structure=read_structure(record.value("structure")),
        stages=read_stages(record.value("stages")),
        trials=max(record.whole("tuning", "trials") or 0, 0),
        config=config,
        asked=asked_options(config, record.value("asked_table"), record.value("advice")),
        folder=record.folder,
    )


def _why_not_completed(record: Record) -> str | None:
    schema = record.value("schema")
    if schema != SCHEMA or isinstance(schema, bool):
        return f"schema {json.dumps(schema)[:40]} is not known here, only {SCHEMA} is; it needs another recemb"
    error = values.label(record.value("error"), values.LONGEST_SENTENCE)
    match record.status:
        case "completed":
            return None
        case "failed":
            return f"failed: {error or 'the record does not say why'}"
        case "interrupted":
            return f"interrupted: {error}" if error else "interrupted before it was finished"
        case "running":
            return "still running, or ended without a word"
        case other:
            return f'status "{other}" is not known'


def _why_not_plausible(record: Record) -> str | None:
    for key in ("method", "dataset", "model"):
        if not record.label(key):
            return f"completed, but {key} is missing"
    for path, low, high in (
        (("seed",), -HIGHEST_INTEGER, HIGHEST_INTEGER),
        (("bytes", "tables_serving"), 1, HIGHEST_INTEGER),
        (("metrics", "test", "auc"), 0.0, 1.0),
        (("metrics", "test", "logloss"), 0.0, HIGHEST_LOGLOSS),
    ):
        counted = isinstance(low, int)
        found = record.whole(*path) if counted else record.number(*path)
        if found is None and path[-1] == "auc" and record.number("data", "positive_rate", "test") in (0, 1):
            return "completed, but all its test rows have the same label, so that it has no AUC"
        if found is None:
            kind = "whole" if counted else "finite"
            return f"completed, but {'.'.join(path)} is missing or not a {kind} number"
        if not low <= found <= high:
            return f"completed, but {'.'.join(path)} is {found:g}, outside {low:g} to {high:g}"
    return None


def _scores(record: Record, *path: str) -> Scores | None:
    auc, logloss = record.number(*path, "auc"), record.number(*path, "logloss")
    if auc is None or logloss is None or not (0 <= auc <= 1 and 0 <= logloss <= HIGHEST_LOGLOSS):
        return None
    return Scores(auc, logloss, record.number(*path, "ne"))


def _valid_scores(record: Record) -> ValidScores | None:
    auc, logloss = (values.number(record.value("metrics", "valid", name)) for name in ("auc", "logloss"))
    if logloss is None or not 0 <= logloss <= HIGHEST_LOGLOSS:
        return None
    return ValidScores(values.within(auc, 0, 1), logloss)


def _name_of(folder: Path, root: Path) -> str:
    relative = folder.relative_to(root).as_posix()
    return values.clean(folder.name if relative == "." else relative)
