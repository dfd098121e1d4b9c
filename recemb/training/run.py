"""One training run from a config to a folder: config.yaml, run.json, predictions.parquet, TensorBoard, checkpoint/."""

import contextlib
import dataclasses
import datetime
import logging
import platform
import resource
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from recemb.budget import format_bytes
from recemb.datasets import PreparedDataset, prepare
from recemb.datasets.prepared import META, refuse_other_data
from recemb.options import RecembError
from recemb.plan import sized, table_specs
from recemb.plan_file import Planned
from recemb.record import PREDICTIONS, SCHEMA
from recemb.tables.auto import AutoConfig
from recemb.tables.base import Layout, TableConfig, TableSpec
from recemb.tables.pruned import PrunedConfig
from recemb.tables.registry import config_to_dict, method_of
from recemb.training.build import count_bytes
from recemb.training.processes import gather_rows, is_first, on_first, together, world_size
from recemb.training.record import ADVICE, RunFolder, open_folder
from recemb.training.sharding import describe, held_as_asked, plan_lines
from recemb.training.stages import before_last, check_searchable, how_it_went, merge_bytes, note_last
from recemb.training.tensorboard import check_projector, log_end
from recemb.training.trainer import Trainer
from recemb.training.trials import take_over
from recemb.training.tuning import Tuning, used_rates

if TYPE_CHECKING:
    from recemb.config import RunConfig

log = logging.getLogger(__name__)


def train(
    config: "RunConfig", folder: Path, command: str = "", asked: Collection[str] = (), planned: Planned | None = None
) -> dict[str, Any]:
    """Train and test one model, leaving a record whatever happens.

    Args:
        config: the run; its table gets its sizes here where a budget is given.
        folder: where everything goes; made if missing.
        command: the command line that repeats the run, for the record.
        asked: names of the data set's options that somebody gave, even where they equal the default; data that was
            prepared otherwise is refused.
        planned: a plan that says the table, its sizes, the budget and the precision, whatever the config does.

    Returns:
        The record, as in run.json.

    Raises:
        RecembError: something the caller can mend, the budget and the data first; no record is left for those two.
        KeyboardInterrupt: passed on after the record says `interrupted`.
    """
    with together():
        return _train(config, folder, command, asked, planned)


def _train(
    config: "RunConfig", folder: Path, command: str, asked: Collection[str], planned: Planned | None
) -> dict[str, Any]:
    dataset = _open_together(config, asked, may_prepare=planned is None)
    rates = dataset.meta["positive_rate"]
    config = dataclasses.replace(config, trainer=config.trainer.with_defined_monitor(rates["valid"]))
    if planned is not None:
        config = dataclasses.replace(config, table=planned.table, precision=planned.precision, budget=planned.budget)
    specs = table_specs(dataset.features, config.model, config.precision)
    if planned is None:
        table = sized(config.table, config.budget, specs)
    else:
        planned.check_fits(specs)
        table = config.table
    layout = table.layout(specs)  # options that do not fit these tables are told before anything is written
    config.model.check_widths(layout.dims)
    if isinstance(table, PrunedConfig):
        table.check_trainable()
        check_searchable(table, rates["valid"])
    _warn_of_shared_rows(config, table, layout)
    config.trainer.torch_device()  # tells of a missing device before anything is written
    check_projector(config.trainer.projector, dataset)
    held_as_asked(config.trainer.sharding)
    record = first_record(dataclasses.replace(config, table=table), dataset, command, config.table)
    if planned is not None and planned.advice:
        # A plan that was advised is what table=auto comes to, and reports take both for one.
        record |= {
            "method": planned.method,
            "advice": {**planned.advice, "asked": {"precision": "fp32"}},
            "asked_table": config_to_dict(AutoConfig(trials=int(planned.advice.get("trials", 0)))),
        }
    run = open_folder(folder, record, overwrite=config.overwrite, resume=config.resume)
    if run.completed is not None:
        log.info("%s is completed already.", folder)
        return run.completed
    clock = time.monotonic() - record["seconds"]
    run.start(record)
    with outcome(run, record, clock):
        if isinstance(table, AutoConfig) and table.wants_trials(config.budget) and planned is None:
            config, table, specs = _advised(config, table, dataset, run, record)
        if config.tune.trials:
            config = Tuning(config, table, specs, dataset, run, record).choose()
        start = before_last(config, table, specs, dataset, run, record)
        _, tables, runs = start.built
        record["kept"] = tables.kept
        record["bytes"] = merge_bytes(count_bytes(start.built), record["bytes"])
        log.info(
            "%s on %s: tables %s, kept %.4g, %.3gx smaller than %s; backbone %s",
            record["method"], record["dataset"], format_bytes(record["bytes"]["tables_serving"]),
            tables.kept, 1 / tables.kept, format_bytes(record["bytes"]["tables_full"]),
            format_bytes(record["bytes"]["dense"]),
        )  # fmt: skip
        if world_size() > 1:
            record["sharding"] = describe(tables, runs, config.trainer.sharding)
            log.info("%s", "\n".join(plan_lines(record["sharding"])))
        run.write(record)
        trainer = Trainer(
            start.built, dataset, start.trainer, config.seed, folder, tries_start=start.tries_start,
            resumes=config.resume,
        )  # fmt: skip
        try:
            started = time.monotonic()
            _fit_and_test(trainer, record, run)
            note_last(table, record, started, trainer)
        finally:
            record |= how_it_went(trainer)
            trainer.close()
        record["memory"] = {"peak_bytes_per_process": peak_memory()}
    run.forget_unfinished()  # once the record says that nobody will go on with it
    return record


