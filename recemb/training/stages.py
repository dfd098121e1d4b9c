"""Runs that learn what to keep before they train what is kept: the stages of the pruned methods.

First a table with every id's row is trained and masked more and more; some methods then search for the widths of
features; the last stage trains the packed table, as any other run trains its tables. What a stage has found is in the
run's folder before the next one starts, so that a run that was broken off goes on from there.
"""

import contextlib
import dataclasses
import json
import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from recemb.datasets import Batch, PreparedDataset
from recemb.files import parse_json
from recemb.options import RecembError
from recemb.tables.base import TableConfig, TableSpec
from recemb.tables.initial import init_uniform_
from recemb.tables.pruned import PackedTable, PrunedConfig
from recemb.tables.pruning import PruningTable
from recemb.tables.registry import method_of
from recemb.tables.structure import Structure
from recemb.training.build import Built, build, copy_backbone, count_bytes
from recemb.training.checkpoint import load_weights
from recemb.training.evaluation import in_order, predict, progress_bar, rows_of
from recemb.training.metrics import binary_metrics
from recemb.training.processes import is_first, on_first, rank, world_size
from recemb.training.record import STRUCTURE, RunFolder
from recemb.training.trainer import Trainer
from recemb.training.trainer_config import TrainerConfig

if TYPE_CHECKING:
    from recemb.config import RunConfig

log = logging.getLogger(__name__)

_JOURNAL = "search.jsonl"


def check_searchable(table: PrunedConfig, positive_rate: float) -> None:
    """Raise where a search could not judge its candidates: validation rows, of this share of ones, have no AUC."""
    if "search" in table.stages and not 0 < positive_rate < 1:
        raise RecembError(
            f"table={method_of(table).name} searches by AUC on validation rows, and these all have one label; prepare "
            "more rows, or train another table."
        )


class Start(NamedTuple):
    """What the last stage trains, how, and whether what it starts from may be the best already."""

    built: Built
    trainer: TrainerConfig
    tries_start: bool = False


