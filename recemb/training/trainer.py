"""The training loop: batches through a model, evaluation on validation rows, the best weights and the state kept."""

import itertools
import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from recemb.datasets import Batch, PreparedDataset
from recemb.options import RecembError
from recemb.tables.collection import CompressedEmbeddingBagCollection
from recemb.tables.precision import round_rows_
from recemb.training.build import Built, trained_beside_rows
from recemb.training.checkpoint import load_weights, save_weights
from recemb.training.evaluation import DivergedError, Evaluation, evaluate, progress_bar, rows_of
from recemb.training.events import EventWriter
from recemb.training.optimizers import Optimizers
from recemb.training.processes import is_first, mean_over_processes, on_first, rank, together, world_size
from recemb.training.record import CHECKPOINT, UNFINISHED
from recemb.training.steps import Steps
from recemb.training.tensorboard import log_evaluation
from recemb.training.trainer_config import TrainerConfig
from recemb.training.unfinished import Unfinished

if TYPE_CHECKING:
    from tqdm import tqdm

# Reading a loss waits for the device, so it is done once in a while and not every step.
_STEPS_PER_LOOK = 20
# The thread that writes events looks at its queue so often at least. A Ctrl-C while it is woken may lose the wake-up,
# and closing the writer would then wait for torch's two minutes.
_SECONDS_TO_FLUSH = 5


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
    stale: int = 0
    """Evaluations since the best one."""

    @property
    def rows_per_second(self) -> float:
        """Training rows a second, evaluation not counted."""
        return self.rows / self.train_seconds if self.train_seconds else 0.0


