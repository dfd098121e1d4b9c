"""Bags of ids as flat tensors: where they begin, which one an id is in, and what is left of them."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


def offsets_of(lengths: Tensor) -> Tensor:
    """Where each bag begins, and the number of ids: lengths (L, B) to (L * B + 1,) int64."""
    return torch.ops.fbgemm.asynchronous_complete_cumsum(lengths.flatten().long())


def bag_in_result(lengths: Tensor) -> Tensor:
    """Number the bag of each id, lengths (F, B), in the order of the result: all features of a row, then the next."""
    features, bags = lengths.shape
    numbers = torch.arange(features * bags, device=lengths.device).view(bags, features).T.flatten()
    return numbers.repeat_interleave(lengths.flatten())


def without_missing(rows: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Leave out the ids that have no row, and shorten their bags.

    Args:
        rows: (L, B) where every bag holds one id, else (N,); -1 for no row.
        lengths: (L, B).

    Returns:
        (n,) row numbers and (L, B) lengths.
    """
    kept = rows >= 0
    if rows.dim() == 2:
        return rows[kept], kept.to(lengths.dtype)
    before = torch.ops.fbgemm.asynchronous_complete_cumsum(kept.long())
    return rows[kept], before[offsets_of(lengths)].diff().view(lengths.shape).to(lengths.dtype)


def pool(vectors: Tensor, lengths: Tensor) -> Tensor:
    """Add up the vectors (N, D) of each of the bags, whose (B,) lengths add up to N."""
    bag = torch.repeat_interleave(lengths)
    return vectors.new_zeros(len(lengths), vectors.shape[1]).index_add(0, bag, vectors)


def flat_ids(features: KeyedJaggedTensor, keys: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Write a batch as serving tables take it.

    Args:
        features: ids by feature.
        keys: the F features, in the order that is asked for.

    Returns:
        values (N,) int64, feature after feature, and offsets (F, B + 1) int64: bag b of feature f is
        values[offsets[f, b] : offsets[f, b + 1]].
    """
    here = features.keys()
    if here != list(keys):
        features = features.permute([here.index(name) for name in keys])
    bags = features.stride()
    rows = torch.arange(len(keys), device=features.device()).unsqueeze(1) * bags
    return features.values(), offsets_of(features.lengths())[rows + torch.arange(bags + 1, device=rows.device)]