class Stages:
    """The stages of one run before its last.

    Args:
        config: the run.
        table: its table, sizes set.
        specs: the logical tables.
        dataset: the prepared data.
        run: the folder.
        record: the run's record; finished stages are written into it, and those that are in it are not repeated.
    """

    def __init__(
        self,
        config: "RunConfig",
        table: PrunedConfig,
        specs: list[TableSpec],
        dataset: PreparedDataset,
        run: RunFolder,
        record: dict[str, Any],
    ) -> None:
        self.config = config
        self.table = table
        self.specs = specs
        self.dataset = dataset
        self.run = run
        self.record = record
        record.setdefault("stages", [])

    def learn(self) -> Start:
        """Learn what to keep, and build the packed table for the last stage."""
        pruning = self.table.pruning_table(self.specs)
        first = build(self.config, self.dataset, self.specs, pruning)
        self.record["bytes"] = count_bytes(first)
        self._train(first, pruning)
        first.runs.eval()
        widths = self._search(first, pruning) if pruning.searches else None
        structure = pruning.structure(first.tables.weights, widths)
        self.run.save(STRUCTURE, lambda partial: structure.save(partial, self.specs))
        self.record["structure"] = {"pruned_ids": self.table.pruned, **structure.summary(self.specs)}
        self.run.write(self.record)
        self._announce(len(self.table.stages) - 1)
        return self._packed(first, structure)

    def _announce(self, number: int) -> None:
        stages = self.table.stages
        left = f"; then {', '.join(stages[number + 1 :])}" if stages[number + 1 :] else ""
        log.info("stage %d of %d: %s%s", number + 1, len(stages), stages[number], left)

    def _finished(self, name: str) -> dict[str, Any] | None:
        return next((stage for stage in self.record["stages"] if stage["name"] == name), None)

    def _finish(self, name: str, clock: float, **results: Any) -> None:
        self.record["stages"].append(stage_record(name, clock, **results))
        self.run.write(self.record)

    def _train(self, first: Built, pruning: PruningTable) -> None:
        """Train the table that is masked, or take its weights from where an earlier run left them."""
        name, weights = self.table.stages[0], self.run.stages / self.table.stages[0]
        self._announce(0)
        clock, epochs = time.monotonic(), self.config.trainer.epochs
        if self._finished(name):
            try:
                load_weights(first.model, weights)
                log.info("  %s is finished already", name)
                return
            except RecembError as error:
                log.warning("  %s: %s", name, error)
                self.record["stages"] = []
        on_first(lambda: (self.run.stages / _JOURNAL).unlink(missing_ok=True))  # of other weights
        if pruning.settles > epochs:
            log.warning(
                "table.ramp=%g is more than trainer.epochs=%d: what is left to prune goes all at once at the end.",
                pruning.settles, epochs,
            )  # fmt: skip
        trainer = Trainer(
            first, self.dataset, self.config.trainer, self.config.seed, self.run.path, stage=name,
            weights=weights, keep_from=min(pruning.settles, epochs), resumes=self.config.resume,
        )  # fmt: skip
        try:
            trainer.fit()
        finally:
            trainer.close()
        self._finish(name, clock, **of_training(trainer))
        trainer.unfinished.forget()

    def _search(self, first: Built, pruning: PruningTable) -> Sequence[int]:
        """Search for the widths of features by AUC on validation rows."""
        self._announce(1)
        if finished := self._finished("search"):
            log.info("  search is finished already")
            return [int(width) for width in finished["widths"].values()]
        clock, device = time.monotonic(), self.config.trainer.torch_device()
        batches = list(_first_rows(self.dataset, pruning.search_rows, self.config.trainer.eval_batch_size))

        def auc() -> float:
            labels, logits = predict(first.runs, batches, device)
            return on_first(lambda: binary_metrics(logits, labels)["auc"])

        labels = in_order([(batch, batch.labels) for batch in batches])
        if not 0 < float(labels.mean()) < 1:
            raise RecembError(
                f"the {len(labels)} validation rows that candidates are judged by are all of one class; raise "
                "table.search_rows."
            )
        most = [spec.embedding_dim for spec in self.specs]
        with _Journal(self.run.stages / _JOURNAL, pruning.most_candidates, most) as journal, torch.no_grad():
            found = pruning.search(first.tables.weights, auc, self.config.seed, journal.known, journal.write)
        names = [spec.name for spec in self.specs]
        self._finish(
            "search", clock, evaluated=found.evaluated, rounds=len(found.history), best=found.fitness,
            history=found.history, widths=dict(zip(names, found.best, strict=True)),
        )  # fmt: skip
        return found.best

    def _packed(self, first: Built, structure: Structure) -> Start:
        """Build the packed table and give it the weights that the last stage starts from."""
        method = method_of(self.table).table
        assert issubclass(method, PackedTable)
        packed = method(self.table, self.specs, structure.layout(self.specs))
        built = build(self.config, self.dataset, self.specs, packed)
        weights = [weight.data for weight in built.tables.weights]
        last = self.table.last_stage
        trained = [] if last.restarts else [weight.detach() for weight in first.tables.weights]
        structure.pack_into(weights, self._initial if last.restarts else trained.__getitem__)
        built.tables.write(weights)
        if last.restarts:
            return Start(built, self.config.trainer)
        copy_backbone(first.model, built.model)
        trainer = self.config.trainer
        return Start(
            built,
            dataclasses.replace(
                trainer, epochs=last.epochs, lr=trainer.lr * last.lr_factor, table_lr=trainer.table_lr * last.lr_factor
            ),
            tries_start=True,
        )

    def _initial(self, table: int) -> Tensor:
        """The (V, D) weight that a full table of this seed starts with."""
        spec = self.specs[table]
        weight = torch.empty(spec.num_embeddings, spec.embedding_dim, device=self.config.trainer.torch_device())
        init_uniform_(weight, spec.init_std, spec.name, self.config.seed)
        return weight


