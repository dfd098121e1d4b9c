"""Run records made for the tests, shaped as `recemb train` writes them."""

import json
import math
import random
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.metrics import log_loss, roc_auc_score

from recemb.report.structure import Kept, Structure

FULL_BYTES = 128 * 2**20
TABLES = [f"C{i}" for i in range(1, 27)]
FEATURE = {"ids": 1460, "kept": 812, "width": 12.5, "dim": 16, "cells": 0.97}  # what pruning left of one feature
COST = {"full": 0.0045, "frequency": 0.0016, "hashing": 0.0042}  # AUC lost for every halving of the bytes


def record(method: str = "hashing", share: float = 0.25, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """Make the record of one completed run that keeps `share` of the bytes; `changes` replace top-level keys."""
    noise = random.Random(f"{method!a} {share} {seed}")
    shared = random.Random(seed).gauss(0, 0.0006)  # what a seed does to every method alike
    halvings = -math.log2(share)
    auc = 0.7890 - COST.get(method, 0.0028) * halvings**1.15 + shared + noise.gauss(0, 0.0003)
    logloss = 0.4580 + (0.7890 - auc) * 0.9 + noise.gauss(0, 0.0002)
    serving = int(FULL_BYTES * share)
    constants = 0 if method == "full" else 4096
    budget = None if share == 1 else f"1/{round(1 / share)}"
    command = f"recemb train dataset=criteo model=dlrm table={method} seed={seed}"
    made = {
        "schema": 1,
        "status": "completed",
        "error": None,
        "method": method,
        "dataset": "criteo",
        "model": "dlrm",
        "seed": seed,
        "budget": budget,
        "kept": share,
        "command": f"{command} budget={budget}" if budget else command,
        "bytes": {
            "tables_full": FULL_BYTES,
            "tables_serving": serving,
            "tables_training": serving,
            "optimizer": serving // 16,
            "dense": 1_234_567,
            "parts": {"rows": serving - constants} | ({"constants": constants} if constants else {}),
            "per_table": {name: serving // len(TABLES) for name in TABLES},
        },
        "metrics": {
            "valid": {"auc": auc + 0.001, "logloss": logloss - 0.001, "ne": 0.801},
            "test": {"auc": auc, "logloss": logloss, "ne": 0.803},
        },
        "data": {
            "protocol": "last_day",
            "min_count": 2,
            "rows": {"train": 100_000, "valid": 10_000, "test": 7_801},
            "positive_rate": {"train": 0.2560, "valid": 0.2551, "test": 0.2549},
            "ceiling": None,
        },
        "training": {"epochs": 1.0, "best_step": 700, "steps": 782, "stopped": "epochs"},
        "throughput": {"train_rows_per_second": 41_000.0 + 500 * seed},
        "seconds": 31.5,
        "config": {"seed": seed, "budget": budget, "table": {"name": method}, "trainer": {"learning_rate": 0.1}},
        "versions": {"torch": "2.13.0+cpu"},
        "dataset_fingerprint": "8f14e45fceea167a",
        "started": f"2025-03-01T10:{seed:02d}:00+00:00",
    }
    return made | changes


def write(folder: Path, content: dict[str, Any] | str | bytes) -> Path:
    """Write a record, or whatever stands in its place, as the `run.json` of a run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(content, dict):
        content = json.dumps(content)
    (folder / "run.json").write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def baselines(folder: Path, seeds: int = 3, **changes: Any) -> Path:
    """Write the four baselines over several seeds."""
    shares = {"full": (1, 1 / 2, 1 / 4, 1 / 8, 1 / 16), "frequency": (1 / 4, 1 / 16, 1 / 64)}
    shares["hashing"] = shares["frequency"]
    for method, kept in shares.items():
        for share in kept:
            for seed in range(seeds):
                name = f"{method}-{round(1 / share)}-seed{seed}"
                write(folder / name, record(method, share, seed, **changes))
    return folder


def structure(share: float = 0.25, seed: int = 0, features: int = 26, unit: str = "row") -> dict[str, Any]:
    """Make the structure of a run that pruned most where there are most ids; small features keep all of theirs."""
    noise = random.Random(f"{share} {seed}")
    tables = {}
    for number in range(features):
        ids = max(round(1_460_000 * 0.62**number), 3)
        part = min(share * (1 + (number / 8) ** 2) * noise.uniform(0.8, 1.2), 1.0)
        width = min(noise.uniform(0.4, 1.1) * 16, 16.0)
        tables[f"C{number + 1}"] = {
            "ids": ids,
            "kept": round(ids * part),
            "width": width if unit == "entry" else float(round(width)),
            "dim": 16,
            "cells": min(part**0.15, 1.0) if round(ids * part) else 0.0,
        }
    return {"unit": unit, "pruned_ids": "zero", "map": "bitmap", "per_table": tables}


def stages(seed: int = 0) -> list[dict[str, Any]]:
    """Make the stages of a run that trains a supernet, searches in it and trains what it found."""
    training = {"epochs": 1.0, "steps": 782, "best_step": 700, "stopped": "epochs"}
    valid = {"auc": 0.7650 + 0.001 * seed, "logloss": 0.47, "ne": 0.81}
    history = [[20, 0.7600], [40, 0.7605], [420, 0.7712], [612, 0.7712]]
    return [
        {"name": "supernet", "seconds": 12.0 + seed, "training": training, "valid": valid},
        {"name": "search", "seconds": 60.1, "evaluated": 612, "rounds": 30, "best": 0.7712, "history": history},
        {"name": "retrain", "seconds": 11.5, "training": training, "valid": valid},
    ]


def kept(**tables: tuple[float | None, ...]) -> Structure:
    """Make what is read from a record: each feature has ids, kept, width, dim and cells."""
    return Structure("row", "zero", "bitmap", {name: Kept(*numbers) for name, numbers in tables.items()})


def predicted(folder: Path, made: dict[str, Any], rows: int = 2000, skill: float = 1.0, data_seed: int = 7) -> Path:
    """Write a run whose `predictions.parquet` and metrics agree; more `skill` is a higher AUC on the same labels."""
    rng = np.random.default_rng(data_seed)
    truth = rng.normal(-1, 1, rows)
    labels = (rng.random(rows) < 1 / (1 + np.exp(-truth))).astype(np.uint8)
    own = np.random.default_rng(_number(made))
    logits = skill * truth + (1 - skill) * truth.mean() + own.normal(0, 0.4, rows)
    probability = (1 / (1 + np.exp(-logits))).astype(np.float32)
    test = {
        "auc": float(roc_auc_score(labels, probability)),
        "logloss": float(log_loss(labels, probability.astype(float))),
    }
    made["metrics"] = {"valid": test, "test": test}
    made["data"] = made["data"] | {"rows": made["data"]["rows"] | {"test": rows}}
    write(folder, made)
    pq.write_table(pa.table({"label": labels, "probability": probability}), folder / "predictions.parquet")
    (folder / "config.yaml").write_text("seed: 0\n")
    return folder


def _number(made: dict[str, Any]) -> int:
    """A number that the name, size and seed of a run decide."""
    return zlib.crc32(f"{made['method']} {made['kept']} {made['seed']}".encode())
