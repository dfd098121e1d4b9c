"""The published shape of the unfiltered Criteo Kaggle data, with no rows: what planning a budget needs to know."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from recemb.datasets.base import DatasetConfig, RowSource
from recemb.datasets.criteo_text import CATEGORICAL
from recemb.datasets.features import Feature
from recemb.options import RecembError, option

CARDINALITIES = (
    1460, 583, 10_131_227, 2_202_608, 305, 24, 12_517, 633, 3, 93_145, 5683, 8_351_593, 3194, 27, 14_992, 5_461_306,
    10, 5652, 2173, 4, 7_046_547, 18, 15, 286_181, 105, 142_572,
)  # fmt: skip
"""Ids of C1 to C26 when every value has one, as DLRM (Naumov et al., arXiv:1906.00091) counts them."""


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
        """Return the 26 features; nothing is known of their frequencies."""
        if "path" in asked:
            raise RecembError(
                f"dataset={self.name} lies in no folder; name the data set at {self.path}, e.g. dataset=criteo."
            )
        raw = self.vocabulary == "none"
        return [Feature(name, ids, raw=raw) for name, ids in zip(CATEGORICAL, CARDINALITIES, strict=True)]
