"""The training loop: batches through a model, evaluation on validation rows, the best weights kept."""

import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from recemb.datasets import Batch, PreparedDataset
from recemb.options import RecembError, option
from recemb.tables.collection import CompressedEmbeddingBagCollection
from recemb.tables.storage import FusedOptimizer, FusedTables
from recemb.training.checkpoint import load_weights, save_weights
from recemb.training.metrics import binary_metrics
from recemb.training.record import CHECKPOINT

# Reading a loss waits for the device, so it is done once in a while and not every step.
_STEPS_PER_LOOK = 20


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

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "eval_batch_size", "evaluations_per_epoch", "patience"):
            if getattr(self, name) < 1:
                raise RecembError(f"trainer.{name}={getattr(self, name)} is too small; it must be at least 1.")
        if self.steps is not None and self.steps < 1:
            raise RecembError(f"trainer.steps={self.steps} is too small; it must be at least 1.")
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

    def fused_optimizer(self) -> FusedOptimizer:
        """The optimizer of the tables' rows."""
        return FusedOptimizer(self.table_optimizer, self.table_lr, self.table_eps)

    def torch_device(self) -> torch.device:
        """The device that `device` stands for on this machine."""
        if self.device == "cuda" and not torch.cuda.is_available():
            raise RecembError("trainer.device=cuda was asked for, but torch finds no CUDA device; use device=cpu.")
        return torch.device("cuda" if self.device != "cpu" and torch.cuda.is_available() else "cpu")


@dataclass
class Progress:
    """What training has come to, as the run record states it; complete at every moment."""

    steps: int = 0
    epochs: float = 0.0
    best_step: int = 0
    stopped: str | None = None
    train_seconds: float = 0.0
    rows: int = 0
    best: dict[str, float] = field(default_factory=dict)

    @property
    def rows_per_second(self) -> float:
        """Training rows a second, evaluation not counted."""
        return self.rows / self.train_seconds if self.train_seconds else 0.0


class Evaluation(NamedTuple):
    """What a model makes of a split: the metrics, labels (N,) and logits (N,) in the split's own order."""

    metrics: dict[str, float]
    labels: Tensor
    logits: Tensor


def evaluate(
    model: nn.Module, dataset: PreparedDataset, split: str, batch_size: int, device: torch.device
) -> Evaluation:
    """Run a model, which is in evaluation mode, over a split."""
    labels, logits = [], []
    with torch.no_grad(), progress_bar(dataset.num_rows(split), split, leave=False) as bar:
        for batch in dataset.batches(split, batch_size):
            there = batch.to(device)
            logits.append(model(there.dense, there.sparse).cpu())
            labels.append(batch.labels)
            bar.update(len(batch.labels))
    return Evaluation(binary_metrics(torch.cat(logits), torch.cat(labels)), torch.cat(labels), torch.cat(logits))


