"""Trials: trainings that only validation rows judge."""

import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recemb.datasets import PreparedDataset
from recemb.tables.base import TableConfig, TableSpec
from recemb.training.build import Built
from recemb.training.processes import on_first
from recemb.training.record import TRIAL_RECORD, RunFolder, TrialFolder, read_trial
from recemb.training.stages import before_last, note_last
from recemb.training.trainer import Trainer

if TYPE_CHECKING:
    from recemb.config import RunConfig


def train_trial(
    config: "RunConfig",
    table: TableConfig,
    specs: list[TableSpec],
    dataset: PreparedDataset,
    folder: TrialFolder,
    note: dict[str, Any],
) -> tuple[dict[str, float], Built]:
    """Train a trial from its first stage to its last, going on where an earlier attempt was broken off.

    Args:
        config: of the trial; it has to say `resume`.
        table: its table, sizes set.
        specs: the logical tables.
        dataset: the prepared data.
        folder: the trial's, where its state and its best weights go.
        note: its record; stages that are finished are written into it, and those that are in it are not repeated.

    Returns:
        The metrics of the best weights, as served, on validation rows, and the model with these weights.

    Raises:
        DivergedError: the loss became no number.
    """
    start = before_last(config, table, specs, dataset, folder, note)
    clock = time.monotonic()
    trainer = Trainer(
        start.built, dataset, start.trainer, config.seed, folder.path, tries_start=start.tries_start, resumes=True
    )
    try:
        valid = trainer.fit().best
        if trainer.round_as_served():
            valid, _, _ = trainer.evaluate("valid")
    finally:
        trainer.close()
    note_last(table, note, clock, trainer)
    folder.write(note)
    return valid, start.built


def take_over(run: RunFolder, record: dict[str, Any], folder: Path) -> None:
    """Make what a trial has trained the run's own; nothing is done where that was done before.

    Args:
        run: the folder of the run.
        record: its record, which gets the stages that the trial has finished.
        folder: of the trial; it is gone afterwards.
    """
    note = on_first(lambda: read_trial(folder))
    if note is None:
        return
    record |= {name: note[name] for name in ("stages", "structure") if name in note}
    run.write(record)

    def move() -> None:
        # The trial's record goes last: while it is there, this is not done.
        for path in folder.iterdir():
            if path.name != TRIAL_RECORD:
                os.replace(path, run.path / path.name)
        shutil.rmtree(folder)

    on_first(move)
