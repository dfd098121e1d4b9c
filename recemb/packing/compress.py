"""Makes a trained run's tables smaller without training it anew, and says what that costs."""

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from recemb.options import RecembError, option
from recemb.packing.serving import ServingTables, full_vectors
from recemb.plan import sized, table_specs
from recemb.report.bootstrap import compare_two
from recemb.tables.base import Approximation, TableConfig, TableSpec
from recemb.tables.precision import round_rows_
from recemb.tables.registry import check_approximates
from recemb.tables.structure import Structure
from recemb.training.build import Built, build, copy_backbone, count_bytes
from recemb.training.checkpoint import save_weights
from recemb.training.evaluation import DivergedError, Evaluation, evaluate
from recemb.training.record import CHECKPOINT, STRUCTURE, RunFolder
from recemb.training.reopen import TrainedRun
from recemb.training.run import first_record, outcome, write_predictions
from recemb.training.stages import how_it_went
from recemb.training.trainer import Trainer
from recemb.training.trainer_config import TrainerConfig
from recemb.training.tuning import as_trained

if TYPE_CHECKING:
    from recemb.config import RunConfig


@dataclasses.dataclass(kw_only=True)
class Finetuning:
    """How smaller tables are trained on."""

    steps: int = option(0, "training steps at most, after the tables were made smaller; fewer where they stop helping")
    lr_factor: float = option(0.1, "factor on the run's learning rates while fine-tuning")

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise RecembError(f"the number of fine-tuning steps is {self.steps}; it must be 0 or more.")
        if not 0 < self.lr_factor < float("inf"):
            raise RecembError(f"the factor on the learning rates is {self.lr_factor}; it must be a positive number.")


def compress_run(
    run: TrainedRun,
    folder: Path,
    *,
    table: TableConfig | None = None,
    budget: str | int | float | None = None,
    precision: str = "fp32",
    finetuning: Finetuning | None = None,
    overwrite: bool = False,
    command: str = "",
) -> dict[str, Any]:
    """Make a run's tables smaller and leave the result as a run of its own.

    Args:
        run: the trained run.
        folder: of the new run.
        table: the method that shall hold the tables; the run's own, with its structure as it is, when not given.
        budget: serving bytes of the tables, as `parse_budget` reads them; what the table's own options say if None.
        precision: how rows are held.
        finetuning: training afterwards, none if not given.
        overwrite: replace a completed run in the folder.
        command: the command line, for the record.

    Returns:
        The new run's record. Its `compressed` says what it was made from, and how much it differs on the same test
        rows: see `bootstrap.compare_two`, for one seed.

    Raises:
        RecembError: the method cannot be made from trained tables, the budget does not fit, or the folder is taken.
    """
    finetuning = finetuning or Finetuning()
    if folder.resolve() == run.path.resolve():
        raise RecembError(f"{folder} is the run that is to be compressed; choose another folder for the result.")
    specs = table_specs(run.dataset.features, run.config.model, precision)
    made = _same(run, specs, budget) if table is None else _approximated(run, specs, table, budget)
    # The trainer's options stay those that the tables were first trained with; fine-tuning is told of beside them.
    config = dataclasses.replace(
        run.config, table=made.method.config, budget=budget, precision=precision, overwrite=overwrite, resume=False
    )
    record = first_record(config, run.dataset, command, table or made.method.config)
    before = run.record["config"].get("compressed", run.record["method"])
    record["config"]["compressed"] = f"{before}, {finetuning.steps} steps" if finetuning.steps else before
    record |= {"tuning": run.record["tuning"]} if "tuning" in run.record else {}
    new = RunFolder(folder, overwrite=overwrite)
    clock = time.monotonic()
    new.start(record)
    with outcome(new, record, clock):
        if made.structure is not None:
            new.save(STRUCTURE, lambda partial: made.structure.save(partial, specs))
            pruned = made.method.config.pruned
            record["structure"] = {"pruned_ids": pruned, **made.structure.summary(specs)}
        built = _built(run, specs, config, made)
        record["kept"], record["bytes"] = built.tables.kept, count_bytes(built)
        _measure(run, config, new, record, built, finetuning)
        new.forget_unfinished()
    return record


