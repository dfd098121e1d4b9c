"""What a backbone is: a config that builds a module over any collection."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from recemb.options import RecembError, option
from recemb.tables.collection import CompressedEmbeddingBagCollection


@dataclass(kw_only=True)
class ModelConfig:
    """Options that every backbone has."""

    name: ClassVar[str]
    weighs_features: ClassVar[bool] = False
    """True when the model has weights of its own for each feature's vector, and so can tell features apart whose ids
    share rows."""

    embedding_dim: int = option(16, "D, the width of a full table's vectors")
    init_std: float = option(0.01, "standard deviation of a vector's entries before training, for every table method")

    def __post_init__(self) -> None:
        if not 1 <= self.embedding_dim <= 8192:
            raise RecembError(f"model.embedding_dim={self.embedding_dim} must lie between 1 and 8192.")
        if not 0 < self.init_std < math.inf:
            raise RecembError(f"model.init_std={self.init_std} must be a positive number.")

    def check_widths(self, widths: Sequence[int]) -> None:
        """Raise where the model cannot take vectors of these widths, one for each logical table."""

    def build(self, tables: CompressedEmbeddingBagCollection, dense_sample: Tensor) -> nn.Module:
        """Build the module.

        Args:
            tables: the collection; its `embedding_bag_configs` tell the widths to expect.
            dense_sample: (n, K) float32 dense features of training rows, NaN = missing, to scale inputs by.

        Returns:
            A module that maps (dense (B, K), sparse KeyedJaggedTensor) to logits (B,).
        """
        raise NotImplementedError(f"{type(self).__name__} must build a module.")
