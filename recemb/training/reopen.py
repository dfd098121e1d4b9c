"""Opens what a run has left: its configuration, its data, and the model with its best weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from recemb.datasets import PreparedDataset
from recemb.files import read_json
from recemb.options import RecembError
from recemb.plan import table_specs
from recemb.record import RECORD
from recemb.tables.base import CompressedTable, TableConfig, TableSpec
from recemb.tables.precision import round_rows_
from recemb.tables.registry import method_of
from recemb.tables.structure import Structure
from recemb.training.build import Built, build
from recemb.training.checkpoint import load_weights
from recemb.training.record import CHECKPOINT, STRUCTURE

if TYPE_CHECKING:
    from recemb.config import RunConfig


class TrainedRun(NamedTuple):
    """A completed run.

    Attributes:
        path: its folder.
        record: its run.json.
        config: what decided it, the table's sizes set.
        dataset: the data it was trained on.
        specs: the logical tables.
        built: model and tables with the best weights, rows rounded to the precision they are served in.
    """

    path: Path
    record: dict[str, Any]
    config: "RunConfig"
    dataset: PreparedDataset
    specs: list[TableSpec]
    built: Built


def open_run(folder: Path, data: str | None = None) -> TrainedRun:
    """Open a completed run.

    Args:
        folder: of the run.
        data: where its prepared data lies now; where it lay at the time when not given.

    Raises:
        RecembError: there is no such run, it is not completed, its weights are gone, or its data is another.
    """
    from recemb.config import run_config_from_dict

    record = read_record(folder)
    config = run_config_from_dict(record["config"])
    if data is not None:
        config.dataset.path = data
    config.trainer.device = "cpu"
    try:
        dataset = PreparedDataset.open(config.dataset.path)
    except RecembError as error:
        raise RecembError(
            f"the data that {folder} was trained on is not at {config.dataset.path}; say where it lies with --data DIR."
        ) from error
    if dataset.fingerprint != record.get("dataset_fingerprint"):
        raise RecembError(
            f"{config.dataset.path} holds other data than {folder} was trained on; say where that lies with --data DIR."
        )
    specs = table_specs(dataset.features, config.model, config.precision)
    built = build(config, dataset, specs, _table(config.table, specs, folder))
    load_weights(built.model, folder / CHECKPOINT)
    with torch.no_grad():
        round_rows_(built.tables.method.layout.tables, built.tables.weights)
    built.model.eval()
    return TrainedRun(folder, record, config, dataset, specs, built)


def read_record(folder: Path) -> dict[str, Any]:
    """Read the record of a completed run.

    Raises:
        RecembError: there is none, or the run is not completed.
    """
    try:
        record = read_json(folder / RECORD)
        status, _ = record["status"], record["config"]
    except FileNotFoundError:
        raise RecembError(f"{folder} is no run's folder: it has no {RECORD}.") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RecembError(f"{folder / RECORD} cannot be read ({error}).") from error
    if status != "completed":
        raise RecembError(f"the run in {folder} is {status}, not completed; finish it with resume=true.")
    return dict(record)


def _table(config: TableConfig, specs: list[TableSpec], folder: Path) -> TableConfig | CompressedTable:
    """Make the table that the last stage of a run trained."""
    if not config.learns:
        return config
    structure = Structure.load(folder / STRUCTURE, specs)
    return method_of(config).table(config, specs, structure.layout(specs))
