"""What backbones share that have an MLP among their parts: its options, the encoding of numbers, and `forward`.

Numbers enter scaled and as embedded bins (`recemb.models.dense`); a number's bins are a field like a categorical one.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.models.base import ModelConfig, Tables
from recemb.models.dense import DenseEncoder
from recemb.models.layers import check_at_least, check_widths
from recemb.options import option


@dataclass(kw_only=True)
class DeepConfig(ModelConfig):
    """Options of a backbone with an MLP."""

    weighs_features: ClassVar[bool] = True
    needs_mlp: ClassVar[bool] = True
    """Whether the MLP cannot be left out."""

    deep_layers: list[int] = option([64, 32], "widths of the MLP; a last layer of width 1 follows")
    normalize: bool = option(True, "normalise what enters the MLP (LayerNorm)")
    dense_bins: int = option(16, "quantile bins of a dense feature")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.needs_mlp or self.deep_layers:
            check_widths("deep_layers", self.deep_layers)
        check_at_least("dense_bins", self.dense_bins, 2)


class DeepModel(nn.Module):
    """Looks vectors up, and leaves the rest to `head`.

    Args:
        tables: the collection of the categorical features.
        dense_sample: (n, K) float32 of training rows; K may be 0.
        config: the options.
        bins_dim: width of the vectors of numbers' bins.
    """

    def __init__(self, tables: Tables, dense_sample: Tensor, config: DeepConfig, bins_dim: int) -> None:
        super().__init__()
        self.tables = tables
        self.encoder = DenseEncoder(dense_sample, config.dense_bins, bins_dim, config.init_std)

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
        raise NotImplementedError(f"{type(self).__name__} must say what it makes of vectors.")