def _advised(
    config: "RunConfig", table: AutoConfig, dataset: PreparedDataset, run: RunFolder, record: dict[str, Any]
) -> tuple["RunConfig", TableConfig, list[TableSpec]]:
    """Let trials choose the table, and go on with what the best one has trained."""
    from recemb.advice.advise import Advisor  # which trains, and so stands above this
    from recemb.advice.record import new_advice

    advice = record.setdefault("advice", new_advice(table.trials, config.trainer.monitor))
    advice.setdefault("asked", {"precision": config.precision})
    advisor = Advisor(config, dataset, run.path / ADVICE, advice, lambda: run.write(record))
    chosen = advisor.choose()
    log.info("table=auto: %s", advice["because"])
    _, found, precision = chosen.candidate
    record["config"] |= {"table": config_to_dict(found), "precision": precision}
    run.write(record)
    # Tuning trains with other rates, and begins anew.
    if chosen.trial is not None and not config.tune.trials:
        take_over(run, record, chosen.trial)
        config = dataclasses.replace(config, resume=True, overwrite=False)
    return dataclasses.replace(config, table=found, precision=precision), found, chosen.specs


def _open_together(config: "RunConfig", asked: Collection[str], *, may_prepare: bool) -> PreparedDataset:
    """Open the data once the first process has prepared it, if that was to be done."""
    if is_first():
        opened = []
        on_first(lambda: opened.append(open_dataset(config, asked, may_prepare=may_prepare)))
        return opened[0]
    on_first(lambda: None)
    return PreparedDataset.open(config.dataset.path)


def peak_memory() -> list[int]:
    """Bytes of main memory that each process has held at most."""
    unit = 1 if sys.platform == "darwin" else 1024
    here = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return [int(one) for one in gather_rows(torch.tensor([here]), [1] * world_size())]


def _warn_of_shared_rows(config: "RunConfig", table: TableConfig, layout: Layout) -> None:
    method = method_of(table)
    users = Counter(index for lookups in layout.lookups for index in set(lookups))
    if max(users.values()) > 1 and not config.model.weighs_features:
        log.warning(
            "table=%s lets features share rows, which model=%s, having no weights of its own for each feature, cannot "
            "tell apart; model=dcn_v2 can.", method.name, config.model.name,
        )  # fmt: skip


@contextlib.contextmanager
def outcome(run: RunFolder, record: dict[str, Any], clock: float) -> Iterator[None]:
    """Write the record of what is done inside, however it ends.

    Args:
        run: the folder.
        record: gets its status, the error if there is one, and its seconds.
        clock: when it began, by time.monotonic().
    """
    try:
        yield
        record["status"] = "completed"
    except KeyboardInterrupt:
        record["status"], record["error"] = "interrupted", "stopped from outside"
        raise
    except Exception as error:
        record["status"], record["error"] = "failed", f"{type(error).__name__}: {error}"
        raise
    finally:
        record["seconds"] = round(time.monotonic() - clock, 3)
        _write_last(run, record)


