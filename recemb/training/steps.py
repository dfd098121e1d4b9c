"""Taking training steps: one batch after the other, or with the next batch on its way while one is trained on."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.proxy import TraceError
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from recemb.datasets import Batch
from recemb.options import RecembError
from recemb.tables.collection import CompressedEmbeddingBagCollection
from recemb.tables.sharded import ShardedTables
from recemb.training.ahead import Ahead
from recemb.training.build import Built
from recemb.training.evaluation import rows_of
from recemb.training.optimizers import Optimizers

# It asks for streams, which a CPU has none of, at every batch.
logging.getLogger("torchrec.distributed.train_pipeline.postproc").setLevel(logging.ERROR)


class Steps:
    """Takes steps, all processes together, each with its part of a batch.

    Args:
        built: the model.
        collections: its tables.
        optimizers: of the model.
        device: where it is.
        processes: how many take each step together.
        pipelined: the next batch is moved to the device and its ids are turned into rows while one is trained on. Of
            sharded tables torchrec's TrainPipelineSparseDist also shares them out, and moves the batch after the next.
    """

    def __init__(
        self,
        built: Built,
        collections: Sequence[CompressedEmbeddingBagCollection],
        optimizers: Optimizers,
        device: torch.device,
        processes: int = 1,
        *,
        pipelined: bool = False,
    ) -> None:
        self._built = built
        self._collections = collections
        self._optimizers = optimizers
        self._device = device
        self._processes = processes
        self._pipeline: Any = None
        self._ahead: Ahead | None = None
        self._paused = False
        if pipelined and not any(isinstance(one.tables, ShardedTables) for one in collections):
            self._ahead = Ahead(collections, device)
        elif pipelined:
            self._pipeline = TrainPipelineSparseDist(
                built.runs,
                cast(Any, optimizers),
                device,
                pipeline_postproc=True,
                custom_model_fwd=cast(Any, self._lose),
            )

    def take(self, batches: Iterator[Batch]) -> tuple[Batch, Tensor] | None:
        """Take one step; always with the same batches, of which a pipeline reads two ahead.

        Returns:
            The batch, and the loss before the step, detached, whose mean over the processes is that of the whole batch;
            None after the last batch.

        Raises:
            RecembError: a pipeline cannot follow how the model calls its tables.
        """
        if self._pipeline is not None:
            if self._paused:
                self._go_on()
            try:
                return cast(tuple[Batch, Tensor], self._pipeline.progress(batches))
            except StopIteration:
                return None
            except TraceError as error:
                raise RecembError(
                    f"the next batch cannot be prepared ahead, because the model decides by values how it calls its "
                    f"tables ({error}); pass trainer.pipeline=false."
                ) from error
        if self._ahead is not None:
            batch = self._ahead.take(batches)
        else:
            batch = next(batches, None)
            batch = None if batch is None else batch.to(self._device)
        if batch is None:
            return None
        objective, done = self._lose(batch)
        self._optimizers.zero_grad()
        objective.backward()
        self._optimizers.step()
        return done

    def close(self) -> None:
        """Forget batches that were read ahead, after the last step."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def pause(self) -> None:
        """Give the model back, so that it can be run or saved; the next step goes on where this one was."""
        if self._pipeline is not None:
            self._pipeline.detach()
            self._paused = True

    def _go_on(self) -> None:
        self._pipeline.attach()
        if self._pipeline.contexts:
            # attach() shares the waiting batch out anew, and leaves it with the answers of the first time.
            self._pipeline.wait_sparse_data_dist(self._pipeline.contexts[0])
        self._paused = False

    def _lose(self, batch: Batch) -> tuple[Tensor, tuple[Batch, Tensor]]:
        """Run the model: what is to be made small, then what `take` returns."""
        logits, counted = self._built.runs(batch.dense, batch.sparse), batch.counted
        if self._processes == 1:
            loss = F.binary_cross_entropy_with_logits(logits, batch.labels)
        else:
            # Gradients are averaged over processes, which may have differently many rows that count, or none.
            loss = F.binary_cross_entropy_with_logits(logits[:counted], batch.labels[:counted], reduction="sum")
            loss = loss * (self._processes / rows_of(batch))
        objective = loss
        for collection in self._collections:
            if (penalty := collection.method.penalty()) is not None:
                objective = objective + penalty
        return objective, (batch, loss.detach())
