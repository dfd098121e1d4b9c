"""Trained runs that the packing tests take apart: single- and multi-hot, of several methods."""

from pathlib import Path

import movielens_samples
import pytest

from recemb.cli import main
from recemb.datasets import SyntheticConfig, prepare

SMALL = ["trainer.batch_size=512", "trainer.epochs=1", "trainer.evaluations_per_epoch=1", "model.embedding_dim=8"]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small prepared data set with numbers and 26 features, in a path with a space."""
    path = tmp_path_factory.mktemp("some data") / "rows"
    prepare(SyntheticConfig(rows=6000, path=str(path)), progress=False)
    return path


@pytest.fixture(scope="session")
def genres(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small prepared data set without numbers, with a multi-valued feature."""
    folder = tmp_path_factory.mktemp("movies")
    source = movielens_samples.write(folder / "source", movielens_samples.make(3000))
    path = folder / "rows"
    prepare(
        movielens_samples.MovieLens1MConfig(source=source, path=str(path), genres=True, min_count=1), progress=False
    )
    return path


def train(data: Path, folder: Path, *more: str) -> Path:
    assert main(["train", f"dataset.path={data}", f"hydra.run.dir={folder}", *SMALL, *more]) == 0
    return folder


@pytest.fixture(scope="session")
def full_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of full tables."""
    return train(data, tmp_path_factory.mktemp("a run") / "full")


@pytest.fixture(scope="session")
def packed_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended in packed tables, served in int8."""
    folder = tmp_path_factory.mktemp("a run") / "magnitude"
    return train(data, folder, "table=magnitude", "budget=1/8", "precision=int8")


@pytest.fixture(scope="session")
def bags_run(genres: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of mixed widths on bags of several ids."""
    folder = tmp_path_factory.mktemp("a run") / "bags"
    return train(
        genres, folder, "dataset=movielens_1m", "dataset.genres=true", "dataset.min_count=1", "model=dcn_v2",
        "table=mixed_dimension", "table.threshold=5", "budget=1/3",
    )  # fmt: skip
