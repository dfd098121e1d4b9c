"""The script that compresses other libraries' models: its command line and its table, without those libraries."""

import csv
import io
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import foreign_models


def row(**values) -> foreign_models.Row:
    return foreign_models.Row(library="RecBole", model="BPR", version="1.2.1", way="int8", **values)


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        foreign_models.main(["--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert all(option in said for option in ("--venv", "--out", "--models", "--rows", "--seed"))


def test_an_unknown_model_is_answered_with_those_there_are():
    with pytest.raises(SystemExit, match=r"no model is called 'BRP'; there are .*RecBole/BPR"):
        foreign_models.chosen(["BRP"])
    assert foreign_models.chosen(["RecBole/BPR"]) == [("RecBole", "BPR")]
    assert len(foreign_models.chosen([])) >= 15


def test_a_folder_of_something_else_is_not_made_an_environment(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("chapter one")
    with pytest.raises(SystemExit, match="holds something else"):
        foreign_models.install(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_table_has_a_cell_for_every_heading_and_a_failure_cannot_break_it():
    text = foreign_models.as_markdown([row(tables="2", table_bytes_before=4096, table_bytes_after=512, failed="a | b")])
    heading, rule, line = text.splitlines()
    cells = line.replace("\\|", "").split("|")[1:-1]
    assert len(cells) == len(heading.split("|")[1:-1]) == len(rule.split("|")[1:-1]) == len(foreign_models.HEADINGS)
    assert "4,096 → 512" in line
    assert cells[-1].strip() == "a  b"


def test_the_csv_reads_back_every_digit():
    (read,) = csv.DictReader(io.StringIO(foreign_models.as_csv([row(change=0.1 + 0.2, failed='said "no", and left')])))
    assert float(read["change"]) == 0.1 + 0.2
    assert read["failed"] == 'said "no", and left'
