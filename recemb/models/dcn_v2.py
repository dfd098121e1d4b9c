"""DCN V2: layers that multiply the input with linear maps of itself, beside or below an MLP.

Wang et al., "DCN V2: Improved Deep & Cross Network and Practical Lessons for Web-scale Learning to Rank Systems", WWW
2021, arXiv 2008.13535; cross layers from torchrec. The input x_0 is every vector side by side, of whatever widths, and
a cross layer is x_{l+1} = x_0 ⊙ (W x_l + b) + x_l; with a rank r, W is a product of (N, r) and (r, N).

W has a block for each pair of features, so the model weighs each feature by itself: it can tell features apart that
share rows, which DLRM's plain dot products cannot.

Numbers enter as for DLRM, scaled and as embedded bins; data sets without numbers have vectors only.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchrec.modules import crossnet
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.models.base import ModelConfig, Tables
from recemb.models.dense import DenseEncoder
from recemb.models.layers import check_at_least, check_widths, mlp
from recemb.options import RecembError, option

STRUCTURES = ("stacked", "parallel")


@dataclass(kw_only=True)
class DCNv2Config(ModelConfig):
    """Options of DCN V2."""

    name: ClassVar[str] = "dcn_v2"
    weighs_features: ClassVar[bool] = True

    cross_layers: int = option(2, "number of cross layers")
    cross_rank: int | None = option(None, "rank of the cross layers' matrices; full when not given")
    deep_layers: list[int] = option([64, 32], "widths of the MLP; a last layer of width 1 follows")
    structure: str = option("stacked", "stacked: the MLP reads the last cross layer; parallel: it reads the input")
    normalize: bool = option(True, "normalise what enters the MLP (LayerNorm)")
    dense_bins: int = option(16, "quantile bins of a dense feature")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("cross_layers", self.cross_layers, 1)
        if self.cross_rank is not None:
            check_at_least("cross_rank", self.cross_rank, 1)
        check_widths("deep_layers", self.deep_layers)
        if self.structure not in STRUCTURES:
            raise RecembError(f"model.structure={self.structure} is not known; choose {' or '.join(STRUCTURES)}.")
        check_at_least("dense_bins", self.dense_bins, 2)

    def build(self, tables: Tables, dense_sample: Tensor) -> nn.Module:
        """Build DCN V2 over these tables."""
        return DCNv2(tables, dense_sample, self)


class DCNv2(nn.Module):
    """Cross layers and an MLP over all vectors side by side.

    Args:
        tables: the collection of the categorical features, of any widths.
        dense_sample: (n, K) float32 of training rows; K may be 0.
        config: the options.
    """

    def __init__(self, tables: Tables, dense_sample: Tensor, config: DCNv2Config) -> None:
        super().__init__()
        self.tables = tables
        self.encoder = DenseEncoder(dense_sample, config.dense_bins, config.embedding_dim, config.init_std)
        categorical = sum(len(table.feature_names) * table.embedding_dim for table in tables.embedding_bag_configs())
        width = categorical + dense_sample.shape[1] * (2 + config.embedding_dim)
        # torchrec starts matrices by Xavier's rule and biases at zero: W x_0 is as large as x_0, so that a product of
        # two small vectors starts far smaller than the vector it is added to, and a layer starts near the identity.
        if config.cross_rank is None:
            self.cross: nn.Module = FullCross(width, config.cross_layers)
        elif config.cross_rank <= width:
            self.cross = crossnet.LowRankCrossNet(width, config.cross_layers, config.cross_rank)
        else:
            raise RecembError(
                f"model.cross_rank={config.cross_rank} is more than the {width} numbers that the vectors hold side by "
                "side; give a smaller rank, or none for full rank."
            )
        self.parallel = config.structure == "parallel"
        self.deep = mlp(width, config.deep_layers)
        if config.normalize:
            self.deep.insert(0, nn.LayerNorm(width))
        self.last = nn.Linear(config.deep_layers[-1] + (width if self.parallel else 0), 1)

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        """Predict.

        Args:
            dense_features: (B, K) float32, NaN = missing.
            sparse_features: ids by feature, stride B.

        Returns:
            (B,) logits.
        """
        return self.head(dense_features, self.tables(sparse_features).values())

    def head(self, dense_features: Tensor, vectors: Tensor) -> Tensor:
        """Predict from looked-up vectors; see `recemb.models.base.Backbone`."""
        scaled, bins = self.encoder(dense_features)
        inputs = torch.cat([vectors, scaled, bins.flatten(1)], dim=1)
        crossed = self.cross(inputs)
        if self.parallel:
            crossed = torch.cat([crossed, self.deep(inputs)], dim=1)
        else:
            crossed = self.deep(crossed)
        return self.last(crossed).squeeze(1)


class FullCross(crossnet.CrossNet):
    """torchrec's cross layers with one matrix product for the whole batch.

    torchrec multiplies the matrix with every row by itself, which is slower and cannot be exported for any batch size.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Cross (B, N) with itself, layer after layer: (B, N)."""
        crossed = input
        for matrix, bias in zip(self.kernels, self.bias, strict=True):
            crossed = input * F.linear(crossed, matrix, bias.squeeze(1)) + crossed
        return crossed
