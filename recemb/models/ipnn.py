"""IPNN: an MLP of all vectors and of the inner products of all pairs of them.

Qu et al., "Product-based Neural Networks for User Response Prediction", ICDM 2016, arXiv 1611.00144: the product layer
of the inner-product network. Its linear signals z are the vectors, its quadratic signals p the products <v_i, v_j>, and
the first hidden layer is relu(W_z z + W_p p + b).

Differs from the paper: W_p is a full matrix, where the paper factorizes it to rank one to save time; p has the pairs
i < j, and no vector's product with itself; numbers enter scaled and as embedded bins, which are fields as well; z and p
are normalised, each by itself, since products of small vectors are far smaller than the vectors; no dropout.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from recemb.models.base import Tables
from recemb.models.deep import DeepConfig, DeepModel
from recemb.models.layers import InnerProducts, check_one_width, tower, widths_of_features
from recemb.options import option


@dataclass(kw_only=True)
class IPNNConfig(DeepConfig):
    """Options of IPNN."""

    name: ClassVar[str] = "ipnn"

    normalize: bool = option(True, "normalise the vectors, and their products, that enter the MLP (LayerNorm)")

    def check_widths(self, widths: Sequence[int]) -> None:
        """Raise unless all vectors have one width."""
        check_one_width(self.name, widths, "multiplies vectors with each other")

    def build(self, tables: Tables, dense_sample: Tensor) -> nn.Module:
        """Build IPNN over these tables."""
        return IPNN(tables, dense_sample, self)


class IPNN(DeepModel):
    """A product layer below an MLP.

    Args:
        tables: the collection of the categorical features; all of one width D.
        dense_sample: (n, K) float32 of training rows; K may be 0.
        config: the options.
    """

    def __init__(self, tables: Tables, dense_sample: Tensor, config: IPNNConfig) -> None:
        widths = widths_of_features(tables)
        config.check_widths(widths)
        super().__init__(tables, dense_sample, config, widths[0])
        self.width = widths[0]
        numbers = dense_sample.shape[1]
        fields = len(widths) + numbers
        linear, quadratic = fields * self.width + 2 * numbers, fields * (fields - 1) // 2
        self.products = InnerProducts(fields)
        self.normalize_linear: nn.Module = nn.LayerNorm(linear) if config.normalize else nn.Identity()
        self.normalize_products: nn.Module = nn.LayerNorm(quadratic) if config.normalize else nn.Identity()
        self.deep = tower(linear + quadratic, config.deep_layers, normalize=False)

    def head(self, dense_features: Tensor, vectors: Tensor) -> Tensor:
        """Predict from looked-up vectors; see `recemb.models.base.Backbone`."""
        scaled, bins = self.encoder(dense_features)
        fields = torch.cat([vectors.unflatten(1, (-1, self.width)), bins], dim=1)
        linear = self.normalize_linear(torch.cat([fields.flatten(1), scaled], dim=1))
        quadratic = self.normalize_products(self.products(fields))
        return self.deep(torch.cat([linear, quadratic], dim=1)).squeeze(1)