class Trainer:
    """Trains one model on one data set.

    Args:
        model: `(dense (B, K), sparse KeyedJaggedTensor) -> logits (B,)`, its tables fused.
        dataset: the prepared data.
        config: the options.
        seed: fixes the order of the rows.
        folder: where TensorBoard events go, and the best weights unless said otherwise.
        stage: of a run that trains several times, for bars and events; the last one has none.
        weights: where the best weights go.
        keep_from: passes over the training rows before which no weights count as the best.
        tries_start: the weights that training starts from may be the best.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: PreparedDataset,
        config: TrainerConfig,
        seed: int,
        folder: Path,
        *,
        stage: str = "",
        weights: Path | None = None,
        keep_from: float = 0.0,
        tries_start: bool = False,
    ) -> None:
        self.model = model
        self.dataset = dataset
        self.config = config
        self.seed = seed
        self.device = config.torch_device()
        self.stage = stage
        self.weights = weights or folder / CHECKPOINT
        self.keep_from = keep_from
        self.tries_start = tries_start
        self.writer = SummaryWriter(str(folder))
        self.progress = Progress()
        self.tables = [module for module in model.modules() if isinstance(module, FusedTables)]
        collections = [m for m in model.modules() if isinstance(m, CompressedEmbeddingBagCollection)]
        # The weights are looked up by name once, not at every step.
        self.methods = [(collection.method, collection.weights) for collection in collections]
        own = [optimizer for method, _ in self.methods for optimizer in method.optimizers()]
        of_methods = {id(one) for optimizer in own for group in optimizer.param_groups for one in group["params"]}
        dense = [one for one in model.parameters() if one.requires_grad and id(one) not in of_methods]
        self.optimizer = torch.optim.AdamW(dense, lr=config.lr, weight_decay=config.weight_decay)
        self.optimizers = [self.optimizer, *own]
        self._rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self._unread: list[Tensor] = []
        self._stale = 0

    def fit(self) -> Progress:
        """Train until validation stops getting better or the epochs are over, then put the best weights back.

        Raises:
            RecembError: the loss became NaN or infinite; the sentence says where.
        """
        config = self.config
        batches = len(self.dataset.batches("train", config.batch_size))
        # Evenly spaced, the last one at the end of the epoch.
        pauses = {-(-batches * k // config.evaluations_per_epoch) for k in range(1, config.evaluations_per_epoch + 1)}
        total = batches * config.epochs
        if config.steps is not None and config.steps < total:
            total = config.steps
            pauses |= {(total - 1) % batches + 1}
        stopped = "epochs"
        if self.tries_start:
            self._validate()
        with progress_bar(
            min(self.dataset.num_rows("train") * config.epochs, total * config.batch_size), self.stage or "train"
        ) as bar:
            for epoch in range(config.epochs):
                epoch_batches = self.dataset.batches(
                    "train", config.batch_size, shuffle=True, seed=self.seed, epoch=epoch
                )
                clock = time.perf_counter()
                for number, batch in enumerate(epoch_batches, start=1):
                    if config.schedule == "linear":
                        self._scale_rates(1 - self.progress.steps / total)
                    self._step(batch)
                    self.progress.epochs = epoch + number / batches
                    for method, weights in self.methods:
                        method.after_step(weights, self.progress.epochs)
                    bar.update(len(batch.labels))
                    if number in pauses or len(self._unread) >= _STEPS_PER_LOOK:
                        self._read_losses(bar)
                    if number in pauses:
                        self.progress.train_seconds += time.perf_counter() - clock
                        if self._validate():
                            stopped = "early"
                            break
                        clock = time.perf_counter()
                    if self.progress.steps == total < batches * config.epochs:
                        stopped = "steps"
                        break
                if stopped != "epochs":
                    break
        self.progress.stopped = stopped
        load_weights(self.model, self.weights)
        return self.progress

    def evaluate(self, split: str) -> Evaluation:
        """Run the model over a split."""
        self.model.eval()
        found = evaluate(self.model, self.dataset, split, self.config.eval_batch_size, self.device)
        self.model.train()
        return found

    def close(self) -> None:
        """Write out what TensorBoard has not seen yet."""
        self.writer.close()

    def _scale_rates(self, scale: float) -> None:
        for optimizer, rates in zip(self.optimizers, self._rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * scale
        for tables in self.tables:
            tables.set_lr(self.config.table_lr * scale)

    def _step(self, batch: Batch) -> None:
        batch = batch.to(self.device)
        loss = F.binary_cross_entropy_with_logits(self.model(batch.dense, batch.sparse), batch.labels)
        total = loss
        for method, _ in self.methods:
            if (penalty := method.penalty()) is not None:
                total = total + penalty
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        total.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        self.progress.steps += 1
        self.progress.rows += len(batch.labels)
        self._unread.append(loss.detach())

    def _read_losses(self, bar: "tqdm[Any]") -> None:
        """Look at the losses of the steps since the last look: show them, and stop where one is no number."""
        if not self._unread:
            return
        losses = torch.stack(self._unread).tolist()
        first = self.progress.steps - len(losses) + 1
        self._unread.clear()
        for step, loss in enumerate(losses, start=first):
            if not math.isfinite(loss):
                raise RecembError(self._where_it_broke(step, loss))
        mean = sum(losses) / len(losses)
        best = f", best {self._best_in_words()}" if self.progress.best else ""
        bar.set_postfix_str(f"loss {mean:.4f}{best}", refresh=False)
        self._log("train/loss", mean)
        self._log("train/lr", self.optimizer.param_groups[0]["lr"])

    def _log(self, name: str, value: float) -> None:
        self.writer.add_scalar(f"{self.stage}/{name}" if self.stage else name, value, self.progress.steps)

    def _where_it_broke(self, step: int, loss: float) -> str:
        broken = [name for name, weight in self.model.state_dict().items() if not bool(torch.isfinite(weight).all())]
        # A bound of bins past the last one is infinite by design.
        broken = [name for name in broken if not name.endswith("encoder.edges")]
        where = f"; not finite any more: {', '.join(broken[:4])}" + (" and others" if len(broken) > 4 else "")
        return (
            f"the loss became {loss} at step {step} (epoch {self.progress.epochs:.2f}, lr {self.config.lr:g}, table_lr "
            f"{self.config.table_lr:g}){where if broken else ''}. Lower trainer.table_lr or trainer.lr."
        )

    def _validate(self) -> bool:
        """Evaluate on validation rows, keep the weights if they are the best so far, and say whether to stop."""
        metrics, _, _ = self.evaluate("valid")
        progress, monitor = self.progress, self.config.monitor
        for name, value in metrics.items():
            self._log(f"valid/{name}", value)
        for name, value in (item for method, _ in self.methods for item in method.scalars().items()):
            self._log(f"tables/{name}", value)
        if math.isnan(metrics[monitor]):
            raise RecembError(
                f"{monitor} on validation is no number: its rows are all of one class, or the weights are broken; "
                "prepare more rows, or use trainer.monitor=logloss."
            )
        if progress.epochs < self.keep_from:
            return False
        sign = 1 if monitor == "logloss" else -1
        if not progress.best or sign * metrics[monitor] < sign * progress.best[monitor]:
            progress.best, progress.best_step = metrics, progress.steps
            self._stale = 0
            save_weights(self.model, self.weights)
        else:
            self._stale += 1
        return self._stale >= self.config.patience

    def _best_in_words(self) -> str:
        return f"valid {self.config.monitor} {self.progress.best[self.config.monitor]:.4f}"


def progress_bar(total: int, what: str, unit: str = " rows", leave: bool = True) -> "tqdm[Any]":
    """Show on stderr how far something has come."""
    # A log file gets a line every ten seconds, a terminal a bar that moves; what takes no time gets none.
    pace = 0.1 if sys.stderr.isatty() else 10.0
    delay = 0.0 if leave else 2.0
    return tqdm(total=total, desc=f"{what:>5}", unit=unit, unit_scale=True, leave=leave, mininterval=pace, delay=delay)