class Trainer:
    """Trains one model on one data set.

    Args:
        built: the model `(dense (B, K), sparse KeyedJaggedTensor) -> logits (B,)` and its tables, not plain ones.
        dataset: the prepared data.
        config: the options.
        seed: fixes the order of the rows, and what is random in a step.
        folder: where TensorBoard events go, what an unfinished run needs, and the best weights unless said otherwise.
        stage: of a run that trains several times, for bars and events; the last one has none.
        weights: where the best weights go.
        keep_from: passes over the training rows before which no weights count as the best.
        tries_start: the weights that training starts from may be the best.
        resumes: go on from the newest state in the folder, if there is one.
    """

    def __init__(
        self,
        built: Built,
        dataset: PreparedDataset,
        config: TrainerConfig,
        seed: int,
        folder: Path,
        *,
        stage: str = "",
        weights: Path | None = None,
        keep_from: float = 0.0,
        tries_start: bool = False,
        resumes: bool = False,
    ) -> None:
        self.built = built
        self.dataset = dataset
        self.config = config
        self.seed = seed
        self.device = config.torch_device()
        self.stage = stage
        self.weights = weights or folder / CHECKPOINT
        self.keep_from = keep_from
        self.tries_start = tries_start
        self.resumes = resumes
        self.folder = folder
        self.progress = Progress()
        self.unfinished = Unfinished(folder / UNFINISHED, stage or "train", config.keep_checkpoints)
        modules = built.model.modules()
        self.collections = [module for module in modules if isinstance(module, CompressedEmbeddingBagCollection)]
        self.optimizers = Optimizers(
            trained_beside_rows(built.model), self.collections, config.lr, config.weight_decay, config.table_lr
        )
        self.steps = Steps(
            built, self.collections, self.optimizers, self.device, world_size(), pipelined=config.pipelined
        )
        self._writer: EventWriter | None = None
        self._unread: list[Tensor] = []
        self._kept_at = time.monotonic()
        self._batches = len(dataset.batches("train", config.batch_size))
        self._total = min(self._batches * config.epochs, config.steps or math.inf)

    @property
    def writer(self) -> EventWriter | None:
        """Where events go: to TensorBoard in the first process, nowhere in the others."""
        if self._writer is None and is_first():
            # Events after the state that is gone on from would be shown twice.
            self._writer = EventWriter(
                self.folder, purge_step=self.progress.steps or None, flush_secs=_SECONDS_TO_FLUSH
            )
        return self._writer

    def fit(self) -> Progress:
        """Train until validation stops getting better or the epochs are over, then put the best weights back.

        Raises:
            DivergedError: the loss became NaN or infinite; the sentence says where.
            RecembError: another process is gone, or training ended before pruning has settled.
        """
        with together():
            end = self.unfinished.end if self.resumes else None
            if end is not None:
                self.progress = Progress(**end)
            else:
                self._train()
                self.unfinished.note_end(asdict(self.progress))
            if not self.progress.best:
                raise RecembError(
                    f"training ended after {self.progress.epochs:.2f} passes, and weights count only after "
                    f"{self.keep_from:g}, when pruning has settled; train for longer, or lower table.ramp."
                )
            best = self.unfinished.best(self.progress.best_step)
            on_first(lambda: _move(best, self.weights))
            load_weights(self.built.model, self.weights)
        return self.progress

    def evaluate(self, split: str) -> Evaluation:
        """Run the model over a split.

        Raises:
            DivergedError: a prediction is NaN or infinite; the sentence says when.
        """
        self.steps.pause()
        self.built.runs.eval()
        try:
            with together():
                found = evaluate(self.built.runs, self.dataset, split, self.config.eval_batch_size, self.device)
        except DivergedError as error:
            raise DivergedError(self._where_it_broke(str(error), self.progress.steps)) from error
        self.built.runs.train()
        return found

    def round_as_served(self) -> bool:
        """Round the tables' rows to the precisions they are served in, and say whether there are any but fp32.

        Raises:
            DivergedError: a number is too large for its precision.
        """
        rounded = False
        for tables in self.collections:
            layout = tables.method.layout
            if any(table.precision != "fp32" for table in layout.tables):
                with torch.no_grad():
                    weights = tables.weights
                    try:
                        round_rows_(layout.tables, weights)
                    except RecembError as error:
                        raise DivergedError(str(error)) from error
                    tables.write(weights)
                rounded = True
        return rounded

    def close(self) -> None:
        """Write out what TensorBoard has not seen yet."""
        if self._writer is not None:
            self._writer.close()

    def _train(self) -> None:
        try:
            self._take_steps()
        finally:
            self.steps.close()

    def _take_steps(self) -> None:
        start = self._go_on() if self.resumes else 0
        if self.tries_start and not self.progress.steps:
            self._validate()
        stopped = None
        per_epoch = self.config.evaluations_per_epoch
        # Evenly spaced, the last one at the end of the epoch.
        pauses = {-(-self._batches * k // per_epoch) for k in range(1, per_epoch + 1)}
        rows = self.dataset.num_rows("train") * self.config.epochs
        with progress_bar(
            min(rows, int(self._total) * self.config.batch_size), self.stage or "train", initial=self.progress.rows
        ) as bar:
            batches = itertools.islice(self._batches_from(start), int(self._total) - start)
            clock = time.perf_counter()
            while (batch := self._step(batches)) is not None:
                epoch, number = divmod(self.progress.steps - 1, self._batches)
                number += 1
                self.progress.epochs = epoch + number / self._batches
                for collection in self.collections:
                    collection.method.after_step(partial(_weights_of, collection), self.progress.epochs)
                bar.update(rows_of(batch))
                ends = self.progress.steps == self._total
                pause = number in pauses or ends
                if pause or len(self._unread) >= _STEPS_PER_LOOK:
                    self._read_losses(bar)
                self.progress.train_seconds += time.perf_counter() - clock
                if pause and self._validate():
                    stopped = "early"
                if stopped or ends:
                    break
                self._keep_state(looked=not self._unread)
                clock = time.perf_counter()
        self.steps.pause()
        in_full = self.progress.steps == self._batches * self.config.epochs
        self.progress.stopped = stopped or ("epochs" if in_full else "steps")

    def _batches_from(self, step: int) -> Iterator[Batch]:
        """Give the batches after so many steps."""
        for epoch in range(step // self._batches, self.config.epochs):
            yield from self.dataset.batches(
                "train", self.config.batch_size, shuffle=True, seed=self.seed, epoch=epoch,
                share=(rank(), world_size()), start=step % self._batches if epoch == step // self._batches else 0,
                pin_memory=self.device.type == "cuda",
            )  # fmt: skip

    def _step(self, batches: Iterator[Batch]) -> Batch | None:
        """Take a step, and give its batch; None after the last one."""
        if self.config.schedule == "linear":
            self.optimizers.scale_rates(1 - self.progress.steps / self._total)
        # What is random in a step depends on the step and the process, so that a run that was broken off goes on the
        # same on as many processes.
        torch.manual_seed(hash((self.seed, self.progress.steps, rank())) & (2**63 - 1))
        if (done := self.steps.take(batches)) is None:
            return None
        batch, loss = done
        self.progress.steps += 1
        self.progress.rows += rows_of(batch)
        self._unread.append(loss)
        return batch

    def _read_losses(self, bar: "tqdm[Any]") -> None:
        """Look at the losses of the steps since the last look: show them, and stop where one is no number."""
        if not self._unread:
            return
        losses = mean_over_processes(torch.stack(self._unread)).tolist()
        first = self.progress.steps - len(losses) + 1
        self._unread.clear()
        for step, loss in enumerate(losses, start=first):
            if not math.isfinite(loss):
                raise DivergedError(self._where_it_broke(f"the loss became {loss}", step))
        mean = sum(losses) / len(losses)
        best = f", best {self._best_in_words()}" if self.progress.best else ""
        bar.set_postfix_str(f"loss {mean:.4f}{best}", refresh=False)
        self._log("train/loss", mean)
        self._log("train/lr", self.optimizers.lr)

    def tag(self, name: str) -> str:
        """What TensorBoard shows a value of this stage under."""
        return f"{self.stage}/{name}" if self.stage else name

    def _log(self, name: str, value: float) -> None:
        if self.writer is not None:
            self.writer.add_scalar(self.tag(name), value, self.progress.steps)

    def _where_it_broke(self, what: str, step: int) -> str:
        tensors = self.built.model.state_dict().items()
        whole = [(name, tensor) for name, tensor in tensors if type(tensor) is Tensor]  # shards tell less, and hang
        broken = [name for name, weight in whole if not bool(torch.isfinite(weight).all())]
        # A bound of bins past the last one is infinite by design.
        broken = [name for name in broken if not name.endswith("encoder.edges")]
        where = f"; not finite any more: {', '.join(broken[:4])}" + (" and others" if len(broken) > 4 else "")
        return (
            f"{what} at step {step} (epoch {self.progress.epochs:.2f}, lr {self.config.lr:g}, table_lr "
            f"{self.config.table_lr:g}){where if broken else ''}. Lower trainer.table_lr or trainer.lr."
        )

    def _validate(self) -> bool:
        """Evaluate on validation rows, keep the weights if they are the best so far, and say whether to stop."""
        metrics, _, _ = self.evaluate("valid")
        progress, monitor = self.progress, self.config.monitor
        if math.isnan(metrics[monitor]):
            raise RecembError(
                f"{monitor} on validation is not defined, since its rows are all of one class; prepare more rows, or "
                "use trainer.monitor=logloss."
            )
        for name, value in metrics.items():
            if not math.isnan(value):
                self._log(f"valid/{name}", value)
        for name, value in (item for one in self.collections for item in one.method.scalars().items()):
            self._log(f"tables/{name}", value)
        log_evaluation(self)
        if progress.epochs < self.keep_from:
            return False
        sign = 1 if monitor == "logloss" else -1
        if not progress.best or sign * metrics[monitor] < sign * progress.best[monitor]:
            progress.best, progress.best_step = metrics, progress.steps
            progress.stale = 0
            self._save_best()
        else:
            progress.stale += 1
        return progress.stale >= self.config.patience

    def _save_best(self) -> None:
        best = self.unfinished.best(self.progress.steps)
        on_first(lambda: best.parent.mkdir(parents=True, exist_ok=True))
        save_weights(self.built.model, best)
        self.unfinished.forget_other_bests(self.progress.steps)

    def _keep_state(self, looked: bool) -> None:
        """Keep the state where that is due; by the clock only at the steps where losses are looked at."""
        every, minutes = self.config.checkpoint_steps, self.config.checkpoint_minutes
        due = every is not None and self.progress.steps % every == 0
        if not due and looked and minutes is not None:
            due = on_first(lambda: time.monotonic() - self._kept_at > minutes * 60)
        if due:
            self.steps.pause()
            note = asdict(self.progress) | {"methods": [one.method.progress() for one in self.collections]}
            self.unfinished.save(self.progress.steps, self._state(), note)
            self._kept_at = time.monotonic()

    def _state(self) -> dict[str, Any]:
        """Everything that the next step depends on, the note's numbers aside."""
        return {
            **{f"model.{name}": tensor for name, tensor in self.built.model.state_dict().items()},
            **{f"optimizers.{name}": tensor for name, tensor in self.optimizers.tensors(self.built.model).items()},
        }

    def _go_on(self) -> int:
        """Take up the newest state, and say after how many steps it was kept; 0 where there is none."""
        note = self.unfinished.load(self._state())
        if note is None:
            return 0
        for collection, progress in zip(self.collections, note.pop("methods"), strict=True):
            collection.method.resume(progress)
        self.progress = Progress(**note)
        return self.progress.steps

    def _best_in_words(self) -> str:
        return f"valid {self.config.monitor} {self.progress.best[self.config.monitor]:.4f}"


def _weights_of(collection: CompressedEmbeddingBagCollection) -> list[Tensor]:
    return collection.weights


def _move(source: Path, target: Path) -> None:
    """Put the best weights where they belong, if that was not done already."""
    if not source.exists():
        return
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)
