"""Data sets: raw rows in, memory-mapped Arrow files out, batches of KeyedJaggedTensors from there."""

from recemb.datasets.base import DatasetConfig
from recemb.datasets.batches import Batch, Batches
from recemb.datasets.criteo import CriteoConfig
from recemb.datasets.criteo_kaggle_shape import CriteoKaggleShapeConfig
from recemb.datasets.features import Feature
from recemb.datasets.movielens import MovieLens1MConfig
from recemb.datasets.prepare import prepare
from recemb.datasets.prepared import PreparedDataset
from recemb.datasets.synthetic import SyntheticConfig

DATASETS: dict[str, type[DatasetConfig]] = {
    config.name: config for config in (CriteoConfig, CriteoKaggleShapeConfig, MovieLens1MConfig, SyntheticConfig)
}
"""Every data set by the name it has on the command line; a new one is one file and one entry here."""

__all__ = [
    "DATASETS",
    "Batch",
    "Batches",
    "CriteoConfig",
    "CriteoKaggleShapeConfig",
    "DatasetConfig",
    "Feature",
    "MovieLens1MConfig",
    "PreparedDataset",
    "SyntheticConfig",
    "prepare",
]
