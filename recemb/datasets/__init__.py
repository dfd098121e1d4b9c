"""Data sets: raw rows in, memory-mapped Arrow files out, batches of KeyedJaggedTensors from there."""

from recemb.datasets.avazu import AvazuConfig
from recemb.datasets.base import DatasetConfig
from recemb.datasets.batches import Batch, Batches
from recemb.datasets.criteo import CriteoConfig
from recemb.datasets.criteo_kaggle_shape import CriteoKaggleShapeConfig
from recemb.datasets.criteo_terabyte import CriteoTerabyteConfig
from recemb.datasets.features import Feature
from recemb.datasets.kdd12 import KddCup2012Config
from recemb.datasets.movielens import MovieLens1MConfig
from recemb.datasets.prepare import prepare
from recemb.datasets.prepared import PreparedDataset
from recemb.datasets.synthetic import SyntheticCatalogConfig, SyntheticConfig
from recemb.datasets.tabular import TabularConfig

DATASETS: dict[str, type[DatasetConfig]] = {
    config.name: config
    for config in (
        AvazuConfig,
        CriteoConfig,
        CriteoKaggleShapeConfig,
        CriteoTerabyteConfig,
        KddCup2012Config,
        MovieLens1MConfig,
        SyntheticConfig,
        SyntheticCatalogConfig,
        TabularConfig,
    )
}
"""Every data set by the name it has on the command line; a new one is one file and one entry here."""

__all__ = [
    "DATASETS",
    "AvazuConfig",
    "Batch",
    "Batches",
    "CriteoConfig",
    "CriteoKaggleShapeConfig",
    "CriteoTerabyteConfig",
    "DatasetConfig",
    "Feature",
    "KddCup2012Config",
    "MovieLens1MConfig",
    "PreparedDataset",
    "SyntheticCatalogConfig",
    "SyntheticConfig",
    "TabularConfig",
    "prepare",
]
