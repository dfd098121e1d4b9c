"""Batches for one GPU that arrive with their ids turned into rows, while the batch before is still being trained on."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torchrec.distributed.train_pipeline import StagedTrainPipeline
from torchrec.distributed.train_pipeline.pipeline_stage import PipelineStage

from recemb.datasets import Batch
from recemb.tables.collection import CompressedEmbeddingBagCollection
from recemb.tables.looking_up import Asked


class Ahead:
    """Works one batch ahead, on streams of its own: the device is waited for there, while it trains.

    Where ids are checked, left out, or sorted by table, the host needs numbers from the device; it would wait for all
    that was launched before.

    Args:
        collections: whose features the batches hold; not sharded ones, for which torchrec's TrainPipelineSparseDist
            does this.
        device: a GPU.
    """

    def __init__(self, collections: Sequence[CompressedEmbeddingBagCollection], device: torch.device) -> None:
        self._collections = collections
        self._pipeline: Any = StagedTrainPipeline(
            [
                PipelineStage(
                    "copy", lambda batch: batch.to(device, non_blocking=True), torch.cuda.Stream(device, priority=-1)
                ),
                PipelineStage("ask", self._ask, torch.cuda.Stream(device, priority=-1)),
            ]
        )

    def take(self, batches: Iterator[Batch]) -> Batch | None:
        """Give the next batch, None after the last one; its collections know what it asks for.

        Args:
            batches: always the same, of which two are read ahead; in pinned memory they are copied meanwhile.
        """
        ready: _Ready | None = self._pipeline.progress(batches)
        if ready is None:
            return None
        for collection, asked in zip(self._collections, ready.asked, strict=True):
            collection.expect(ready.batch.sparse, asked)
        return ready.batch

    def _ask(self, batch: Batch) -> "_Ready":
        with torch.no_grad():
            return _Ready(batch, [collection.ask(batch.sparse) for collection in self._collections])


class _Ready(NamedTuple):
    """A batch on the device, and what it asks of each collection."""

    batch: Batch
    asked: list[Asked]

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory until a GPU's stream is done with it."""
        self.batch.record_stream(stream)
        for one in self.asked:
            one.record_stream(stream)
