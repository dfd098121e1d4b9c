"""Batches that arrive with their ids turned into rows, while the batch before is still being trained on."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch

from recemb.datasets import Batch
from recemb.tables.collection import CompressedEmbeddingBagCollection
from recemb.tables.looking_up import Asked


class Ahead:
    """Works one batch ahead, on a thread and, for a GPU, a stream of its own.

    Where ids are checked, left out, or sorted by table, the host needs numbers from the device. It would wait for all
    that was launched before; here a thread waits, and only for what concerns the batch.

    Args:
        collections: whose features the batches hold; not sharded ones, for which torchrec's TrainPipelineSparseDist
            does this.
        device: where they are.
    """

    def __init__(self, collections: Sequence[CompressedEmbeddingBagCollection], device: torch.device) -> None:
        self._collections = collections
        self._device = device
        self._stream = torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._batches: Iterator[Batch] | None = None
        self._next: Future[_Ready | None] | None = None

    def take(self, batches: Iterator[Batch]) -> Batch | None:
        """Give the next batch, None after the last one; its collections know what it asks for.

        The batch is to be handed to the model as it is: a copy of it is another one, whose ids would be turned anew.

        Args:
            batches: in the host's memory, for a GPU pinned, so that they are copied meanwhile; one is read ahead. Other
                ones than before are begun with at once, and what was read ahead of those before is forgotten.

        Raises:
            Exception: whatever went wrong with the batch.
        """
        if self._next is None or batches is not self._batches:
            if self._stream is not None:  # what ids are turned into rows by may have been made just now
                self._stream.wait_stream(torch.cuda.current_stream(self._device))
            self._batches, self._next = batches, self._worker.submit(self._prepare, batches)
        ready = self._next.result()
        if ready is None:
            return None
        self._next = self._worker.submit(self._prepare, batches)
        if ready.done is not None:
            here = torch.cuda.current_stream(self._device)
            ready.done.wait(here)
            ready.batch.record_stream(here)
            for asked in ready.asked:
                asked.record_stream(here)
        for collection, asked in zip(self._collections, ready.asked, strict=True):
            collection.expect(ready.batch.sparse, asked)
        return ready.batch

    def close(self) -> None:
        """Forget what was read ahead, and end the thread."""
        self._worker.shutdown()
        self._next = self._batches = None

    def _prepare(self, batches: Iterator[Batch]) -> "_Ready | None":
        batch = next(batches, None)
        if batch is None:
            return None
        with torch.no_grad():
            if self._stream is None:
                return _Ready(batch, self._ask(batch), None)
            with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
                there = batch.to(self._device, non_blocking=True)
                return _Ready(there, self._ask(there), self._stream.record_event())

    def _ask(self, batch: Batch) -> list[Asked]:
        return [collection.ask(batch.sparse) for collection in self._collections]


class _Ready(NamedTuple):
    """A batch on the device, what it asks of each collection, and on a GPU when both are there."""

    batch: Batch
    asked: list[Asked]
    done: torch.cuda.Event | None
