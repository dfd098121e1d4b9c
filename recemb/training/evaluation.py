"""Running a model over a split, in one process or with each doing its part."""

import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from recemb.datasets import Batch, PreparedDataset
from recemb.datasets.batches import share_of
from recemb.options import RecembError
from recemb.training.metrics import binary_metrics
from recemb.training.processes import gather_rows, is_first, on_first, rank, world_size


class DivergedError(RecembError):
    """Training came to numbers that are none: the loss, or a prediction."""


class Evaluation(NamedTuple):
    """What a model makes of a split: the metrics, labels (N,) and logits (N,) in the split's own order."""

    metrics: dict[str, float]
    labels: Tensor
    logits: Tensor


def evaluate(
    model: nn.Module, dataset: PreparedDataset, split: str, batch_size: int, device: torch.device
) -> Evaluation:
    """Run a model, which is in evaluation mode, over a split.

    Every process gets the whole result, the same as if one had done it all.

    Raises:
        DivergedError: a prediction is NaN or infinite.
    """
    batches = dataset.batches(split, batch_size, share=(rank(), world_size()))
    with progress_bar(dataset.num_rows(split), split, leave=False) as bar:
        labels, logits = predict(model, batches, device, bar)
    if wrong := int((~torch.isfinite(logits)).sum()):
        rows = f"{len(logits):,} {'validation' if split == 'valid' else split} rows"
        raise DivergedError(f"predictions came out NaN or infinite on {wrong:,} of {rows}")
    return Evaluation(on_first(lambda: binary_metrics(logits, labels)), labels, logits)


def predict(
    model: nn.Module, batches: Iterable[Batch], device: torch.device, bar: "tqdm[Any] | None" = None
) -> tuple[Tensor, Tensor]:
    """Give labels (N,) and logits (N,) of batches that every process has its part of, in the rows' own order."""
    parts = []
    with torch.no_grad():
        for batch in batches:
            there = batch.to(device)
            logits = model(there.dense, there.sparse).cpu()
            parts.append((batch, torch.stack([batch.labels, logits], dim=1)))
            if bar is not None:
                bar.update(rows_of(batch))
    labels, logits = in_order(parts).view(-1, 2).T.contiguous()
    return labels, logits


def in_order(parts: list[tuple[Batch, Tensor]]) -> Tensor:
    """Give every process something of all rows (N, ...), in the rows' own order.

    Args:
        parts: the batches of a pass, and (B, ...) of what this process has of each.
    """
    if not parts:
        return torch.zeros(0)
    mine = torch.cat([rows[: batch.counted] for batch, rows in parts])
    if world_size() == 1:
        return mine
    counts = [[part_of(rows_of(batch), one) for batch, _ in parts] for one in range(world_size())]
    found = gather_rows(mine, [sum(of_process) for of_process in counts])
    by_batch = zip(*(one.split(of_process) for one, of_process in zip(found, counts, strict=True)), strict=True)
    return torch.cat([part for of_batch in by_batch for part in of_batch])


def rows_of(batch: Batch) -> int:
    """How many rows a batch has in all processes."""
    return len(batch.labels) if batch.total is None else batch.total


def part_of(total: int, process: int) -> int:
    """How many of a batch's rows a process has; see `PreparedDataset.batches`."""
    begin, end = share_of(total, process, world_size())
    return end - begin


def progress_bar(total: int, what: str, unit: str = " rows", leave: bool = True, initial: int = 0) -> "tqdm[Any]":
    """Show on stderr how far something has come."""
    # A log file gets a line every ten seconds, a terminal a bar that moves; what takes no time gets none.
    pace = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(
        total=total, desc=f"{what:>5}", unit=unit, unit_scale=True, leave=leave, mininterval=pace, initial=initial,
        delay=0.0 if leave else 2.0, disable=not is_first(),
    )  # fmt: skip
