"""A soak of malformed inputs: each ends in one sentence or in a right answer, runs nothing, and loses nothing.

Every file that recemb reads is damaged in every way of `damage`, and given to the verbs that read it; and options and
rows are given that no person means.
"""

import json
import re
from pathlib import Path

import damage
import pytest

import recemb
from recemb import RecembError
from recemb.cli import main
from recemb.training.record import read_status

SMALL = ("trainer.batch_size=256", "trainer.epochs=1", "trainer.evaluations_per_epoch=1", "model.embedding_dim=4")
EXPORT = ("export", "run", "--data", "data", "--out", "new", "--to", "safetensors")
COMPRESS = ("compress", "run", "--data", "data", "--precision", "int8", "--out", "new")
TRAIN = ("train", "dataset.path=data", "table=full", "hydra.run.dir=new", *SMALL)
# Whatever reads a file, by the file.
READERS = {
    "run/run.json": [EXPORT, COMPRESS, ("report", "run", "--out", "new")],
    "run/predictions.parquet": [("report", "run", "--out", "new")],
    "run/checkpoint/*.safetensors": [EXPORT],
    "data/meta.json": [TRAIN, ("inspect", "data"), ("plan", "dataset=synthetic", "dataset.path=data")],
    "data/train.arrow": [TRAIN],
    "data/test.arrow": [EXPORT],
    "data/vocabulary/C3.arrow": [TRAIN],
    "plan.json": [("train", "plan=plan.json", "hydra.run.dir=new", *SMALL)],
    "columns.yaml": [("prepare", "dataset=tabular", "dataset.source=rows.csv", "dataset.columns=columns.yaml",
                      "dataset.path=new")],
    "rows.csv": [("prepare", "dataset=tabular", "dataset.source=rows.csv", "dataset.columns=columns.yaml",
                  "dataset.path=new")],
}  # fmt: skip
DAMAGED = [
    pytest.param(file, command, way, id=f"{file}-{command[0]}-{way}", marks=() if way in keep else pytest.mark.wide)
    for file, commands in READERS.items()
    for command in commands
    for way in (damage.JSON_WAYS if file.endswith("json") else damage.WAYS)
    for keep in (("pickle", "half", "a list"),)
]


