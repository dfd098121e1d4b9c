"""What the end of `make demo` says is what its runs came to, and it fails where there is nothing to say."""

import csv
import json
import runpy
import sys
from pathlib import Path

import pytest

import recemb
from recemb.cli import main

TOOL = Path(__file__).resolve().parent.parent / "tools" / "demo_story.py"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo of three runs in a path with a space."""
    folder = tmp_path_factory.mktemp("a demo")
    data = [f"dataset.path={folder / 'data'}", "dataset.rows=4000"]
    assert main(["prepare", "dataset=synthetic_catalog", *data]) == 0
    choices = ["table=full", "table=hashing budget=1/4", "table=mixed_dimension budget=1/4"]
    for number, choice in enumerate(choices):
        run = [*choice.split(), "trainer.steps=4", f"hydra.run.dir={folder / 'runs' / str(number)}"]
        assert main(["train", "experiment=demo", *data, *run]) == 0
    assert main(["report", str(folder / "runs"), "--out", str(folder / "report")]) == 0
    return folder


def tell(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(TOOL), str(demo)])
    runpy.run_path(str(TOOL), run_name="__main__")


def test_it_says_what_the_runs_came_to(demo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    tell(demo, monkeypatch)
    full, *compressed = (json.loads((demo / "runs" / str(n) / "run.json").read_text()) for n in range(3))
    best, other = sorted(compressed, key=lambda record: -record["metrics"]["valid"]["auc"])
    said = capsys.readouterr().out
    _, found = said.split("\nFound:\n")
    first, second, third, *_ = found.splitlines()
    assert f"test AUC {full['metrics']['test']['auc']:.4f}" in first
    assert f"{full['data']['ceiling']['test']['auc']:.4f}" in first
    assert second.strip().startswith(f"{best['method']} 1/4 ")
    assert f"test AUC {best['metrics']['test']['auc']:.4f}, {1 / best['kept']:.1f}x smaller" in second
    assert second.endswith(f"in the same bytes {other['method']} {other['metrics']['test']['auc']:.4f}")
    # The band is the report's own.
    page = (demo / "report" / "report.html").read_text(encoding="utf-8")
    assert f"Differences under {third.split('under ')[1].split()[0]} AUC" in page
    assert recemb.load(demo / "export").manifest["method"] == best["method"]


def test_it_fails_without_a_report_or_a_full_table(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(SystemExit, match=r"^demo: there is no .*results\.csv; write a report first"):
        tell(tmp_path, monkeypatch)
    with (demo / "report" / "results.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    (tmp_path / "report").mkdir()
    with (tmp_path / "report" / "results.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *(row for row in rows if row[header.index("point")] != "full")])
    with pytest.raises(SystemExit, match=r"^demo: .* needs a run of the full table"):
        tell(tmp_path, monkeypatch)


def test_it_fails_where_the_run_cannot_be_exported(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "results.csv").write_bytes((demo / "report" / "results.csv").read_bytes())
    with pytest.raises(SystemExit, match=r"^demo: .* was not exported"):
        tell(tmp_path, monkeypatch)
