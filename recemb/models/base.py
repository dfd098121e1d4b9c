"""What a backbone is: a config that builds a module over any collection."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from recemb.options import RecembError, option
from recemb.tables.collection import BagConfig


class Tables(Protocol):
    """What a backbone needs of a collection."""

    def __call__(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Look up."""

    def embedding_bag_configs(self) -> list[BagConfig]:
        """The logical tables, with the widths of their vectors."""


class Backbone(Protocol):
    """What a backbone is: whatever looks vectors up, its head can be given them.

    Its call asks the tables once and does not decide by values of a batch how it does that, so that torchrec's
    pipelines can follow it by symbols and share out the next batch's ids ahead (`recemb.training.steps`).
    """

    def __call__(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        """Look up and predict: (B, K) float32 with NaN = missing, and ids by feature, to logits (B,)."""

    def head(self, dense_features: Tensor, vectors: Tensor) -> Tensor:
        """Predict from (B, K) float32, NaN = missing, and (B, sum of widths) vectors of all features: logits (B,)."""


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

    def to_dict(self) -> dict[str, Any]:
        """Write the config as plain JSON types, the backbone's name first."""
        return {"name": self.name, **dataclasses.asdict(self)}

    def check_widths(self, widths: Sequence[int]) -> None:
        """Raise where the model cannot take vectors of these widths, one for each logical table."""

    def build(self, tables: Tables, dense_sample: Tensor) -> nn.Module:
        """Build the module.

        Args:
            tables: the collection; its `embedding_bag_configs` tell the widths to expect.
            dense_sample: (n, K) float32 dense features of training rows, NaN = missing, to scale inputs by.

        Returns:
            A `Backbone` that maps (dense (B, K), sparse KeyedJaggedTensor) to logits (B,).
        """
        raise NotImplementedError(f"{type(self).__name__} must build a module.")
