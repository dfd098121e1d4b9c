"""Reads what a run predicted on the test rows, and takes out of it what a report needs: no row is kept."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from recemb.record import PREDICTIONS
from recemb.report.bootstrap import Replicates, row_replicates
from recemb.report.calibration import Calibration, calibration
from recemb.report.records import Run

_FARTHEST_AUC = 1e-3  # from the record's, which knew logits and not their rounded probabilities


@dataclass(frozen=True)
class Scored:
    """What the predictions of one run come to.

    Attributes:
        labels: digest of the labels in their order; runs are comparable row by row only where it is the same.
        metrics: "auc" and "logloss" with their values on resampled rows.
        calibration: how far probabilities are from frequencies.
    """

    labels: str
    metrics: Mapping[str, Replicates]
    calibration: Calibration


def score_runs(runs: Iterable[Run]) -> dict[str, Scored | str]:
    """Score every run by name; a run whose predictions cannot be used gets the reason instead.

    Of runs on the same rows nearly all have the same labels: one that has others is not comparable with them.
    """
    runs = list(runs)
    # Shown on a terminal only, and only where it takes a while.
    bar = tqdm(runs, desc="comparing test rows", unit=" runs", disable=None, delay=2, leave=False)
    scored = {run.name: _score(run) for run in bar}
    usual = Counter(each.labels for each in scored.values() if isinstance(each, Scored)).most_common(1)
    for name, each in scored.items():
        if isinstance(each, Scored) and each.labels != usual[0][0]:
            scored[name] = "its test labels are not those of the other runs"
    return scored


def read_predictions(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.float64]] | str:
    """Read labels (N,) uint8 and probabilities (N,) float64 of a run, or say in a few words why that cannot be."""
    file = folder / PREDICTIONS
    if not file.is_file():
        return f"there is no {PREDICTIONS}"
    try:
        table = pq.read_table(file, columns=["label", "probability"])
        labels, probability = (table.column(name).to_numpy() for name in ("label", "probability"))
        labels, probability = labels.astype(np.float64), probability.astype(np.float64)
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError):
        return f"{PREDICTIONS} cannot be read"
    if not (((labels == 0) | (labels == 1)).all() and ((probability >= 0) & (probability <= 1)).all()):
        return f"{PREDICTIONS} holds something else than labels and probabilities"
    return labels.astype(np.uint8), probability


def _score(run: Run) -> Scored | str:
    found = "there is no folder" if run.folder is None else read_predictions(run.folder)
    if isinstance(found, str):
        return found
    labels, probability = found
    expected = run.rows.get("test", len(labels))
    if len(labels) != expected:
        return f"{PREDICTIONS} has {len(labels):,} rows and the record {expected:,}"
    if min(labels.sum(), len(labels) - labels.sum()) < 2:
        return f"{PREDICTIONS} has fewer than two rows of one label"
    metrics = row_replicates(labels, probability)
    if abs(metrics["auc"].value - run.test.auc) > _FARTHEST_AUC:
        return f"{PREDICTIONS} has AUC {metrics['auc'].value:.4f} and the record {run.test.auc:.4f}"
    digest = hashlib.sha256(np.packbits(labels).tobytes() + str(len(labels)).encode()).hexdigest()
    return Scored(digest, metrics, calibration(labels, probability))