def _approximated(
    run: TrainedRun, specs: list[TableSpec], table: TableConfig, budget: str | int | float | None
) -> Approximation:
    check_approximates(table)
    config = sized(table, budget, specs)
    served = ServingTables(run.built.tables.method, run.built.tables.weights)
    made = config.approximate(specs, full_vectors(served), run.config.seed)
    if made.method.layout.dims != run.built.tables.method.layout.dims:
        raise RecembError(
            f"the run's vectors are {sorted(set(run.built.tables.method.layout.dims))} wide, and the backbone takes no "
            "others; only the precision of such a run can be changed (--precision)."
        )
    return made


def _same(run: TrainedRun, specs: list[TableSpec], budget: str | int | float | None) -> Approximation:
    """Take the run's own tables, in another precision."""
    if budget is not None:
        raise RecembError("a budget needs a --table to meet it; --precision alone takes the tables as they are.")
    old = run.built.tables.method
    layout = dataclasses.replace(
        old.layout,
        tables=[table._replace(precision=specs[0].precision) for table in old.layout.tables],
        constants={name: old.get_buffer(name) for name in old.layout.constants},
    )
    method = type(old)(old.config, specs, layout)
    method.load_state_dict(old.state_dict())
    return Approximation(method, list(run.built.tables.weights), _structure(run, specs))


def _structure(run: TrainedRun, specs: list[TableSpec]) -> Any:
    return Structure.load(run.path / STRUCTURE, specs) if run.config.table.learns else None


def _tuning(trainer: TrainerConfig, finetuning: Finetuning, rows: int) -> TrainerConfig:
    """Make the options of fine-tuning out of those of training."""
    return dataclasses.replace(
        trainer,
        epochs=-(-finetuning.steps // -(-rows // trainer.batch_size)),
        steps=finetuning.steps,
        lr=trainer.lr * finetuning.lr_factor,
        table_lr=trainer.table_lr * finetuning.lr_factor,
    )


def _built(run: TrainedRun, specs: list[TableSpec], config: "RunConfig", made: Approximation) -> Built:
    """Build the model with the new tables and the run's backbone."""
    state = {name: tensor.detach().clone() for name, tensor in made.method.state_dict().items()}
    built = build(config, run.dataset, specs, made.method)
    made.method.load_state_dict(state)  # building starts parameters anew
    with torch.no_grad():
        for weight, rows in zip(built.tables.weights, made.weights, strict=True):
            weight.copy_(rows)
    copy_backbone(run.built.model, built.model)
    return built


def _measure(
    run: TrainedRun, config: "RunConfig", new: RunFolder, record: dict[str, Any], built: Built, finetuning: Finetuning
) -> None:
    """Train on if asked, keep the weights, and compare with the run on the same test rows."""
    if finetuning.steps:
        tuning = _tuning(as_trained(config.trainer, run.record), finetuning, run.dataset.num_rows("train"))
        trainer = Trainer(built, run.dataset, tuning, config.seed, new.path, tries_start=True)
        try:
            trainer.fit()
        finally:
            record |= how_it_went(trainer)
            trainer.close()
    else:
        save_weights(built.model, new.path / CHECKPOINT)
    with torch.no_grad():
        round_rows_(built.tables.method.layout.tables, built.tables.weights)

    def measured(model: nn.Module, split: str) -> Evaluation:
        try:
            return evaluate(model, run.dataset, split, config.trainer.eval_batch_size, torch.device("cpu"))
        except DivergedError as error:
            raise RecembError(
                f"{error}; compress with a finer precision, or from a run whose weights are finite."
            ) from error

    record["metrics"]["valid"] = measured(built.model, "valid").metrics
    after, before = measured(built.model, "test"), measured(run.built.model, "test")
    record["metrics"]["test"] = after.metrics
    write_predictions(new, after.labels, after.logits)
    record["compressed"] = {
        "run": str(run.path),
        "method": run.record["method"],
        "finetuning": dataclasses.asdict(finetuning) if finetuning.steps else None,
        "kept": run.record["kept"],
        "bytes": run.record["bytes"],
        "metrics": {"test": before.metrics},
        "change": _change(before, after),
    }


def _change(before: Evaluation, after: Evaluation) -> dict[str, dict[str, float]]:
    """Say how much two models differ on the same rows, and the 95 % interval that other rows would leave."""
    # In float64, so that confident predictions stay apart.
    probabilities = (torch.sigmoid(each.logits.double()).numpy() for each in (before, after))
    compared = compare_two(after.labels.numpy(), *probabilities)
    return {name: {"mean": each.mean, "low": each.low, "high": each.high} for name, each in compared.items()}
