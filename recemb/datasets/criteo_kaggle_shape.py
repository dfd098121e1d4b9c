"""The published shape of the unfiltered Criteo Kaggle data, with no rows: what planning a budget needs to know."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch

from recemb.datasets.base import DatasetConfig, RowSource
from recemb.datasets.criteo_text import CATEGORICAL
from recemb.datasets.features import Feature
from recemb.options import RecembError, option

CARDINALITIES = (
    1460, 583, 10_131_227, 2_202_608, 305, 24, 12_517, 633, 3, 93_145, 5683, 8_351_593, 3194, 27, 14_992, 5_461_306,
    10, 5652, 2173, 4, 7_046_547, 18, 15, 286_181, 105, 142_572,
)  # fmt: skip
"""Ids of C1 to C26 when every value has one, as DLRM (Naumov et al., arXiv:1906.00091) counts them."""
ROWS = 45_840_617
EXPONENT = 1.15
"""Of the assumed frequencies: the id of rank r of a feature is seen in proportion to r to the power of minus this.

How often each value occurs is not published; AutoInt (Song et al., CIKM 2019, arXiv:1810.11921, table 1) names 998,960
values of these 26 features that are seen ten times or more in as many rows. With this exponent there are 994,837.
"""


class AssumedFeature(Feature):
    """A feature of the shape, whose frequencies are assumed to follow a Zipf law."""

    @cached_property
    def counts(self) -> torch.Tensor | None:
        """(V,) int64, at least 1 each; id 0, which rare values share in a prepared data set, is the rarest."""
        if self.raw:
            return None
        share = torch.arange(1, self.num_embeddings + 1, dtype=torch.float64).pow_(-EXPONENT)
        counts = (share * (ROWS / share.sum())).long().clamp_(min=1)
        return counts.roll(1)


@dataclass(kw_only=True)
class CriteoKaggleShapeConfig(DatasetConfig):
    """The 26 cardinalities of Criteo Kaggle, every value kept; for `recemb plan`, since there are no rows."""

    name: ClassVar[str] = "criteo_kaggle_shape"

    path: str = option("data/criteo_kaggle_shape", "not used: there are no rows to keep")

    def open(self, *, on_bad_rows: str) -> RowSource:  # noqa: ARG002 - there are no rows, bad or good
        """Refuse."""
        raise RecembError(
            f"dataset={self.name} is a shape without rows, for recemb plan only; prepare or train dataset=criteo, or "
            "dataset=synthetic, which needs no download."
        )

    def describe_features(self, asked: Collection[str] = ()) -> list[Feature]:
        """Return the 26 features; their frequencies are assumed."""
        if "path" in asked:
            raise RecembError(
                f"dataset={self.name} lies in no folder; name the data set at {self.path}, e.g. dataset=criteo."
            )
        raw = self.vocabulary == "none"
        assumed = None if raw else f"assumed, a Zipf law of exponent {EXPONENT:g}"
        return [
            AssumedFeature(name, ids, raw=raw, frequencies=assumed)
            for name, ids in zip(CATEGORICAL, CARDINALITIES, strict=True)
        ]
