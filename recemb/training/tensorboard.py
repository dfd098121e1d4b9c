"""What TensorBoard shows of tables, whatever the method: norms, what pruning leaves, and the vectors of one feature.

Everything is read off the vectors that the model gets: single ids are looked up as bags of one. Where tables are
sharded that takes all processes, which is why all of them come here and only the first one has a writer.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.datasets import PreparedDataset
from recemb.datasets.raw_values import RawValues
from recemb.options import RecembError
from recemb.tables.collection import CompressedEmbeddingBagCollection
from recemb.training.processes import on_first
from recemb.training.record import PROJECTOR

if TYPE_CHECKING:
    from recemb.training.trainer import Trainer

PROJECTED_IDS = 10_000
"""Ids that the projector shows at most, which a browser still turns around smoothly."""
SAMPLED_IDS = 2048
"""Ids of a table whose norms are looked at, evenly from the most frequent to the rarest."""
_BINS = 30


def check_projector(feature: str | None, dataset: PreparedDataset) -> None:
    """Raise unless the projector can show this feature, or none is asked for."""
    if feature is None:
        return
    found = next((one for one in dataset.features if one.name == feature), None)
    if found is None:
        names = ", ".join(one.name for one in dataset.features)
        raise RecembError(
            f"trainer.projector={feature} is no categorical feature of the data set; choose one of {names}."
        )
    if found.raw:
        raise RecembError(
            f"trainer.projector={feature} shows the most frequent values, which are not known without a vocabulary; "
            "prepare the data set with dataset.vocabulary=frequency, or leave the option out."
        )


def log_evaluation(trainer: "Trainer") -> None:
    """Show norms of each table's vectors, and where a method prunes, how much of each table; all processes together."""
    for collection in trainer.collections:
        vectors = _sampled(trainer, collection)
        writer, step = trainer.writer, trainer.progress.steps
        if writer is None:
            continue
        for name, sampled in vectors.items():
            norms = sampled.double().norm(dim=1)  # in float32 squares of large numbers are infinite
            norms = norms[norms.isfinite()]  # of ids that no row has looked up yet, weights may be broken
            if norms.numel():
                writer.add_histogram(trainer.tag(f"norms/{name}"), norms, step, bins=_BINS)
        if collection.method.config.learns:
            pruned = {name: pruned_share(sampled) for name, sampled in vectors.items()}
            for name, share in pruned.items():
                writer.add_scalar(trainer.tag(f"pruned/{name}"), share, step)
            shares = torch.tensor(list(pruned.values()))
            writer.add_histogram(trainer.tag("tables/pruned_by_feature"), shares, step, bins=_BINS)


def log_end(trainer: "Trainer") -> None:
    """Show what each table kept, and the vectors of `trainer.projector`; all processes together.

    Raises:
        RecembError: the folder cannot be written, or the vocabulary is damaged.
    """
    for collection in trainer.collections:
        if trainer.writer is not None:
            for name, share in kept_shares(collection).items():
                trainer.writer.add_scalar(trainer.tag(f"kept/{name}"), share, trainer.progress.steps)
    if trainer.config.projector is not None:
        _project(trainer, trainer.config.projector)


def pruned_share(vectors: Tensor) -> float:
    """Say which share of the floats of vectors (n, D) was pruned: those that are zero, or the unknown's.

    Args:
        vectors: those of id 0, the unknown's, and of others.
    """
    own = (vectors != vectors[0]).any(dim=1, keepdim=True)
    own[0] = True
    return 1 - float(((vectors != 0) & own).double().mean())


def kept_shares(collection: CompressedEmbeddingBagCollection) -> dict[str, float]:
    """Give serving bytes over those of the full table, by table; those that share rows with others are left out."""
    layout, specs = collection.method.layout, collection.specs
    sizes = layout.bytes_per_table(specs)
    readers: dict[int, set[int]] = {}
    for number, tables in enumerate(layout.lookups):
        for table in tables:
            readers.setdefault(table, set()).add(number)
    alone = [all(len(readers[table]) == 1 for table in tables) for tables in layout.lookups]
    return {spec.name: sizes[spec.name] / spec.full_bytes for spec, own in zip(specs, alone, strict=True) if own}


@torch.no_grad()
def vectors_of(
    collection: CompressedEmbeddingBagCollection, ids: Mapping[str, Tensor], device: torch.device
) -> dict[str, Tensor]:
    """Look single ids up, in all processes the same.

    Args:
        collection: the tables, in evaluation mode.
        ids: (n,) int64 by feature; what is left out is not looked up.
        device: where the tables are.

    Returns:
        (n, D) float32 on the CPU, by feature.
    """
    rows = max(len(one) for one in ids.values())
    nothing = torch.empty(0, dtype=torch.int64)
    given = [ids.get(feature, nothing) for feature in collection.features]
    lengths = torch.stack([torch.arange(rows) < len(one) for one in given]).long()
    batch = KeyedJaggedTensor(keys=collection.features, values=torch.cat(given), lengths=lengths.flatten())
    pooled = collection(batch.to(device))
    return {feature: pooled[feature][: len(one)].float().cpu() for feature, one in ids.items()}


def _looked_up(
    trainer: "Trainer", collection: CompressedEmbeddingBagCollection, ids: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    trainer.steps.pause()
    trainer.built.runs.eval()
    vectors = vectors_of(collection, ids, trainer.device)
    trainer.built.runs.train()
    return vectors


def _sampled(trainer: "Trainer", collection: CompressedEmbeddingBagCollection) -> dict[str, Tensor]:
    """Look a sample of each table's ids up, id 0 first: (n, D) by table."""
    names = {spec.feature_names[0]: spec.name for spec in collection.specs}
    ids = {
        spec.feature_names[0]: torch.linspace(
            0, spec.num_embeddings - 1, min(spec.num_embeddings, SAMPLED_IDS), dtype=torch.float64
        ).long()
        for spec in collection.specs
    }
    return {names[feature]: vectors for feature, vectors in _looked_up(trainer, collection, ids).items()}


def _project(trainer: "Trainer", feature: str) -> None:
    """Write the vectors of a feature's most frequent ids, what they stand for and how often they were seen."""
    found = next(one for one in trainer.dataset.features if one.name == feature)
    ids = torch.arange(min(found.num_embeddings, PROJECTED_IDS))
    collection = next(one for one in trainer.collections if feature in one.features)
    vectors = _looked_up(trainer, collection, {feature: ids})[feature]

    def write() -> None:
        texts = RawValues.of(trainer.dataset).texts(feature, len(ids) - 1)
        values = ["(unknown)", *("(missing)" if text is None else _in_a_cell(text) for text in texts)]
        assert found.counts is not None  # as `check_projector` has seen to
        rows = list(zip(values, found.counts[: len(ids)].tolist(), ids.tolist(), strict=True))
        _write_projector(trainer.folder / PROJECTOR, feature, vectors, rows, trainer.progress.best_step)

    on_first(write)


def _write_projector(folder: Path, feature: str, vectors: Tensor, rows: list[tuple[str, int, int]], step: int) -> None:
    """Write vectors (n, D) with a value, its count and its id for each, in the place of what an earlier try left."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with SummaryWriter(str(folder)) as writer:
            writer.add_embedding(vectors, rows, metadata_header=["value", "count", "id"], tag=feature, global_step=step)
    except OSError as error:
        raise RecembError(f"cannot write {folder}: {error.strerror or error}.") from error


def _in_a_cell(text: str) -> str:
    """Write a value so that it stays in its cell of a tab-separated file, and can be seen there."""
    return " ".join(text.split()) or repr(text)
