"""Batches for one GPU that arrive with their ids turned into rows, while the batch before is still being trained on."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch

from recemb.datasets import Batch
from recemb.tables.collection import CompressedEmbeddingBagCollection
from recemb.tables.looking_up import Asked


class Ahead:
    """Works one batch ahead, on a thread and a stream of its own.

    Where ids are checked, left out, or sorted by table, the host needs numbers from the device. It would wait for all
    that was launched before; here a thread waits, and only for what concerns the batch.

    Args:
        collections: whose features the batches hold; not sharded ones, for which torchrec's TrainPipelineSparseDist
            does this.
        device: a GPU.
    """

    def __init__(self, collections: Sequence[CompressedEmbeddingBagCollection], device: torch.device) -> None:
        self._collections = collections
        self._device = device
        self._stream = torch.cuda.Stream(device, priority=-1)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._batches: Iterator[Batch] | None = None
        self._next: Future[_Ready | None] | None = None

    def take(self, batches: Iterator[Batch]) -> Batch | None:
        """Give the next batch, None after the last one; its collections know what it asks for.

        Args:
            batches: in the host's memory, pinned so that they are copied meanwhile; one is read ahead. Others than
                before are begun with at once, and what was read ahead of those before is forgotten.

        Raises:
            Exception: whatever went wrong with the batch.
        """
        if self._next is None or batches is not self._batches:
            self._batches, self._next = batches, self._worker.submit(self._prepare, batches)
        ready = self._next.result()
        if ready is None:
            return None
        self._next = self._worker.submit(self._prepare, batches)
        here = torch.cuda.current_stream(self._device)
        ready.done.wait(here)
        ready.batch.record_stream(here)
        for collection, asked in zip(self._collections, ready.asked, strict=True):
            asked.record_stream(here)
            collection.expect(ready.batch.sparse, asked)
        return ready.batch

    def _prepare(self, batches: Iterator[Batch]) -> "_Ready | None":
        batch = next(batches, None)
        if batch is None:
            return None
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream), torch.no_grad():
            there = batch.to(self._device, non_blocking=True)
            asked = [collection.ask(there.sparse) for collection in self._collections]
            return _Ready(there, asked, self._stream.record_event())


class _Ready(NamedTuple):
    """A batch on the device, what it asks of each collection, and when both are there."""

    batch: Batch
    asked: list[Asked]
    done: torch.cuda.Event
