"""Rows of one class, or one row alone: what is not defined is said to be so by every verb, and nothing is made up."""

import json
from pathlib import Path

import pandas as pd
import pytest

from recemb.cli import main

SMALL = ("trainer.batch_size=16", "trainer.epochs=1", "trainer.evaluations_per_epoch=1", "model.embedding_dim=4")
COLUMNS = "label: y\ncategorical: [user, item]\ndense: [age]\nsplit: {column: part}\n"
# Labels of the validation and the test rows.
SHAPES = {
    "test rows of one class": ([0, 1] * 5, [1] * 6),
    "one test row": ([0, 1] * 5, [0]),
    "validation rows of one class": ([0] * 8, [0, 1] * 5),
    "one row of each": ([1], [1]),
}


@pytest.fixture(scope="module", params=SHAPES)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data of a shape and a run on it."""
    folder = tmp_path_factory.mktemp("undefined")
    valid, test = SHAPES[request.param]
    labels = [0, 1] * 20 + valid + test
    parts = ["train"] * 40 + ["valid"] * len(valid) + ["test"] * len(test)
    rows = range(len(labels))
    frame = {
        "y": labels,
        "age": [20 + i % 7 for i in rows],
        "user": [f"u{i % 9}" for i in rows],
        "item": [f"i{i % 5}" for i in rows],
    }
    pd.DataFrame({**frame, "part": parts}).to_csv(folder / "rows.csv", index=False)
    (folder / "columns.yaml").write_text(COLUMNS)
    source = [f"dataset.source={folder}/rows.csv", f"dataset.columns={folder}/columns.yaml", "dataset.min_count=1"]
    assert main(["prepare", "dataset=tabular", *source, f"dataset.path={folder}/data"]) == 0
    assert run(folder, "run", "table=full") == 0
    return folder


def run(folder: Path, name: str, *options: str) -> int:
    return main(
        ["train", "dataset=tabular", f"dataset.path={folder}/data", f"hydra.run.dir={folder}/{name}", *options, *SMALL]
    )


def defined(labels: list[int]) -> bool:
    return len(set(labels)) == 2


def test_training_says_it_and_the_record_has_null(place: Path, capsys: pytest.CaptureFixture[str]):
    metrics = json.loads((place / "run" / "run.json").read_text())["metrics"]
    frame = pd.read_csv(place / "rows.csv")
    for split in ("valid", "test"):
        labels = frame["y"][frame["part"] == split].tolist()
        assert (metrics[split]["auc"] is not None) == defined(labels)
        assert metrics[split]["logloss"] > 0
    assert run(place, "again", "table=full", "seed=1") == 0
    assert ("test AUC not defined" in capsys.readouterr().out) == (metrics["test"]["auc"] is None)


def test_compressing_says_it(place: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["compress", f"{place}/run", "--precision", "int8", "--out", f"{place}/int8"]) == 0
    auc = json.loads((place / "run" / "run.json").read_text())["metrics"]["test"]["auc"]
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("test auc")]
    assert (line.count("not defined") == 3) == (auc is None)


def test_an_export_says_it(place: Path):
    assert main(["export", f"{place}/run", "--out", f"{place}/carry", "--to", "safetensors,pt2"]) == 0
    auc = json.loads((place / "run" / "run.json").read_text())["metrics"]["test"]["auc"]
    assert ("AUC\nnot defined" in (place / "carry" / "README.md").read_text()) == (auc is None)


@pytest.mark.parametrize("more", [(), ("--target", "0.7")], ids=["plain", "target"])
def test_a_report_leaves_out_what_has_no_auc_and_says_so(
    place: Path, more: tuple[str, ...], capsys: pytest.CaptureFixture[str]
):
    auc = json.loads((place / "run" / "run.json").read_text())["metrics"]["test"]["auc"]
    status = main(["report", f"{place}/run", "--out", f"{place}/report", *more])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    if auc is None:
        assert "not defined" in said.err or "AUC" in said.err
    else:
        assert status == 0


def test_other_verbs_go_on(place: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["inspect", f"{place}/data", "--out", f"{place}/page"]) == 0
    assert (
        main(["advise", f"{place}/data", "--budget", "1/2", "--trials", "2", "--out", f"{place}/plan.json", *SMALL])
        == 0
    )
    assert run(place, "tuned", "table=hashing", "table.rows=4", "tune.trials=2") == 0
    assert "Traceback" not in capsys.readouterr().err
