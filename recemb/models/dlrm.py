"""DLRM: dot products of all pairs of vectors, between two MLPs.

Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation Systems", arXiv 1906.00091;
built from torchrec's DLRM.

Differs from torchrec's: numbers come in twice, scaled through the bottom MLP and as embedded bins beside the
categorical vectors; the vectors' first coordinates also add up to a first-order term, as in a factorization machine;
what enters the top MLP is normalised. On small data these, not the tables, decide whether
the model beats a logistic regression.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torchrec.models import dlrm as torchrec_dlrm
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.models.base import ModelConfig, Tables
from recemb.models.dense import DenseEncoder
from recemb.models.layers import InnerProducts, check_at_least, check_one_width, check_widths, mlp
from recemb.options import option


@dataclass(kw_only=True)
class DLRMConfig(ModelConfig):
    """Options of DLRM."""

    name: ClassVar[str] = "dlrm"

    bottom_layers: list[int] = option([64, 32], "widths of the bottom MLP; a last layer of width D follows")
    top_layers: list[int] = option([64, 32], "widths of the top MLP; a last layer of width 1 follows")
    dense_bins: int = option(16, "quantile bins of a dense feature")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("dense_bins", self.dense_bins, 2)
        check_widths("bottom_layers", self.bottom_layers)
        check_widths("top_layers", self.top_layers)

    def check_widths(self, widths: Sequence[int]) -> None:
        """Raise unless all vectors have one width."""
        check_one_width(self.name, widths, "multiplies vectors with each other")

    def build(self, tables: Tables, dense_sample: Tensor) -> nn.Module:
        """Build DLRM over these tables."""
        return DLRM(tables, dense_sample, self)


class DLRM(torchrec_dlrm.DLRM):
    """torchrec's DLRM with embedded numbers and a first-order term.

    Args:
        tables: the collection of the categorical features; all of one width D.
        dense_sample: (n, K) float32 of training rows.
        config: the options.
    """

    def __init__(self, tables: Tables, dense_sample: Tensor, config: DLRMConfig) -> None:
        widths = [table.embedding_dim for table in tables.embedding_bag_configs()]
        config.check_widths(widths)
        dim = widths[0]
        numbers = dense_sample.shape[1]
        # torchrec's DLRM needs at least one dense input; a constant stands in where a data set has none.
        super().__init__(
            tables,
            dense_in_features=max(2 * numbers, 1),
            dense_arch_layer_sizes=[*config.bottom_layers, dim],
            over_arch_layer_sizes=[*config.top_layers, 1],
        )
        self.numbers = numbers
        vectors = len(self.sparse_arch.sparse_feature_names) + numbers
        self.encoder = DenseEncoder(dense_sample, config.dense_bins, dim, config.init_std)
        self.inter_arch = PairwiseProducts(vectors)
        interactions = dim + vectors * (vectors + 1) // 2
        self.over_arch = nn.Sequential(
            nn.LayerNorm(interactions), mlp(interactions, config.top_layers), nn.Linear(config.top_layers[-1], 1)
        )

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        """Predict.

        Args:
            dense_features: (B, K) float32, NaN = missing.
            sparse_features: ids by feature, stride B.

        Returns:
            (B,) logits.
        """
        return self.head(dense_features, self.sparse_arch(sparse_features).flatten(1))

    def head(self, dense_features: Tensor, vectors: Tensor) -> Tensor:
        """Predict from looked-up vectors; see `recemb.models.base.Backbone`."""
        scaled, bins = self.encoder(dense_features)
        if not self.numbers:
            scaled = scaled.new_ones(dense_features.shape[0], 1)
        vectors = torch.cat([vectors.unflatten(1, (-1, bins.shape[2])), bins], dim=1)
        first_order = vectors[:, :, 0].sum(dim=1)
        crossed = self.inter_arch(self.dense_arch(scaled), vectors)
        return self.over_arch(crossed).squeeze(1) + first_order


class PairwiseProducts(torchrec_dlrm.InteractionArch):
    """torchrec's interaction with the faster `InnerProducts`."""

    def __init__(self, num_sparse_features: int) -> None:
        super().__init__(num_sparse_features)
        self.products = InnerProducts(num_sparse_features + 1)

    def forward(self, dense_features: Tensor, sparse_features: Tensor) -> Tensor:
        """Multiply all pairs: (B, D) and (B, F, D) to (B, D + F (F + 1) / 2)."""
        vectors = torch.cat([dense_features.unsqueeze(1), sparse_features], dim=1)
        return torch.cat([dense_features, self.products(vectors)], dim=1)
