"""Modules that stand in for PyTorch's and torchrec's tables: their arguments and shapes over `ServingTables`."""

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import get_embedding_names_by_table
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from recemb.options import RecembError
from recemb.packing.serving import ServingTables
from recemb.tables.bags import flat_ids


class CompressedEmbedding(nn.Module):
    """Stands in for an `nn.Embedding`: ids of any shape (...) to (..., D)."""

    _like: Tensor

    def __init__(self, tables: ServingTables, padding_idx: int | None) -> None:
        super().__init__()
        self.tables = tables
        self.num_embeddings = tables.specs[0].num_embeddings
        self.embedding_dim = tables.specs[0].embedding_dim
        self.padding_idx = padding_idx
        self.register_buffer("_like", torch.empty(0), persistent=False)  # follows the model's casts

    def forward(self, input: Tensor) -> Tensor:
        """Look up; the padding id, where there is one, reads zeros."""
        ids = _checked(input, self.num_embeddings)
        vectors = self.tables.vectors(0, ids).to(self._like.dtype)
        if self.padding_idx is not None:
            vectors = vectors * (ids != self.padding_idx).unsqueeze(1)
        return vectors.view(*input.shape, self.embedding_dim)


class CompressedEmbeddingBag(nn.Module):
    """Stands in for an `nn.EmbeddingBag` that sums or averages, with the same arguments."""

    _like: Tensor

    def __init__(self, tables: ServingTables, mode: str, include_last_offset: bool, padding_idx: int | None) -> None:
        super().__init__()
        self.tables = tables
        self.num_embeddings = tables.specs[0].num_embeddings
        self.embedding_dim = tables.specs[0].embedding_dim
        self.mode = mode
        self.include_last_offset = include_last_offset
        self.padding_idx = padding_idx
        self.register_buffer("_like", torch.empty(0), persistent=False)  # follows the model's casts

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """Look up and pool: (B, L) ids, or (N,) ids and (B,) offsets, to (B, D)."""
        if (offsets is None) != (input.dim() == 2):
            raise RecembError("ids must be (B, L), or (N,) with the offsets of their bags.")
        if per_sample_weights is not None and self.mode != "sum":
            raise RecembError("per_sample_weights go with mode='sum' only, as in nn.EmbeddingBag.")
        ids = _checked(input, self.num_embeddings)
        if offsets is None:
            lengths = torch.full((input.shape[0],), input.shape[1], device=ids.device)
        else:
            ends = offsets[1:] if self.include_last_offset else torch.cat([offsets[1:], offsets.new_tensor([len(ids)])])
            lengths = ends - (offsets[:-1] if self.include_last_offset else offsets)
        bag = torch.repeat_interleave(lengths)
        weights = torch.ones(len(ids), device=ids.device)
        if per_sample_weights is not None:
            weights = per_sample_weights.flatten().float()
        if self.padding_idx is not None:
            weights = weights * (ids != self.padding_idx)
        pooled = _pooled(self.tables.vectors(0, ids), weights, bag, len(lengths), self.mode == "mean")
        return pooled.to(self._like.dtype)


class CompressedCollection(nn.Module):
    """Stands in for torchrec's `EmbeddingBagCollection`: KeyedJaggedTensor in, KeyedTensor out."""

    _like: Tensor

    def __init__(self, tables: ServingTables, configs: list[EmbeddingBagConfig], weighted: bool) -> None:
        super().__init__()
        self.tables = tables
        self._configs = configs
        self._weighted = weighted
        self._names = [name for names in get_embedding_names_by_table(configs) for name in names]
        self.register_buffer("_like", torch.empty(0), persistent=False)  # follows the model's casts
        self._spec_of_feature = [index for index, config in enumerate(configs) for _ in config.feature_names]

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        """The logical tables, as they were."""
        return self._configs

    def is_weighted(self) -> bool:
        """Whether ids come with weights."""
        return self._weighted

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Look up and pool, weighted if the collection was: (B, D) for each feature."""
        keys = self.tables.features
        widths = [self._configs[spec].embedding_dim for spec in self._spec_of_feature]
        means = [self._configs[spec].pooling == PoolingType.MEAN for spec in self._spec_of_feature]
        if not self._weighted and not any(means):
            values, offsets = flat_ids(features, keys)
            return KeyedTensor(self._names, widths, self.tables(values.long(), offsets).to(self._like.dtype))
        vectors = []
        for name, spec, mean in zip(keys, self._spec_of_feature, means, strict=True):
            jagged = features[name]
            ids, lengths = _checked(jagged.values(), self._configs[spec].num_embeddings), jagged.lengths()
            weights = jagged.weights().float() if self._weighted else torch.ones(len(ids), device=ids.device)
            bag = torch.repeat_interleave(lengths)
            vectors.append(_pooled(self.tables.vectors(spec, ids), weights, bag, len(lengths), mean))
        return KeyedTensor(self._names, widths, torch.cat(vectors, dim=1).to(self._like.dtype))


def _checked(input: Tensor, num_embeddings: int) -> Tensor:
    """Flatten ids to (N,) int64; raise where they are none, or out of range, which an exported graph cannot."""
    if input.is_floating_point():
        raise RecembError(f"ids must be integers, and these are {input.dtype}.")
    ids = input.flatten().long()
    if not torch.compiler.is_exporting():
        _check_range(ids, num_embeddings)
    return ids


def _check_range(ids: Tensor, num_embeddings: int) -> None:
    if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= num_embeddings):
        wrong = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
        raise RecembError(f"id {wrong} is out of range; the table has {num_embeddings} ids, 0 to {num_embeddings - 1}.")


def _pooled(vectors: Tensor, weights: Tensor, bag: Tensor, bags: int, mean: bool) -> Tensor:
    """Add up vectors (N, D), each times its weight (N,), by bag (N,); or average those with a weight: (B, D)."""
    pooled = vectors.new_zeros(bags, vectors.shape[1]).index_add(0, bag, vectors * weights.unsqueeze(1))
    if not mean:
        return pooled
    counts = weights.new_zeros(bags).index_add(0, bag, weights)
    return pooled / counts.clamp(min=1).unsqueeze(1)
