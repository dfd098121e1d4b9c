"""Every method trained from the command line's entry: bags of several values, raw ids, both backbones, true bytes."""

import json
from pathlib import Path

import movielens_samples
import pytest
from command_line import recemb
from parameters import mostly_wide

from recemb import get_table, list_tables
from recemb.cli import main
from recemb.training.tensor_files import tensor_reader

METHODS = [method.name for method in list_tables()]
SMALL = ["trainer.batch_size=256", "trainer.epochs=1", "trainer.evaluations_per_epoch=2", "model.embedding_dim=8"]


@pytest.fixture(scope="module")
def ratings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("movie lens")
    movielens_samples.write(folder / "ml", movielens_samples.make(count=3000))
    return folder


def prepared(ratings: Path, *options: str) -> str:
    path = ratings / "-".join(["data", *options]).replace("=", "")
    assert (
        main(["prepare", "dataset=movielens_1m", f"dataset.source={ratings}/ml", f"dataset.path={path}", *options]) == 0
    )
    return f"dataset.path={path}"


def stored_bytes(folder: Path) -> int:
    """Bytes of the tables' tensors in a checkpoint."""
    stored = tensor_reader(folder / "checkpoint").read_metadata().state_dict_metadata
    tables = [tensor for name, tensor in stored.items() if ".embedding_bags." in name or ".method." in name]
    return sum(tensor.size.numel() * tensor.properties.dtype.itemsize for tensor in tables)


SHARES = {"pq": 1}  # tables of some ten ids are smaller than the codebooks that would stand for them


@pytest.mark.parametrize("model", mostly_wide(["dlrm", "dcn_v2"], "dcn_v2"))
@pytest.mark.parametrize("method", mostly_wide(METHODS, "full", "mixed_dimension", "multiplexed"))
def test_bags_of_genres_go_through_every_method(method: str, model: str, ratings: Path, tmp_path: Path):
    data = prepared(ratings, "dataset.genres=true")
    share = SHARES.get(method, 2 / 3)
    arguments = [f"table={method}", f"model={model}", f"budget={share}", "dataset=movielens_1m", data, *SMALL]
    assert main(["train", *arguments, f"hydra.run.dir={tmp_path}/run"]) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    sizes = record["bytes"]
    assert sizes["tables_serving"] <= sizes["tables_full"] * share
    if method != "auto":  # whose rows are served in fewer bits than they are trained in
        assert sizes["tables_serving"] == stored_bytes(tmp_path / "run")
    assert sum(sizes["per_table"].values()) == sizes["parts"]["rows"] + sizes["parts"]["parameters"]
    assert record["asked_table"]["name"] == method
    assert record["metrics"]["test"]["logloss"] < 0.75


@pytest.mark.wide
@pytest.mark.parametrize("method", METHODS)
def test_raw_ids_train_where_they_are_taken(
    method: str, ratings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data = prepared(ratings, "dataset.vocabulary=none")
    arguments = [f"table={method}", "model=dcn_v2", "budget=2/3", "dataset=movielens_1m", data, *SMALL]
    status = main(["train", *arguments, f"hydra.run.dir={tmp_path}/run"])
    if get_table(method).table.takes_raw_ids:
        assert status == 0
        assert json.loads((tmp_path / "run" / "run.json").read_text())["kept"] <= 2 / 3
    else:
        assert status == 2
        assert f"table={method} needs ids from a vocabulary" in capsys.readouterr().err
        assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize(("model", "warns"), [("dlrm", True), ("dcn_v2", False)])
def test_a_model_that_cannot_tell_features_apart_is_warned_of(model: str, warns: bool, ratings: Path, tmp_path: Path):
    data = prepared(ratings)
    arguments = ["table=multiplexed", f"model={model}", "budget=2/3", "dataset=movielens_1m", data, *SMALL]
    done = recemb("train", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert ("cannot tell apart; model=dcn_v2 can" in done.stderr) == warns


def test_a_model_that_wants_one_width_says_so_before_anything_is_written(
    ratings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["table=multiplexed", "table.probes_of={user:2}", "dataset=movielens_1m", prepared(ratings), *SMALL]
    assert main(["train", *arguments, f"hydra.run.dir={tmp_path}/run"]) == 2
    assert "all tables must have one width, not [8, 16]; model=dcn_v2 takes several" in capsys.readouterr().err
    assert not (tmp_path / "run" / "run.json").exists()
    assert main(["train", "model=dcn_v2", *arguments, f"hydra.run.dir={tmp_path}/run"]) == 0


def test_a_list_of_experiments_is_refused_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["train", "experiment=[demo,baselines]", f"hydra.run.dir={tmp_path}"]) == 2
    assert "experiment= takes the name of one experiment, not a list" in capsys.readouterr().err
