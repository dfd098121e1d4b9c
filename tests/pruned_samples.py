"""Structures drawn at random, and the full tables they stand for: what they drop is zero, or the unknown's row."""

import torch
from torch import Tensor

from recemb import CompressedEmbeddingBagCollection, TableSpec
from recemb.tables.full import FullConfig
from recemb.tables.structure import Structure, as_range, entry_widths


def random_structure(specs: list[TableSpec], unit: str, share: float = 0.3, seed: int = 0) -> Structure:
    """Keep about this share of the ids, id 0 always, with random widths or entries."""
    random = torch.Generator().manual_seed(seed)
    kept = []
    for spec in specs:
        keep = torch.rand(spec.num_embeddings, generator=random) < share
        keep[0] = True
        kept.append(as_range(keep.nonzero().squeeze(1)))
    dim = specs[0].embedding_dim
    if unit == "row":
        widths = torch.randint(1, dim + 1, (len(specs),), generator=random).tolist()
        return Structure(kept=kept, widths=widths)
    steps = torch.tensor(entry_widths(dim))
    entries = []
    for ids in kept:
        count = steps[torch.randint(0, len(steps), (len(ids),), generator=random)]
        place = torch.rand(len(ids), dim, generator=random).argsort(dim=1).argsort(dim=1)
        entries.append(place < count.unsqueeze(1))
    return Structure(kept=kept, widths=[dim] * len(specs), entries=entries)


def mask_of(structure: Structure, specs: list[TableSpec]) -> list[Tensor]:
    """Which floats of the full tables are kept: (V, D) bool of each."""
    masks = []
    for index, spec in enumerate(specs):
        mask = torch.zeros(spec.num_embeddings, spec.embedding_dim, dtype=torch.bool)
        ids = torch.as_tensor(structure.kept[index])
        if structure.entries is None:
            mask[ids, : structure.widths[index]] = True
        else:
            mask[ids] = structure.entries[index]
        masks.append(mask)
    return masks


def masked_full(
    specs: list[TableSpec], weights: list[Tensor], structure: Structure, pruned: str
) -> CompressedEmbeddingBagCollection:
    """The full tables (V, D) with everything set to zero, or to the unknown's row, that a structure drops."""
    full = CompressedEmbeddingBagCollection(specs, FullConfig())
    for index, (target, weight, mask) in enumerate(zip(full.weights, weights, mask_of(structure, specs), strict=True)):
        target.data.copy_(weight * mask)
        if pruned == "shared":
            ids = torch.as_tensor(structure.kept[index])
            dropped = torch.ones(len(weight), dtype=torch.bool).index_fill(0, ids, False)
            target.data[dropped] = target.data[0].clone()
    return full
