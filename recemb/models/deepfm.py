"""DeepFM: a factorization machine and an MLP that read the same rows.

Guo et al., "DeepFM: A Factorization-Machine based Neural Network for CTR Prediction", IJCAI 2017, arXiv 1703.04247. The
logit is the sum of every id's first-order weight, the inner products of all pairs of vectors, and an MLP of the vectors
side by side.

**A row is (w, v)**: the first column of a D-wide table is an id's first-order weight w, the D - 1 others are its vector
v. So every method compresses, counts, shards, quantizes and exports both; one D is one size of tables whatever the
backbone; and rows keep the widths that kernels, int4 codes, probes and partitions divide. Vectors of 10 beside a
weight, as in the paper, are `model.embedding_dim=11`.

Differs from the paper: a number is a field by its quantile bin, whose row is (w, v) too, where the paper multiplies one
vector with the value, and enters the MLP scaled besides; what enters the MLP is normalised; no dropout. torchrec's
FactorizationMachine is not used: it adds all coordinates up before it squares, and so multiplies different coordinates
of two vectors, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from recemb.models.base import Tables
from recemb.models.deep import DeepConfig, DeepModel
from recemb.models.layers import check_at_least, check_first_order, check_one_width, tower, widths_of_features
from recemb.options import option


@dataclass(kw_only=True)
class DeepFMConfig(DeepConfig):
    """Options of DeepFM."""

    name: ClassVar[str] = "deepfm"

    embedding_dim: int = option(16, "D, the width of a full table's rows: a first-order weight and a vector of D - 1")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("embedding_dim", self.embedding_dim, 2)

    def check_widths(self, widths: Sequence[int]) -> None:
        """Raise unless all rows have one width, of at least 2."""
        check_one_width(self.name, widths, "multiplies vectors with each other")
        check_first_order(self.name, widths)

    def build(self, tables: Tables, dense_sample: Tensor) -> nn.Module:
        """Build DeepFM over these tables."""
        return DeepFM(tables, dense_sample, self)


class DeepFM(DeepModel):
    """A factorization machine beside an MLP.

    Args:
        tables: the collection of the categorical features; all of one width D, at least 2.
        dense_sample: (n, K) float32 of training rows; K may be 0.
        config: the options.
    """

    def __init__(self, tables: Tables, dense_sample: Tensor, config: DeepFMConfig) -> None:
        widths = widths_of_features(tables)
        config.check_widths(widths)
        super().__init__(tables, dense_sample, config, widths[0])
        self.width = widths[0]
        numbers = dense_sample.shape[1]
        fields = len(widths) + numbers
        self.deep = tower(fields * (self.width - 1) + 2 * numbers, config.deep_layers, config.normalize)

    def head(self, dense_features: Tensor, vectors: Tensor) -> Tensor:
        """Predict from looked-up rows; see `recemb.models.base.Backbone`."""
        scaled, bins = self.encoder(dense_features)
        rows = torch.cat([vectors.unflatten(1, (-1, self.width)), bins], dim=1)
        weights, factors = rows[:, :, 0], rows[:, :, 1:]
        deep = self.deep(torch.cat([factors.flatten(1), scaled], dim=1))
        return weights.sum(dim=1) + sum_of_products(factors) + deep.squeeze(1)


def sum_of_products(vectors: Tensor) -> Tensor:
    """Add up the inner products of all pairs of F vectors, in time linear in F: (B, F, D) to (B,)."""
    return (vectors.sum(dim=1).square() - vectors.square().sum(dim=1)).sum(dim=1) / 2
