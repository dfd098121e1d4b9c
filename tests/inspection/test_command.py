import json
import os
import re

import pytest
from inspection_samples import draw_rows, prepared

from recemb.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    labels, single, multi = draw_rows()
    # What a page, a picture and a formula could stumble over.
    single = {
        "$x_1$<script>alert(1)<b> 価格 a name longer than any column": single["wide"],
        "small": single["small"],
    }
    return prepared(tmp_path_factory.mktemp("data") / "out", labels, single, multi).path


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_text_fits_a_terminal_and_nothing_is_left(folder, tmp_path, capsys):
    assert main(["inspect", str(folder)]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    assert re.search(r"^small +6 +384 B ", text, re.MULTILINE)
    assert "Full fp32 tables 16 wide take" in text
    assert "table=" not in text
    assert list(tmp_path.iterdir()) == []


def test_a_plan_adds_what_is_shared(folder, capsys):
    assert main(["inspect", "table=hashing", str(folder), "budget=1/2", "table.threshold=0"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    assert "table=hashing, budget=1/2, fp32" in text
    sentences = " ".join(text.split())
    assert re.search(r"have an id that shares a row with another one, and [\d.]+% of the updates", sentences)


def test_json(folder, capsys):
    assert main(["inspect", str(folder), "--json", "model.embedding_dim=8"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["embedding_dim"] == 8
    assert [feature["full_bytes"] / feature["ids"] for feature in document["features"]] == [32.0] * 3
    assert "plan" not in document
    assert main(["inspect", str(folder), "table=frequency", "budget=1/4", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["plan"]["table"]["name"] == "frequency"
    assert document["sharing"]["total"]["collides"] > 0


def test_a_page_that_needs_nothing_else(folder, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    assert main(["inspect", str(folder), "table=multiplexed", "budget=1/4", "--out", str(out)]) == 0
    assert capsys.readouterr().out.rstrip().endswith("inspect.html")
    assert sorted(path.name for path in out.iterdir()) == ["inspect.html", "inspect.json", "inspect.png", "sharing.png"]
    page = (out / "inspect.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 8
    assert re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', page) == []
    assert "<script>alert" not in page
    assert page.count("<script>") == 1
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert (out / "inspect.png").read_bytes().startswith(b"\x89PNG")
    document = json.loads((out / "inspect.json").read_text())
    assert {"features", "plan", "sharing"} <= document.keys()


def test_a_feature_without_values_is_left_out(tmp_path, capsys):
    labels, single, multi = draw_rows(300)
    data = prepared(tmp_path / "data", labels, single, multi | {"nothing": [[] for _ in labels]}).path
    assert main(["inspect", str(data), "table=frequency", "budget=1/2", "--out", "out"]) == 0
    text = capsys.readouterr().out
    assert "Nothing has no value in any training row" in " ".join(text.split())
    assert not re.search(r"^nothing ", text, re.MULTILINE)
    assert text.count("\nwide ") == text.count("\ntags ") == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "There is no prepared data set at nowhere"),
        (["."], "is not a prepared data set"),
        (["FOLDER", "."], "takes one folder of a prepared data set, and 2 came"),
        (["table=hashing"], "takes one folder of a prepared data set, and none came"),
        (["FOLDER", "dataset=criteo"], "dataset=criteo is no option of recemb inspect"),
        (["FOLDER", "table=hasching"], "there is no table 'hasching'"),
        (["FOLDER", "table=hashing", "budget=1/5000"], "the least possible is"),
        (["FOLDER", "--out", "file/below"], "cannot write the inspection to file/below: Not a directory"),
    ],
)
def test_mistakes_are_said_in_one_sentence(folder, arguments, sentence, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["inspect", *(str(folder) if one == "FOLDER" else one for one in arguments)]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_may_not_be_written(folder, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir(mode=0o500)
    assert main(["inspect", str(folder), "--out", str(out)]) == 2
    assert "Permission denied; choose another --out" in capsys.readouterr().err


def test_help_names_the_options(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["inspect", "--help"])
    assert exit.value.code == 0
    assert "recemb plan --help" in capsys.readouterr().out
