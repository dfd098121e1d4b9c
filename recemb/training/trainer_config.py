"""The options of training."""

import dataclasses
import logging
import math
from dataclasses import dataclass

import torch

from recemb.options import RecembError, option
from recemb.tables.storage import FusedOptimizer
from recemb.training.processes import local_rank
from recemb.training.sharding import check_sharding

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class TrainerConfig:
    """Options of training."""

    epochs: int = option(5, "passes over the training rows at most")
    batch_size: int = option(1024, "rows a step")
    eval_batch_size: int = option(16384, "rows a step when evaluating")
    lr: float = option(3e-3, "learning rate of Adam, which trains everything but the tables' rows")
    weight_decay: float = option(0.0, "decoupled weight decay of Adam (AdamW)")
    table_optimizer: str = option("rowwise_adagrad", "optimizer of the tables' rows: rowwise_adagrad, adagrad or sgd")
    table_lr: float = option(FusedOptimizer().lr, "learning rate of the tables' rows")
    table_eps: float = option(
        FusedOptimizer().eps, "epsilon of the tables' Adagrad: damps the first steps of ids seen once"
    )
    schedule: str = option("linear", "learning rates over the run: linear (falling to zero) or constant")
    steps: int | None = option(None, "steps after which training ends, if the epochs are not over before")
    evaluations_per_epoch: int = option(8, "evaluations on validation rows in one epoch")
    patience: int = option(6, "evaluations without a better result after which training stops")
    monitor: str = option("logloss", "what is better on validation rows: logloss or auc")
    device: str = option("auto", "cpu, cuda, or auto: cuda where there is one")
    sharding: str = option(
        "none",
        "how the processes that torchrun starts share the tables: auto, table_wise, row_wise, column_wise or "
        "data_parallel",
    )
    cache_share: float | None = option(
        None, "share of a sharded table's rows that a GPU keeps at hand, the others in the host's memory; null for all"
    )
    pipeline: bool | None = option(
        None,
        "turn the next batch's ids into rows, and share them out where tables are sharded, while one is trained on; "
        "null for on GPUs",
    )
    checkpoint_minutes: float | None = option(
        10.0, "minutes after which the state is kept, to go on from with resume=true; null for never"
    )
    checkpoint_steps: int | None = option(None, "steps after which the state is kept, beside the minutes")
    keep_checkpoints: int = option(2, "states that are kept while training")
    projector: str | None = option(
        None, "feature whose vectors TensorBoard's projector shows once trained, of its 10,000 most frequent ids"
    )

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "eval_batch_size", "evaluations_per_epoch", "patience", "steps",
                     "checkpoint_steps", "keep_checkpoints"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RecembError(f"trainer.{name}={value} is too small; it must be at least 1.")
        if self.checkpoint_minutes is not None and not 0 < self.checkpoint_minutes < math.inf:
            raise RecembError(
                f"trainer.checkpoint_minutes={self.checkpoint_minutes} must be a positive number, or null."
            )
        if self.cache_share is not None and not 0 < self.cache_share < 1:
            raise RecembError(f"trainer.cache_share={self.cache_share} must lie between 0 and 1, or be null.")
        for name in ("lr", "table_lr", "table_eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise RecembError(f"trainer.{name}={getattr(self, name)} must be a positive number.")
        if not 0 <= self.weight_decay < math.inf:
            raise RecembError(f"trainer.weight_decay={self.weight_decay} must be zero or a positive number.")
        if self.monitor not in ("logloss", "auc"):
            raise RecembError(f"trainer.monitor={self.monitor} is not known; choose logloss or auc.")
        if self.schedule not in ("linear", "constant"):
            raise RecembError(f"trainer.schedule={self.schedule} is not known; choose linear or constant.")
        if self.device not in ("auto", "cpu", "cuda"):
            raise RecembError(f"trainer.device={self.device} is not known; choose auto, cpu or cuda.")
        self.fused_optimizer().kwargs()
        check_sharding(self.sharding, self.fused_optimizer(), self.cache_share)

    def with_defined_monitor(self, positive_rate: float) -> "TrainerConfig":
        """Monitor logloss where validation rows, of this share of ones, all have one label and so no AUC."""
        if self.monitor != "auc" or 0 < positive_rate < 1:
            return self
        log.warning("the validation rows all have one label and so no AUC; monitoring logloss instead.")
        return dataclasses.replace(self, monitor="logloss")

    def fused_optimizer(self) -> FusedOptimizer:
        """The optimizer of the tables' rows."""
        return FusedOptimizer(self.table_optimizer, self.table_lr, self.table_eps)

    @property
    def pipelined(self) -> bool:
        """Whether steps overlap."""
        return self.torch_device().type == "cuda" if self.pipeline is None else self.pipeline

    def torch_device(self) -> torch.device:
        """The device that `device` stands for on this machine."""
        if self.device == "cuda" and not torch.cuda.is_available():
            raise RecembError("trainer.device=cuda was asked for, but torch finds no CUDA device; use device=cpu.")
        if self.device == "cpu" or not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", local_rank() % torch.cuda.device_count())