class _Journal:
    """What a search has evaluated so far, on disk line by line, and a bar.

    Args:
        path: the file; what an interrupted search has written there is known already.
        total: evaluations that the search will come to.
        most: the largest width of each table; a line with others is none of this search's.
    """

    def __init__(self, path: Path, total: int, most: Sequence[int]) -> None:
        self.known: dict[tuple[int, ...], float] = {}
        lines = on_first(lambda: path.read_text(encoding="utf-8").splitlines() if path.exists() else [])
        for line in lines:
            with contextlib.suppress(ValueError, KeyError, TypeError):  # the last one may be cut short
                entry = parse_json(line)
                widths = tuple(map(int, entry["widths"]))
                if len(widths) == len(most) and all(1 <= one <= top for one, top in zip(widths, most, strict=True)):
                    self.known[widths] = float(entry["auc"])
        self._file = (path if is_first() else Path(os.devnull)).open("a", encoding="utf-8")
        if lines:
            self._file.write("\n")
        self._bar = progress_bar(total, "search", " candidates")
        self._bar.update(len(self.known))
        self._best = -math.inf

    def write(self, widths: tuple[int, ...], auc: float) -> None:
        """Note down a candidate's fitness."""
        if widths not in self.known:
            self._file.write(json.dumps({"widths": widths, "auc": auc}) + "\n")
            self._file.flush()
        self._best = max(self._best, auc)
        self._bar.set_postfix_str(f"best valid auc {self._best:.4f}", refresh=False)
        self._bar.update()

    def __enter__(self) -> "_Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        self._file.close()


def _first_rows(dataset: PreparedDataset, rows: int, batch_size: int) -> Iterator[Batch]:
    """Give validation batches of at most so many rows together."""
    for batch in dataset.batches("valid", min(batch_size, rows), share=(rank(), world_size())):
        rows -= rows_of(batch)
        if rows < 0:
            return
        yield batch


def before_last(
    config: "RunConfig",
    table: TableConfig,
    specs: list[TableSpec],
    dataset: PreparedDataset,
    run: RunFolder,
    record: dict[str, Any],
) -> Start:
    """Do what a run does before its last stage, for most methods nothing, and build what that stage trains.

    The arguments are those of `Stages`.
    """
    if isinstance(table, PrunedConfig):
        return Stages(config, table, specs, dataset, run, record).learn()
    return Start(build(config, dataset, specs, table), config.trainer)


def note_last(table: TableConfig, record: dict[str, Any], clock: float, trainer: Trainer) -> None:
    """Write the last of several stages into the record, if it is not there yet; it began at `clock`."""
    if isinstance(table, PrunedConfig) and len(record["stages"]) < len(table.stages):
        record["stages"].append(stage_record(table.stages[-1], clock, **of_training(trainer)))


def stage_record(name: str, clock: float, **results: Any) -> dict[str, Any]:
    """What the record says of a stage that began at `clock`, by time.monotonic()."""
    return {"name": name, "seconds": round(time.monotonic() - clock, 3), **results}


def of_training(trainer: Trainer) -> dict[str, Any]:
    """The results of a stage that trained something."""
    return {"training": how_it_went(trainer)["training"], "valid": trainer.progress.best}


def how_it_went(trainer: Trainer) -> dict[str, Any]:
    """What the record says of training, however far it has come."""
    progress = trainer.progress
    return {
        "training": {
            "epochs": round(progress.epochs, 4), "steps": progress.steps, "best_step": progress.best_step,
            "stopped": progress.stopped,
        },
        "throughput": {"train_rows_per_second": round(progress.rows_per_second, 1)},
    }  # fmt: skip


def merge_bytes(last: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    """Take the bytes of the last stage, and of what training needs the most that any stage did."""
    most = {name: max(last[name], first.get(name, 0)) for name in ("tables_training", "optimizer")}
    return {**last, **most}
