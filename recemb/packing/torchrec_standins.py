"""Modules that stand in for torchrec's collections of tables, over `ServingTables`."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import get_embedding_names_by_table
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from recemb.options import RecembError
from recemb.packing.serving import ServingTables
from recemb.packing.standins import checked_ids, weighted_pool
from recemb.tables.bags import flat_ids


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
        """Look up and pool, weighted if the collection was: (B, D) for each feature.

        Raises:
            RecembError: the batch is of another kind or lacks a feature or weights, or an id is out of range.
        """
        keys = self.tables.features
        check_batch(features, keys)
        if features.variable_stride_per_key():
            raise RecembError("features with batches of sizes of their own cannot be looked up; pad them to one size.")
        if self._weighted and features.weights_or_none() is None:
            raise RecembError("the collection is weighted, and the batch has no weights.")
        widths = [self._configs[spec].embedding_dim for spec in self._spec_of_feature]
        means = [self._configs[spec].pooling == PoolingType.MEAN for spec in self._spec_of_feature]
        if not self._weighted and not any(means):
            values, offsets = flat_ids(features, keys)
            return KeyedTensor(self._names, widths, self.tables(values.long(), offsets).to(self._like.dtype))
        vectors = []
        for name, spec, mean in zip(keys, self._spec_of_feature, means, strict=True):
            jagged = features[name]
            ids = checked_ids(jagged.values(), self._configs[spec].num_embeddings)
            weights = jagged.weights().float() if self._weighted else torch.ones(ids.shape[0], device=ids.device)
            vectors.append(weighted_pool(self.tables.vectors(spec, ids), weights, jagged.lengths(), mean))
        return KeyedTensor(self._names, widths, torch.cat(vectors, dim=1).to(self._like.dtype))


class CompressedUnpooledCollection(nn.Module):
    """Stands in for torchrec's `EmbeddingCollection`: KeyedJaggedTensor in, a JaggedTensor for each feature out."""

    _like: Tensor

    def __init__(self, tables: ServingTables, configs: list[EmbeddingConfig], need_indices: bool) -> None:
        super().__init__()
        self.tables = tables
        self._configs = configs
        self._need_indices = need_indices
        self._names = get_embedding_names_by_table(configs)
        self.register_buffer("_like", torch.empty(0), persistent=False)  # follows the model's casts

    def embedding_configs(self) -> list[EmbeddingConfig]:
        """The logical tables, as they were."""
        return self._configs

    def embedding_names_by_table(self) -> list[list[str]]:
        """The names of the features in the result, by table."""
        return self._names

    def embedding_dim(self) -> int:
        """The width of all tables."""
        return self._configs[0].embedding_dim

    def need_indices(self) -> bool:
        """Whether the ids come back as weights of the result."""
        return self._need_indices

    def forward(self, features: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        """Look up each id: the vectors (N, D) of each feature, in the lengths of its ids.

        Raises:
            RecembError: the batch is of another kind or lacks a feature, or an id is out of range.
        """
        check_batch(features, self.tables.features)
        found = {}
        for spec, feature, name in self._features():
            jagged = features[feature]
            ids = checked_ids(jagged.values(), self._configs[spec].num_embeddings)
            found[name] = JaggedTensor(
                values=self.tables.vectors(spec, ids).to(self._like.dtype),
                lengths=jagged.lengths(),
                weights=jagged.values() if self._need_indices else None,
            )
        return found

    def _features(self) -> Iterator[tuple[int, str, str]]:
        for spec, (config, names) in enumerate(zip(self._configs, self._names, strict=True)):
            for feature, name in zip(config.feature_names, names, strict=True):
                yield spec, feature, name


def check_batch(features: object, keys: list[str]) -> None:
    """Raise RecembError where a batch is no KeyedJaggedTensor with these features."""
    if not isinstance(features, KeyedJaggedTensor):
        raise RecembError(f"a collection takes a KeyedJaggedTensor, not {type(features).__name__}.")
    here = features.keys()
    if absent := [name for name in keys if name not in here]:
        raise RecembError(f"the batch has no feature {absent[0]!r}; it has {', '.join(here) or 'none'}.")