def outcome(command: tuple[str, ...], folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run a command that may be refused in one sentence; nothing that was there may change."""
    before = damage.listing(folder)
    capsys.readouterr()
    try:
        status = main([*command])
    except SystemExit as error:  # of argparse
        status = int(error.code or 0)
    said = capsys.readouterr().err
    assert "Traceback" not in said, said[-3000:]
    assert not (folder / "IT_RAN").exists()
    assert not (folder.parent / "escaped").exists()
    after = damage.listing(folder)
    assert {name: after.get(name) for name in before} == before
    assert not [name for name in after if "partial" in name]
    told = [line for line in said.replace("\r", "\n").splitlines() if re.match(r"recemb[ :]", line)]
    if status:
        assert status == 2, said[-2000:]
        assert len(told) == 1, said[-2000:]
        assert len(told[0]) < 1500, told
        assert told[0].isprintable(), told
        assert read_status(folder / "new") in (None, "failed")
    return status, told[0] if told else ""


@pytest.mark.parametrize(("file", "command", "way"), DAMAGED)
def test_a_damaged_file(
    file: str, command: tuple[str, ...], way: str, copied: Path, capsys: pytest.CaptureFixture[str]
):
    (path,) = copied.glob(file)
    whole = path.read_bytes()
    ways = damage.JSON_WAYS if file.endswith("json") else damage.WAYS
    content = ways[way](whole)
    path.write_bytes(content)
    status, told = outcome(command, copied, capsys)
    # What is read all the same means the same: Arrow is read from the end, YAML takes the later of two equal keys, JSON
    # may end without a line end; rows that are a few less are rows; predictions cost a report its intervals alone.
    harmless = {
        ("rows.csv", "half"), ("rows.csv", "a byte short"), ("columns.yaml", "a byte short"), ("columns.yaml", "half"),
        ("columns.yaml", "doubled"), ("run/predictions.parquet", way),
        *((name, kind) for name in READERS for kind in ("wrong magic", "doubled") if name.endswith(".arrow")),
        *((name, kind) for name in READERS for kind in ("a byte short", "NaN") if name.endswith("json")),
    }  # fmt: skip
    if content != whole and (file, way) not in harmless:
        assert status == 2, (file, way, told)


OPTIONS = [
    "trainer.lr=-1", "trainer.lr=nan", "trainer.lr=inf", "trainer.lr=abc", "trainer.lr=", "trainer.lr=[1,2]",
    "trainer.epochs=0", "trainer.epochs=-3", "trainer.epochs=1.5", "trainer.epochs=true", "trainer.epochs=1e9x",
    "trainer.batch_size=0", "trainer.batch_size=-1", "trainer.batch_size=null", "trainer.monitor=f1",
    "trainer.patience=-1", "trainer.steps=0", "trainer.schedule=cosine", "trainer.device=tpu", "trainer.sharding=maybe",
    "trainer.table_optimizer=lion", "trainer.checkpoint_steps=0", "trainer.keep_checkpoints=0",
    "trainer.evaluations_per_epoch=0", "trainer.projector=nobody", "model.embedding_dim=0", "model.embedding_dim=-4",
    "model.embedding_dim=3.5", "model.embedding_dim=99999999999999999999", "model.dropout=2", "model=transformer",
    "model=null", "table=", "table=nope", "table=null", "table.rows=3", "budget=0", "budget=-1", "budget=2/0",
    "budget=1/-4", "budget=64XiB", "budget=1//4", "budget=abc", "budget=1/1e999", "budget=0x10", "budget=null,1/4",
    "precision=int3", "precision=null", "seed=-1", "seed=abc", "seed=1e400", "dataset=nope", "dataset.path=",
    "dataset.path=/dev/null", "dataset.path=[a,b]", "dataset.rows=-1", "dataset.path=..",
    "dataset.path=rows.csv", "experiment=nope", "experiment=../../etc/passwd", "plan=nowhere.json", "plan=rows.csv",
    "plan=.", "resume=maybe", "overwrite=maybe", "tune.trials=-1", "tune.trials=1", "tune.lr=[1]", "tune.lr=[2,1]",
    "hydra.run.dir=rows.csv", "hydra.run.dir=/proc/x", "=", "==", "a", "+a=1", "~trainer", "++x=${oc.env:HOME}",
    "trainer.lr=${nope}", "trainer.lr=${", "table={name: full}", "x" * 200 + "=1", "table=full,hashing",
    "trainer.lr='", "\u0000=1", "größe=1", "table=full budget=1", "-z", "--nope",
]  # fmt: skip
FEW = ("trainer.lr=nan", "budget=2/0", "experiment=../../etc/passwd", "trainer.lr=${", "hydra.run.dir=/proc/x")


@pytest.mark.parametrize(
    "option",
    [
        pytest.param(option, id=f"{number}", marks=() if option in FEW else pytest.mark.wide)
        for number, option in enumerate(OPTIONS)
    ],
)
def test_an_option_that_nobody_means(option: str, copied: Path, capsys: pytest.CaptureFixture[str]):
    given = {"hydra.run.dir=new"} if option.startswith("hydra.run.dir") else set()
    command = ["train", "dataset.path=data", "hydra.run.dir=new", *SMALL]
    command = [one for one in command if one not in given and one.split("=")[0] != option.split("=")[0]]
    status, told = outcome((*command, option), copied, capsys)
    assert status == 2, told


ROWS = {
    "a row too short": "1,u1\n", "a row too long": "1,u1,2,0.5,9,9\n", "no label": ",u1,2,0.5\n",
    "another label": "2,u1,2,0.5\n", "a label in words": "yes,u1,2,0.5\n", "a number in words": "1,u1,2,thirty\n",
    "a decimal comma": '1,u1,2,"30,5"\n', "hexadecimal": "1,u1,2,0x1F\n", "an open quote": '1,"u1,2,0.5\n',
    "two points": "1,u1,2,1.2.3\n",
}  # fmt: skip
PREPARE = ("prepare", "dataset=tabular", "dataset.source=rows.csv", "dataset.columns=columns.yaml", "dataset.path=new")


@pytest.mark.parametrize("row", ROWS)
def test_a_row_that_is_none(row: str, copied: Path, capsys: pytest.CaptureFixture[str]):
    with (copied / "rows.csv").open("a") as file:
        file.write(ROWS[row])
    status, told = outcome(PREPARE, copied, capsys)
    assert status == 2, told
    assert "rows.csv" in told


COLUMNS = {
    "no label": "categorical: [user]\nsplit: {random: 0}\n",
    "an unknown label": "label: z\ncategorical: [user]\nsplit: {random: 0}\n",
    "no features": "label: y\nsplit: {random: 0}\n", "no split": "label: y\ncategorical: [user]\n",
    "two labels": "label: {y: '>1', user: '>2'}\ncategorical: [item]\nsplit: {random: 0}\n",
    "a feature twice": "label: y\ncategorical: [user, user]\nsplit: {random: 0}\n",
    "the label as a feature": "label: y\ncategorical: [y]\nsplit: {random: 0}\n",
    "code": "label: !!python/object/apply:os.mkdir [IT_RAN]\n",
    "a split by nothing": "label: y\ncategorical: [user]\nsplit: {}\n",
    "a split by an unknown column": "label: y\ncategorical: [user]\nsplit: {time: z}\n",
    "a rule that is none": "label: {y: '=>1'}\ncategorical: [user]\nsplit: {random: 0}\n",
    "an alias bomb": "a: &a [x, x]\nb: &b [*a, *a]\nlabel: *b\n", "a number": "3\n", "a text": "label y\n",
    "an unknown key": "label: y\ncategorical: [user]\nsplit: {random: 0}\nfoo: 1\n",
    "words as numbers": "label: y\ncategorical: [item]\ndense: [user]\nsplit: {random: 0}\n",
}  # fmt: skip


@pytest.mark.parametrize("columns", COLUMNS)
def test_columns_that_are_none(columns: str, copied: Path, capsys: pytest.CaptureFixture[str]):
    (copied / "columns.yaml").write_text(COLUMNS[columns])
    status, told = outcome(PREPARE, copied, capsys)
    assert status == 2, told


CARRIED = [
    pytest.param(file, way, id=f"{file}-{way}", marks=() if way in ("pickle", "half") else pytest.mark.wide)
    for file, ways in (
        ("model.safetensors", damage.WAYS), ("export.json", damage.JSON_WAYS), ("values.json", damage.JSON_WAYS),
        ("vocabulary.parquet", damage.WAYS),
    )
    for way in ways
]  # fmt: skip


@pytest.mark.parametrize(("file", "way"), CARRIED)
def test_an_export_from_a_stranger(file: str, way: str, copied: Path):
    path = copied / "carry" / file
    whole = path.read_bytes()
    content = (damage.JSON_WAYS if file.endswith("json") else damage.WAYS)[way](whole)
    path.write_bytes(content)
    if content == whole or way in ("a byte short", "NaN"):  # a file that ends in a line end means the same without it
        return
    with pytest.raises(RecembError) as caught:
        recemb.load(copied / "carry")
    assert "\n" not in str(caught.value)
    assert not (copied / "IT_RAN").exists()


def test_names_in_an_export_stay_in_its_folder(copied: Path):
    path = copied / "carry" / "export.json"
    manifest = json.loads(path.read_text())
    manifest["files"] = {"../rows.csv": manifest["files"]["model.safetensors"], **manifest["files"]}
    path.write_text(json.dumps(manifest))
    before = damage.listing(copied)
    with pytest.raises(RecembError):
        recemb.load(copied / "carry")
    assert main(["export", "run", "--out", "carry", "--overwrite", "--to", "safetensors"]) in (0, 2)
    assert (copied / "rows.csv").read_bytes() == before["rows.csv"]


def test_there_are_two_hundred():
    assert len(DAMAGED) + len(OPTIONS) + len(ROWS) + len(COLUMNS) + len(CARRIED) >= 200
