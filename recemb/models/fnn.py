"""FNN: an MLP of all vectors side by side.

Zhang et al., "Deep Learning over Multi-field Categorical Data: A Case Study on User Response Prediction", ECIR 2016,
arXiv 1601.02376. The paper's first layer has for each field z = (w, v), the weight and the vector of a factorization
machine; here that is the id's row, D = K + 1 wide.

Differs from the paper: rows start at random, as for every other backbone, and not from a factorization machine that was
trained before: its full tables would be what a budget is to spare, and no two methods would start the same. ReLU
instead of tanh; numbers enter scaled and as embedded bins; what enters the MLP is normalised; no dropout.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from recemb.models.base import Tables
from recemb.models.deep import DeepConfig, DeepModel
from recemb.models.layers import tower, widths_of_features


@dataclass(kw_only=True)
class FNNConfig(DeepConfig):
    """Options of FNN."""

    name: ClassVar[str] = "fnn"

    def build(self, tables: Tables, dense_sample: Tensor) -> nn.Module:
        """Build FNN over these tables."""
        return FNN(tables, dense_sample, self)


class FNN(DeepModel):
    """An MLP over all vectors side by side.

    Args:
        tables: the collection of the categorical features, of any widths.
        dense_sample: (n, K) float32 of training rows; K may be 0.
        config: the options.
    """

    def __init__(self, tables: Tables, dense_sample: Tensor, config: FNNConfig) -> None:
        super().__init__(tables, dense_sample, config, config.embedding_dim)
        inputs = sum(widths_of_features(tables)) + dense_sample.shape[1] * (2 + config.embedding_dim)
        self.deep = tower(inputs, config.deep_layers, config.normalize)

    def head(self, dense_features: Tensor, vectors: Tensor) -> Tensor:
        """Predict from looked-up vectors; see `recemb.models.base.Backbone`."""
        scaled, bins = self.encoder(dense_features)
        return self.deep(torch.cat([vectors, bins.flatten(1), scaled], dim=1)).squeeze(1)
