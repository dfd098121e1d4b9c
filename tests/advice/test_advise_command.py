"""`recemb advise`, `plan=` and `table=auto` as their users run them: what is chosen, said, trained and gone on with."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import recemb, start

from recemb.budget import parse_budget
from recemb.cli import main

SMALL = ("trainer.epochs=1", "trainer.evaluations_per_epoch=2", "trainer.batch_size=200")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("advice") / "some data"
    done = recemb("prepare", "dataset=synthetic", "dataset.rows=4000", f"dataset.path='{path}'", cwd=path.parent)
    assert done.returncode == 0, done.stderr
    return path


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_a_plan_from_statistics_is_explained_and_trained(data: Path, tmp_path: Path):
    advise = ("advise", str(data), "--budget", "1/16", "--out", "my plan.json")
    done = recemb(*advise, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    plan = read(tmp_path / "my plan.json")
    assert plan["totals"]["bytes"] <= plan["budget_bytes"] == parse_budget("1/16", plan["totals"]["full_bytes"])
    assert plan["totals"]["bytes"] > 0.99 * plan["budget_bytes"]
    assert "nothing was trained" in done.stdout
    said = {one["name"]: one for one in plan["advice"]["features"]}
    assert len(said) == 26
    for name, one in said.items():
        assert f"  {name} " in done.stdout
        assert one["sentence"] in done.stdout
    assert sum(one["share"] for one in said.values()) == pytest.approx(1.0)
    assert "recemb train 'plan=\"my plan.json\"'" in done.stdout

    again = recemb(*advise, cwd=tmp_path)
    assert again.returncode == 2
    assert "my plan.json is there already; choose another --out, or pass --overwrite." in again.stderr

    # Data, backbone, tables and budget come from the plan; the rest is the command's.
    trained = recemb(
        "train", "-m", "plan='my plan.json'", "seed=0,1", *SMALL, "hydra.sweep.dir=runs", cwd=tmp_path,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    records = [read(path) for path in sorted((tmp_path / "runs").glob("*/run.json"))]
    assert [one["seed"] for one in records] == [0, 1]
    for one in records:
        assert (one["method"], one["budget"], one["dataset"]) == ("auto", "1/16", "synthetic")
        assert one["bytes"]["tables_serving"] == plan["totals"]["bytes"]
        assert one["config"]["table"] == plan["table"]
        assert one["advice"] == {**plan["advice"], "asked": {"precision": "fp32"}}
    reported = recemb("report", "runs", cwd=tmp_path)
    assert "2 runs, 1 points" in reported.stdout, reported.stderr


def test_trials_choose_and_what_they_trained_is_the_run(data: Path, tmp_path: Path):
    run = ("train", "table=auto", "table.trials=4", "budget=1/16", f"dataset.path='{data}'", "seed=3", *SMALL)
    done = recemb(*run, "hydra.run.dir=one go", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = read(tmp_path / "one go" / "run.json")
    advice = record["advice"]
    assert [one["method"] for one in advice["tried"]] == ["full", "auto", "auto with projections", "mixed_dimension"]
    assert all("test" not in one for one in advice["tried"])
    within = [one for one in advice["tried"][1:] if one["valid"]]
    best = min(within, key=lambda one: one["valid"]["logloss"])
    assert advice["chosen"]["method"] == best["method"]
    assert all(one["bytes"] <= parse_budget("1/16", record["bytes"]["tables_full"]) for one in within)
    assert record["metrics"]["valid"]["logloss"] == best["valid"]["logloss"]
    assert record["method"] == "auto"
    assert not (tmp_path / "one go" / "advice").exists()
    assert (tmp_path / "one go" / "checkpoint").is_dir()

    resumed = recemb(*run, "hydra.run.dir=one go", "resume=true", cwd=tmp_path)
    assert "is completed already" in resumed.stderr, resumed.stderr
    other = recemb(*run, "hydra.run.dir=one go", "resume=true", "table.trials=2", cwd=tmp_path)
    assert "table.trials=4, not 2" in other.stderr

    # The same in two steps, the plan in a file.
    advised = recemb(
        "advise", str(data), "--budget", "1/16", "--trials", "4", "--seed", "3", *SMALL, "--json", cwd=tmp_path,
    )  # fmt: skip
    assert advised.returncode == 0, advised.stderr
    plan = json.loads(advised.stdout)
    assert plan == read(tmp_path / "plan.json")
    assert not (tmp_path / "plan.json.trials").exists()
    assert [one["valid"] for one in plan["advice"]["tried"]] == [one["valid"] for one in advice["tried"]]
    trained = recemb("train", "plan=plan.json", "seed=3", *SMALL, "hydra.run.dir=two", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert read(tmp_path / "two" / "run.json")["metrics"] == record["metrics"]
    smaller = recemb("compress", "one go", "--precision", "int4", "--out", "int4", cwd=tmp_path)
    assert smaller.returncode == 0, smaller.stderr


def _killed(command: list[str], cwd: Path, when: Path) -> None:
    """Run a command and kill it as soon as a path exists."""
    process = start(*command, cwd=cwd)
    while not when.exists():
        assert process.poll() is None, process.stderr
        time.sleep(0.005)
    process.kill()
    process.wait()


@pytest.mark.wide
def test_a_kill_in_a_trial_loses_nothing(data: Path, tmp_path: Path):
    command = ["advise", str(data), "--budget", "1/16", "--trials", "3", *SMALL]
    whole = recemb(*command, "--out", "whole.json", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    _killed([*command, "--out", "cut.json"], tmp_path, tmp_path / "cut.json.trials" / "003")
    assert not (tmp_path / "cut.json").exists()
    again = recemb(*command, "--out", "cut.json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    found, wanted = read(tmp_path / "cut.json"), read(tmp_path / "whole.json")
    assert "trial 3 of 3" in again.stderr
    assert "trial 1 of 3" not in again.stderr  # what is finished is not trained again
    for one in (found, wanted):
        for each in one["advice"]["tried"]:
            del each["seconds"]
    assert found == wanted

    run = [
        "train",
        "table=auto",
        "table.trials=3",
        "budget=1/16",
        f"dataset.path='{data}'",
        *SMALL,
        "hydra.run.dir=run",
    ]
    _killed(run, tmp_path, tmp_path / "run" / "advice" / "002")
    resumed = recemb(*run, "resume=true", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    record = read(tmp_path / "run" / "run.json")
    assert [one["valid"] for one in record["advice"]["tried"]] == [one["valid"] for one in wanted["advice"]["tried"]]
    assert record["config"]["table"]["plan"] == wanted["table"]["plan"]


@pytest.mark.wide
def test_trials_of_other_options_are_not_taken_for_these(data: Path, tmp_path: Path):
    command = ["advise", str(data), "--budget", "1/16", "--trials", "2", *SMALL]
    _killed([*command, "trainer.lr=0.01"], tmp_path, tmp_path / "plan.json.trials" / "002")
    refused = recemb(*command, cwd=tmp_path)
    assert refused.returncode == 2
    assert "holds unfinished trials of other options; give those again" in refused.stderr
    # One more trial, and what training does not depend on, are no other options.
    more = recemb(*command, "trainer.lr=0.01", "trainer.checkpoint_minutes=5", "--trials", "3", cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    assert "trial 1 of" not in more.stderr
    assert len(read(tmp_path / "plan.json")["advice"]["tried"]) == 3


@pytest.mark.wide
def test_a_plan_of_any_method_can_be_trained(data: Path, tmp_path: Path):
    planned = recemb(
        "plan",
        "table=hashing",
        "budget=1/8",
        "precision=int8",
        "dataset=synthetic",
        f"dataset.path='{data}'",
        "--json",
        cwd=tmp_path,
    )
    (tmp_path / "hashing.json").write_text(planned.stdout)
    trained = recemb("train", "plan=hashing.json", *SMALL, "hydra.run.dir=run", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    record, plan = read(tmp_path / "run" / "run.json"), json.loads(planned.stdout)
    assert (record["method"], record["budget"], record["config"]["precision"]) == ("hashing", "1/8", "int8")
    assert record["bytes"]["tables_serving"] == plan["totals"]["bytes"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"budget": "1/64"}, "more than the budget 1/64 that it states; make it anew"),
        ({"embedding_dim": 8}, "is one for vectors of 8 numbers, and the model takes 16"),
        ({"model": "dlrm"}, "is no plan, which recemb advise"),
        ({"model": {"embedding_dim": 16}}, "is no plan, which recemb advise"),
        ({"data": ["x"]}, "is no plan, which recemb advise"),
        ({"features": [{"name": "C1", "ids": float("inf")}]}, "is no plan, which recemb advise"),
        ({"table": {"name": "auto", "plan": {"C1": [[float("inf"), 16, "fp16"]]}}}, "table.plan.C1="),
        ({"table": {"name": "auto", "plan": None, "project": "no"}}, "table.project=no must be true or false."),
        ({"data": {"name": "synthetic", "path": "not there"}}, "There is no prepared data set at not there"),
    ],
)
def test_a_plan_changed_by_hand_is_checked(
    change: dict[str, Any], said: str, data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["advise", str(data), "--budget", "1/8"]) == 0
    Path("plan.json").write_text(json.dumps(read(tmp_path / "plan.json") | change))
    assert main(["train", "plan=plan.json"]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["advise"], "the following arguments are required: "),
        (["advise", "DATA"], "the following arguments are required: --budget"),
        (["advise", "DATA", "elsewhere", "--budget", "1/8"], "takes one folder of a prepared data set, and 2 came: "),
        (["advise", "nowhere", "--budget", "1/8"], "There is no prepared data set at nowhere; run recemb prepare"),
        (["advise", "DATA", "--budget", "much"], "budget=much is not a budget"),
        (["advise", "DATA", "--budget", "90B"], "table=auto cannot be made as small as 90 B (90 bytes): the least"),
        (["advise", "DATA", "--budget", "1/8", "--trials", "-1"], "--trials -1 must be 0 or more."),
        (["advise", "DATA", "--budget", "1/8", "table=full"], "table=full is no option of recemb advise"),
        (["advise", "DATA", "--budget", "1/8", "--out", "/proc/plan.json"], "cannot write /proc/plan.json: "),
        (["train", "plan=nowhere.json"], "plan=nowhere.json cannot be read: No such file or directory."),
        (["train", "plan=broken.json"], "plan=broken.json is no plan, which recemb advise and recemb plan"),
        (["train", "plan=old.json"], "plan=old.json has form 0, and this recemb reads form 1."),
        (["train", "plan=plan.json", "table=full"], "table=full and plan=plan.json both say what the tables are"),
        (["train", "plan=plan.json", "budget=1/4"], "budget=1/4 and plan=plan.json both say what the tables are"),
        (["train", "plan=plan.json", "table.trials=0"], "table.trials=0 and plan=plan.json both say what"),
        (
            ["train", "plan=plan.json", "dataset=synthetic", "dataset.rows=900", "dataset.path=other"],
            "plan=plan.json is one for other data: of C",
        ),
        (["train", "table=auto", "table.plan={a: [[1, 1, fp16]]}", "DATASET"], "table.plan has no feature C1; it is"),
        (["train", "table=auto", "table.plan=all", "DATASET"], "table.plan=all is no plan: it says by feature"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(
    arguments: list[str], said: str, data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    if "plan=plan.json" in arguments:
        assert main(["advise", str(data), "--budget", "1/8"]) == 0
    if "dataset.path=other" in arguments:
        assert main(["prepare", "dataset=synthetic", "dataset.rows=900", "dataset.path=other"]) == 0
    Path("broken.json").write_text("[]")
    Path("old.json").write_text('{"schema": 0}')
    try:
        status = main(
            [one.replace("DATASET", f"dataset.path='{data}'").replace("DATA", str(data)) for one in arguments]
        )
    except SystemExit as error:
        status = error.code
    assert status == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "Traceback" not in error
