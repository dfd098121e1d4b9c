"""Wide & Deep: a linear model and an MLP, trained together.

Cheng et al., "Wide & Deep Learning for Recommender Systems", DLRS 2016, arXiv 1606.07792. The wide part adds up a
first-order weight of every id, the deep part is an MLP of the vectors side by side, of whatever widths.

A row is (w, v), as for DeepFM (`recemb.models.deepfm`): the first column of a table is the first-order weight, the
others are the vector, so that every method compresses both, and both are counted.

Differs from the paper: the wide part has no cross products of features that somebody chose by hand, which the owner of
a data set can add as features of their own; both parts are trained by the same optimizers, where the paper takes FTRL
with L1 for the wide one; a number's bin has a row too, and numbers enter the MLP scaled; what enters the MLP is
normalised.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor, nn

from recemb.models.base import Tables
from recemb.models.deep import DeepConfig, DeepModel
from recemb.models.layers import check_at_least, check_first_order, tower, widths_of_features
from recemb.options import option


@dataclass(kw_only=True)
class WideDeepConfig(DeepConfig):
    """Options of Wide & Deep."""

    name: ClassVar[str] = "wide_deep"

    embedding_dim: int = option(16, "D, the width of a full table's rows: a first-order weight and a vector of D - 1")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("embedding_dim", self.embedding_dim, 2)

    def check_widths(self, widths: Sequence[int]) -> None:
        """Raise unless all rows are at least 2 wide."""
        check_first_order(self.name, widths)

    def build(self, tables: Tables, dense_sample: Tensor) -> nn.Module:
        """Build Wide & Deep over these tables."""
        return WideDeep(tables, dense_sample, self)


class WideDeep(DeepModel):
    """A sum of first-order weights beside an MLP.

    Args:
        tables: the collection of the categorical features, of any widths from 2 on.
        dense_sample: (n, K) float32 of training rows; K may be 0.
        config: the options.
    """

    wide_columns: Tensor
    deep_columns: Tensor

    def __init__(self, tables: Tables, dense_sample: Tensor, config: WideDeepConfig) -> None:
        widths = widths_of_features(tables)
        config.check_widths(widths)
        super().__init__(tables, dense_sample, config, config.embedding_dim)
        numbers = dense_sample.shape[1]
        # Looked-up rows and bins' rows stand side by side, and the first column of each is wide.
        widths += [config.embedding_dim] * numbers
        columns = torch.arange(sum(widths))
        is_wide = torch.isin(columns, torch.tensor([0, *accumulate(widths[:-1])]))
        self.register_buffer("wide_columns", columns[is_wide], persistent=False)
        self.register_buffer("deep_columns", columns[~is_wide], persistent=False)
        self.deep = tower(sum(widths) - len(widths) + 2 * numbers, config.deep_layers, config.normalize)

    def head(self, dense_features: Tensor, vectors: Tensor) -> Tensor:
        """Predict from looked-up rows; see `recemb.models.base.Backbone`."""
        scaled, bins = self.encoder(dense_features)
        rows = torch.cat([vectors, bins.flatten(1)], dim=1)
        wide = rows.index_select(1, self.wide_columns).sum(dim=1)
        deep = self.deep(torch.cat([rows.index_select(1, self.deep_columns), scaled], dim=1))
        return wide + deep.squeeze(1)