def _write_last(run: RunFolder, record: dict[str, Any]) -> None:
    """Write the final record; where that fails after something else failed, the first failure is the one to tell."""
    try:
        run.write(record)
    except RecembError as error:
        if record["status"] == "completed":
            raise
        log.warning("%s", error)


def open_dataset(config: "RunConfig", asked: Collection[str] = (), *, may_prepare: bool = True) -> PreparedDataset:
    """Open the prepared data, preparing it first where the config says from what, if that may be.

    Raises:
        RecembError: there is none, or it was prepared with other options than those asked for.
    """
    wanted = config.dataset
    source = getattr(wanted, "source", None)
    generated = not hasattr(wanted, "source")
    if not may_prepare:
        dataset = PreparedDataset.open(wanted.path)
    elif source is not None or (generated and not (Path(wanted.path).expanduser() / META).exists()):
        dataset = prepare(wanted)
    else:
        dataset = PreparedDataset.open(wanted.path)
    refuse_other_data(wanted, dataset, asked)
    return dataset


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {"python": platform.python_version()}
    for package in ("recemb", "torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "numpy", "pandas", "pyarrow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found | {"torch": torch.__version__}


def first_record(config: "RunConfig", dataset: PreparedDataset, command: str, asked: TableConfig) -> dict[str, Any]:
    """Say what is known of a run before it starts; `asked` is the table before a budget set its sizes."""
    meta = dataset.meta
    values = config.to_dict()
    values["dataset"] |= meta["config"]  # what the data is, not what defaults say
    splits = ("train", "valid", "test")
    return {
        "schema": SCHEMA,
        "status": "running",
        "error": None,
        "method": method_of(config.table).name,
        "dataset": meta["dataset"],
        "model": config.model.name,
        "seed": config.seed,
        "budget": None if config.budget is None else str(config.budget),
        "kept": None,
        "command": command,
        "bytes": {},
        "metrics": {},
        "data": {
            "protocol": meta["protocol"],
            "min_count": meta["min_count"],
            "rows": {split: dataset.num_rows(split) for split in splits},
            "positive_rate": meta["positive_rate"],
            "ceiling": meta.get("ceiling"),
        },
        "training": {},
        "throughput": {},
        "seconds": 0.0,
        "config": values,
        "asked_table": config_to_dict(asked),
        "versions": versions() | {"threads": str(torch.get_num_threads())},
        "dataset_fingerprint": dataset.fingerprint,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _fit_and_test(trainer: Trainer, record: dict[str, Any], run: RunFolder) -> None:
    """Train, then measure the best weights, once, on test, as they will be served.

    On validation they were measured when they were kept, and are again where serving rounds them.
    """
    record["metrics"]["valid"] = trainer.fit().best
    if trainer.round_as_served():
        record["metrics"]["valid"], _, _ = trainer.evaluate("valid")
    record["metrics"]["test"], labels, logits = trainer.evaluate("test")
    write_predictions(run, labels, logits)
    log_end(trainer)
    _log_hparams(trainer, record)


def write_predictions(run: RunFolder, labels: Tensor, logits: Tensor) -> None:
    """Leave labels (N,) and probabilities of the test rows in a run's folder."""
    columns = {"label": labels.to(torch.uint8).numpy(), "probability": torch.sigmoid(logits).numpy()}
    run.save(PREDICTIONS, partial(pq.write_table, pa.table(columns)))


def _log_hparams(trainer: Trainer, record: dict[str, Any]) -> None:
    """Tell TensorBoard what the run was. One fixed set of keys: it mixes up runs whose keys differ."""
    config = record["config"]
    test, valid = record["metrics"]["test"], record["metrics"]["valid"]
    if trainer.writer is None:
        return
    trainer.writer.add_hparams(
        {
            "method": record["method"], "budget": record["budget"] or "none", "kept": record["kept"],
            "dataset": record["dataset"], "model": record["model"], "seed": record["seed"],
            **used_rates(record),
            "batch_size": config["trainer"]["batch_size"],
        },
        {f"test/{name}": value for name, value in test.items()} | {f"best/{name}": v for name, v in valid.items()},
        run_name=".",
    )  # fmt: skip
    trainer.writer.add_text("table", "\n".join(f"    {name}: {value}" for name, value in config["table"].items()))
