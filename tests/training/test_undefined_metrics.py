"""Metrics that are not defined stay so in everything that shows them, and a model that has diverged is told of."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from undefined_samples import TINY, prepare_rows

import recemb
from recemb.cli import main
from recemb.record import change_text, metric_text


def train(data: Path, folder: Path, *more: str) -> int:
    return main(["train", *TINY, f"dataset.path={data}", f"hydra.run.dir={folder}", *more])


def record_of(folder: Path) -> dict[str, Any]:
    text = (folder / "run.json").read_text()
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"run.json has {name}, which is not JSON"))


@pytest.fixture(scope="module")
def one_class(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data whose validation and test rows all have one label."""
    return prepare_rows(tmp_path_factory.mktemp("one class"), valid=(12, 1), test=(12, 0))


@pytest.fixture(scope="module")
def one_class_run(one_class: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "one class"
    assert train(one_class, folder, "trainer.monitor=auc") == 0
    return folder


@pytest.fixture(scope="module")
def both_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_rows(tmp_path_factory.mktemp("both classes"))


def test_a_run_without_an_auc_has_null(one_class_run: Path):
    record = record_of(one_class_run)
    assert record["status"] == "completed"
    for split in ("valid", "test"):
        assert record["metrics"][split]["auc"] is None
        assert record["metrics"][split]["ne"] is None
        assert record["metrics"][split]["logloss"] > 0


def test_where_validation_has_no_auc_logloss_is_monitored(one_class_run: Path):
    record = record_of(one_class_run)
    assert record["config"]["trainer"]["monitor"] == "logloss"
    assert record["training"]["best_step"] > 0


def test_tensorboard_gets_no_auc_of_validation_rows_of_one_class(one_class_run: Path):
    events = EventAccumulator(str(one_class_run)).Reload()
    assert "valid/logloss" in events.Tags()["scalars"]
    assert "valid/auc" not in events.Tags()["scalars"]


def test_the_end_of_training_says_undefined(one_class: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["train", "-m", *TINY, f"dataset.path={one_class}", f"hydra.sweep.dir={tmp_path}", "seed=0,1"]) == 0
    said = capsys.readouterr()
    assert "full: test AUC not defined, logloss 0." in said.out
    assert "valid AUC not defined, logloss 0." in said.err
    assert "best so far 0." in said.err


@pytest.mark.parametrize("rows", [1, 2, 12])
def test_exports_of_few_rows_of_one_class_work(rows: int, tmp_path: Path):
    data, run, out = prepare_rows(tmp_path, test=(rows, 0)), tmp_path / "run", tmp_path / "out"
    assert train(data, run) == 0
    assert main(["export", str(run), "--out", str(out)]) == 0
    readme = (out / "README.md").read_text()
    assert "AUC\nnot defined, logloss 0." in readme
    assert json.loads((out / "export.json").read_text())["metrics"]["test"]["auc"] is None
    example = json.loads((out / "example.json").read_text())
    assert len(example["logits"]) == min(rows, 3)
    assert f"| `example.json` | {'a row' if rows == 1 else f'{min(rows, 3)} rows'} in" in readme
    assert recemb.load(out).predict([{"user": "u1"}, {"tags": ["a", "b"]}]).shape == (2,)


def test_what_compressing_changed_is_undefined_without_an_auc(
    one_class_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["compress", str(one_class_run), "--precision", "int8", "--out", str(tmp_path / "small")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["test", "auc", *["not", "defined"] * 3] in lines
    assert record_of(tmp_path / "small")["compressed"]["change"]["auc"] == {"mean": None, "low": None, "high": None}


def test_texts_of_undefined_numbers():
    assert metric_text(math.nan) == metric_text(None) == "not defined"
    assert change_text({"mean": 0.00121, "low": -0.0003, "high": 0.0027}) == "+0.0012 [-0.0003, +0.0027]"
    assert change_text({"mean": 0.1, "low": math.nan, "high": 0.2}) == "not defined"
    assert change_text({"mean": None, "low": None, "high": None}) == "not defined"


def test_a_report_leaves_runs_without_an_auc_out_and_says_why(
    one_class_run: Path, both_classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert train(both_classes, tmp_path / "both") == 0
    folders = [str(tmp_path / "both"), str(one_class_run)]
    assert main(["report", *folders, "--out", str(tmp_path / "report"), "--target", "0.6", "--before", folders[0]]) == 0
    said = capsys.readouterr().err
    assert "all its test rows have the same label, so that it has no AUC" in said
    frame = pd.read_csv(tmp_path / "report" / "results.csv")
    assert sorted(frame["test_auc"].isna()) == [False, True]
    assert frame["test_logloss"].notna().all()
    assert "nan" not in (tmp_path / "report" / "report.html").read_text().lower().replace("finance", "")


def test_a_report_shows_runs_whose_validation_rows_have_no_auc(tmp_path: Path):
    data = prepare_rows(tmp_path, valid=(1, 0))
    assert train(data, tmp_path / "runs" / "a") == 0
    assert main(["report", str(tmp_path / "runs")]) == 0
    page = (tmp_path / "runs" / "report.html").read_text()
    assert "validation AUC not defined" in page
    (row,) = pd.read_csv(tmp_path / "runs" / "results.csv").to_dict("records")
    assert math.isnan(row["valid_auc"])
    assert row["valid_logloss"] > 0
    assert f"| {row['valid_logloss']:.4f} |" in (tmp_path / "runs" / "results.md").read_text()


def test_tuning_by_an_auc_that_is_not_defined_goes_by_logloss(one_class: Path, tmp_path: Path):
    assert train(one_class, tmp_path / "run", "trainer.monitor=auc", "tune.trials=2") == 0
    tuning = record_of(tmp_path / "run")["tuning"]
    losses = [trial["valid"]["logloss"] for trial in tuning["tried"]]
    assert tuning["monitor"] == "logloss"
    assert tuning["best"]["trial"] == 1 + losses.index(min(losses))
    assert [trial["valid"]["auc"] for trial in tuning["tried"]] == [None, None]


def test_advice_by_an_auc_that_is_not_defined_goes_by_logloss(
    one_class: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    options = ["--budget", "1/2", "--trials", "3", "--out", str(tmp_path / "plan.json")]
    assert main(["advise", str(one_class), *options, "trainer.epochs=1", "trainer.monitor=auc"]) == 0
    advice = json.loads((tmp_path / "plan.json").read_text())["advice"]
    assert advice["monitor"] == "logloss"
    losses = {trial["method"]: trial["valid"]["logloss"] for trial in advice["tried"][1:]}
    assert advice["chosen"]["method"] == min(losses, key=lambda name: losses[name])
    assert "not defined" in capsys.readouterr().out


def test_a_search_by_an_auc_that_is_not_defined_is_refused_before_training(
    one_class: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert train(one_class, tmp_path / "run", "table=optembed", "budget=1/2") == 2
    assert "searches by AUC on validation rows, and these all have one label" in capsys.readouterr().err
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize("rates", [["trainer.lr=1e30"], ["trainer.table_lr=1e38"]])
def test_a_model_that_diverges_is_told_of_in_a_sentence(
    rates: list[str], both_classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    # With a step an epoch it is the evaluation that finds it.
    assert train(both_classes, tmp_path / "run", "trainer.batch_size=1024", *rates) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.count("Lower trainer.table_lr or trainer.lr.") == 1
    record = record_of(tmp_path / "run")
    assert record["status"] == "failed"
    assert record["error"].startswith("DivergedError: predictions came out NaN or infinite on 12 of 12 validation rows")


def test_a_sweep_and_a_report_go_on_past_a_run_that_diverges(
    both_classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    swept = ["trainer.lr=1e30,1e-3", f"hydra.sweep.dir={tmp_path}"]
    assert main(["train", "-m", *TINY, f"dataset.path={both_classes}", *swept]) == 2
    assert "2 of 2 runs" in capsys.readouterr().err
    assert main(["report", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "lr=1e+30: failed: DivergedError: predictions came out NaN or infinite on 12 of 12 validation" in said.err
    assert "Lower trainer.table_lr or trainer.lr." in said.err
    assert "2 runs, 1 points" in said.out
