"""What the vectors of ids are worth: from what ids tell about the label, or from what a trained table makes of them."""

from collections.abc import Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from recemb.datasets import PreparedDataset
from recemb.inspection.records import DatasetFacts
from recemb.packing.serving import ServingTables, full_vectors
from recemb.tables.allocation import Worth, block_stops
from recemb.tables.auto import by_frequency, learned
from recemb.tables.base import TableSpec
from recemb.training.build import Built

_BATCHES = 64
_LEAST_TOLD = 0.02  # of what the average feature tells


def worth_by_labels(specs: Sequence[TableSpec], facts: DatasetFacts) -> list[Worth]:
    """Say what ids are worth by what their feature alone tells about the label on validation rows.

    A feature that tells nothing alone may still tell something with others, so that none gets less than a share of what
    the average one does. Within a feature ids are worth what their frequencies say (`by_frequency`).
    """
    gains = {one.name: one.label.logloss_gain for one in facts.features}
    if any(gain is None for gain in gains.values()):
        return [by_frequency(spec) for spec in specs]
    rows = facts.rows["train"]
    told = np.array([max(gains.get(spec.name) or 0.0, 0.0) for spec in specs])  # without values it tells nothing
    told = np.maximum(told, max(float(told.mean()) * _LEAST_TOLD, 1e-9))
    return [by_frequency(spec, worth=float(gain) * rows) for spec, gain in zip(specs, told, strict=True)]


def worth_of_trained(
    built: Built, specs: Sequence[TableSpec], dataset: PreparedDataset, batch_size: int, seed: int
) -> list[Worth]:
    """Say what ids are worth by what trained full tables make of them.

    Moving a vector by d raises the loss of a row by d' H d / 2, H being the curvature (Gauss-Newton) on average over
    training rows. So vectors, less their mean, are scaled by the root of H, and what a direction among them carries,
    each id counted as often as it is looked up, is what leaving it out costs.

    Of what was learned from few rows only a part holds on others (`recemb.tables.auto.learned`).

    Args:
        built: the model with the best weights, full tables in it.
        specs: of the tables.
        dataset: the prepared data.
        batch_size: rows that are looked at together.
        seed: of which training rows are looked at.
    """
    vectors = full_vectors(ServingTables(built.tables.method, built.tables.weights))
    lookups = [spec.popularity if spec.counts is None else spec.counts.double() for spec in specs]
    means = [
        (counts @ of_spec.double() / counts.sum().clamp(min=1)).float()
        for counts, of_spec in zip(lookups, vectors, strict=True)
    ]
    worths = []
    for spec, counts, of_spec, mean, curvature in zip(
        specs, lookups, vectors, means, curvatures(built, specs, dataset, batch_size, seed), strict=True
    ):
        weight = counts * torch.from_numpy(learned(counts.numpy()))
        values, directions = torch.linalg.eigh(curvature)
        scaled = (of_spec - mean).double() @ (directions * values.clamp(min=0).sqrt())
        _, axes = torch.linalg.eigh(scaled.T @ (scaled * weight.unsqueeze(1)))  # ascending
        losses = (scaled @ axes.flip(1)).square() * weight.unsqueeze(1) / 2
        stops = block_stops(spec.num_embeddings)
        worths.append(Worth(stops, np.add.reduceat(losses.numpy(), np.concatenate([[0], stops[:-1]]), axis=0)))
    return worths


def curvatures(
    built: Built,
    specs: Sequence[TableSpec],
    dataset: PreparedDataset,
    batch_size: int,
    seed: int,
    batches: int = _BATCHES,
) -> list[Tensor]:
    """Give for each table the curvature (D, D) float64 of a row's loss by its vector, on average over training rows."""
    built.model.eval()
    device = next(built.model.parameters()).device
    dims = [spec.embedding_dim for spec in specs]
    sums = [torch.zeros(dim, dim, dtype=torch.float64) for dim in dims]
    rows = 0
    for batch in islice(dataset.batches("train", batch_size, shuffle=True, seed=seed), batches):
        there = batch.to(device)
        with torch.no_grad():
            vectors = built.tables(there.sparse).values()
        vectors.requires_grad_()
        logits = built.model.head(there.dense, vectors)  # type: ignore[operator]
        (slopes,) = torch.autograd.grad(logits.sum(), vectors)
        probability = torch.sigmoid(logits.detach()).double().unsqueeze(1)
        for total, slope in zip(sums, slopes.double().split(dims, dim=1), strict=True):
            total += (slope.T @ (slope * (probability * (1 - probability)))).cpu()
        rows += len(logits)
    return [total / max(rows, 1) for total in sums]
