"""A place with one of everything that recemb writes, which the soak damages copies of."""

import shutil
from pathlib import Path

import pytest

from recemb.cli import main

SMALL = ("trainer.batch_size=256", "trainer.epochs=1", "trainer.evaluations_per_epoch=1", "model.embedding_dim=4")


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data`, a `run` on it, its export `carry`, `plan.json`, and the source `rows.csv` with `columns.yaml`."""
    folder = tmp_path_factory.mktemp("the soak")
    assert main(["prepare", "dataset=synthetic", "dataset.rows=1500", f"dataset.path={folder}/data"]) == 0
    run = ["train", f"dataset.path={folder}/data", "table=hashing", "budget=1/4", f"hydra.run.dir={folder}/run"]
    assert main([*run, *SMALL]) == 0
    assert main(["export", f"{folder}/run", "--out", f"{folder}/carry", "--to", "safetensors"]) == 0
    assert main(["advise", f"{folder}/data", "--budget", "1/8", "--out", f"{folder}/plan.json"]) == 0
    rows = "".join(f"{i % 2},u{i % 7},{i % 5},{i / 3:.2f}\n" for i in range(60))
    (folder / "rows.csv").write_text("y,user,item,price\n" + rows)
    (folder / "columns.yaml").write_text("label: y\ncategorical: [user, item]\ndense: [price]\nsplit: {random: 0}\n")
    return folder


@pytest.fixture
def copied(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the place, in which commands run."""
    folder = tmp_path / "a copy"
    shutil.copytree(place, folder)
    monkeypatch.chdir(folder)
    return folder
