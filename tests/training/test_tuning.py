"""Tuned runs: what is tried and chosen, that test rows have no say, and that a killed run comes to the same."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from command_line import recemb
from pyarrow import ipc
from together import kill_when, training

from recemb.cli import main
from recemb.config import run_config_from_dict
from recemb.datasets import SyntheticConfig, prepare
from recemb.packing.compress import Finetuning, compress_run
from recemb.training.reopen import open_run
from recemb.training.tuning import as_trained

SMALL = ("trainer.epochs=1", "trainer.batch_size=200", "trainer.evaluations_per_epoch=2", "model.embedding_dim=8")
STATES = ("trainer.checkpoint_steps=3", "trainer.checkpoint_minutes=null")
LEFT_BY_A_RUN = {"checkpoint", "config.yaml", "predictions.parquet", "run.json"}
# Rates of which some are far too high, so that the loss becomes no number.
BROKEN = ("trainer.table_optimizer=sgd", "tune.table_lr=[0.005,1e30]")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tuning") / "some data"
    prepare(SyntheticConfig(rows=3000, path=str(path)), progress=False)
    return path


def options(data: Path, folder: Path, *more: str) -> list[str]:
    named = {one.split("=")[0] for one in more}
    usual = [one for one in ("table=hashing", "budget=1/4", *SMALL) if one.split("=")[0] not in named]
    return ["dataset=synthetic", f"dataset.path='{data}'", *usual, *more, f"hydra.run.dir='{folder}'"]


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return found


def train(data: Path, folder: Path, *more: str) -> dict[str, Any]:
    assert main(["train", *options(data, folder, *more)]) == 0
    return record(folder)


def tried(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The trials of a record without what time says."""
    return [{name: value for name, value in one.items() if name != "seconds"} for one in found["tuning"]["tried"]]


def outcome(folder: Path) -> tuple[Any, ...]:
    """What must be the same however often a run was broken off, and however its rates were come by."""
    found = record(folder)
    assert found["status"] == "completed"
    structure = (folder / "kept.parquet").read_bytes() if "structure" in found else None
    return found["metrics"], found["training"], found["bytes"], structure, (folder / "predictions.parquet").read_bytes()


def as_given(found: dict[str, Any]) -> list[str]:
    """The options that give a run the rates that another's tuning has chosen."""
    return [f"trainer.{name}={found['tuning']['best'][name]!r}" for name in ("lr", "table_lr")]


@pytest.fixture(scope="module")
def tuned(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a tuned run") / "run"
    train(data, folder, "tune.trials=6")
    return folder


def test_the_best_of_as_many_trials_as_asked_for_is_the_run(tuned: Path):
    found = record(tuned)
    tuning = found["tuning"]
    assert (tuning["trials"], tuning["monitor"], len(tuning["tried"])) == (6, "logloss", 6)
    assert (tuning["tried"][0]["lr"], tuning["tried"][0]["table_lr"]) == (0.003, 0.02)
    assert len({(one["lr"], one["table_lr"]) for one in tuning["tried"]}) == 6
    for one in tuning["tried"]:
        for name, (low, high) in tuning["ranges"].items():
            assert low <= one[name] <= high
    scores = [one["valid"]["logloss"] for one in tuning["tried"]]
    assert tuning["best"]["trial"] == scores.index(min(scores)) + 1 > 1
    best = tuning["tried"][tuning["best"]["trial"] - 1]
    assert {name: best[name] for name in ("lr", "table_lr")} == {n: tuning["best"][n] for n in ("lr", "table_lr")}
    assert found["metrics"]["valid"] == best["valid"]
    assert found["seconds"] >= sum(one["seconds"] for one in tuning["tried"]) > 0
    assert found["versions"]["optuna"]
    # What was asked for stays what the record and its command say.
    assert found["config"]["trainer"]["lr"] == 0.003
    assert found["config"]["tune"] == {"trials": 6, **tuning["ranges"]}
    assert "tune.trials=6" in found["command"]
    assert {path.name for path in tuned.iterdir() if not path.name.startswith("events")} == LEFT_BY_A_RUN


def test_it_is_the_run_of_the_chosen_rates(tuned: Path, data: Path, tmp_path: Path):
    plain = train(data, tmp_path / "plain", *as_given(record(tuned)))
    assert outcome(tmp_path / "plain") == outcome(tuned)
    assert "tune" not in plain["config"]
    assert "tuning" not in plain


def test_the_command_in_the_record_repeats_it(tuned: Path, tmp_path: Path):
    command = [one for one in shlex.split(record(tuned)["command"])[1:] if not one.startswith("hydra.run.dir")]
    assert main([*command, f"hydra.run.dir='{tmp_path / 'again'}'"]) == 0
    assert outcome(tmp_path / "again") == outcome(tuned)
    assert tried(record(tmp_path / "again")) == tried(record(tuned))


def test_test_rows_have_no_say(tuned: Path, data: Path, tmp_path: Path):
    shutil.copytree(data, tmp_path / "data")
    with ipc.open_file(data / "test.arrow") as file:
        rows = file.read_all()
    place = rows.schema.get_field_index("label")
    turned = pa.array([not one for one in rows.column(place).to_pylist()]).cast(rows.schema.field(place).type)
    with ipc.new_file(tmp_path / "data" / "test.arrow", rows.schema) as file:
        file.write(rows.set_column(place, rows.schema.field(place), turned))
    found = train(tmp_path / "data", tmp_path / "run", "tune.trials=6")
    assert found["metrics"]["test"]["auc"] == pytest.approx(1 - record(tuned)["metrics"]["test"]["auc"])
    assert tried(found) == tried(record(tuned))
    assert found["tuning"]["best"] == record(tuned)["tuning"]["best"]


def test_by_auc_the_highest_is_best(data: Path, tmp_path: Path):
    found = train(data, tmp_path / "run", "tune.trials=3", "trainer.monitor=auc")
    scores = [one["valid"]["auc"] for one in found["tuning"]["tried"]]
    assert found["tuning"]["best"]["trial"] == scores.index(max(scores)) + 1
    assert found["metrics"]["valid"]["auc"] == max(scores)


def test_trials_are_measured_as_they_will_be_served(data: Path, tmp_path: Path):
    found = train(data, tmp_path / "run", "tune.trials=2", "precision=int2")
    assert found["metrics"]["valid"] == found["tuning"]["tried"][found["tuning"]["best"]["trial"] - 1]["valid"]


@pytest.mark.wide
def test_a_killed_run_comes_to_the_same(tuned: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "broken off"
    command = training(1, *options(data, folder, "tune.trials=6", *STATES))
    kill_when(folder / "tuning" / "004" / "unfinished" / "train-state-000000006", command, tmp_path)
    before = record(folder)
    assert before["status"] == "running"
    assert len(before["tuning"]["tried"]) == 3
    assert not list(folder.glob("tuning/*/run.json"))  # which a report would take for a run
    found = train(data, folder, "tune.trials=6", "resume=true")
    assert "3 are finished already" in capsys.readouterr().err
    assert found["tuning"]["tried"][:3] == before["tuning"]["tried"]  # not done again
    assert tried(found) == tried(record(tuned))
    assert outcome(folder) == outcome(tuned)
    assert found["seconds"] >= sum(one["seconds"] for one in found["tuning"]["tried"])
    assert {path.name for path in folder.iterdir() if not path.name.startswith("events")} == LEFT_BY_A_RUN


@pytest.mark.parametrize("rates", ["its own", "others"])
def test_what_a_trial_has_begun_counts_for_its_own_rates_alone(rates: str, tuned: Path, data: Path, tmp_path: Path):
    """Another version of optuna may suggest others than those that a trial began with before it was broken off."""
    found, folder = record(tuned), tmp_path / "run"
    shutil.copytree(tuned, folder)
    finished = {**found["tuning"], "tried": found["tuning"]["tried"][:5], "best": None}
    (folder / "run.json").write_text(json.dumps({**found, "status": "interrupted", "tuning": finished}))
    shutil.rmtree(folder / "checkpoint")
    trial = folder / "tuning" / "006"
    (trial / "unfinished").mkdir(parents=True)
    begun = found["tuning"]["tried"][5] if rates == "its own" else {"lr": 0.001, "table_lr": 0.1}
    (trial / "trial.json").write_text(json.dumps(begun))
    shutil.copytree(tuned / "checkpoint", trial / "checkpoint")
    end = {
        "steps": 3,
        "epochs": 1.0,
        "best_step": 3,
        "stopped": "epochs",
        "best": {"auc": 0.5, "logloss": 9.0, "ne": 9},
    }
    (trial / "unfinished" / "train-end.json").write_text(json.dumps(end))
    again = train(data, folder, "tune.trials=6", "resume=true")
    assert tried(again)[:5] == tried(found)[:5]
    assert (again["tuning"]["tried"][5]["valid"] == end["best"]) == (rates == "its own")
    if rates == "others":
        assert tried(again) == tried(found)


@pytest.mark.parametrize("stopped", ["before", "half way", "after", "with nothing left"])
def test_what_the_best_trial_trained_is_taken_over(stopped: str, tuned: Path, data: Path, tmp_path: Path):
    """A run that was stopped when its trials were over: before, while or after their best became its own."""
    found, folder = record(tuned), tmp_path / "run"
    shutil.copytree(tuned, folder)
    (folder / "run.json").write_text(json.dumps({**found, "status": "interrupted", "metrics": {}}))
    trial = folder / "tuning" / f"{found['tuning']['best']['trial']:03d}"
    trial.mkdir(parents=True)
    (trial / "trial.json").write_text(json.dumps(found["tuning"]["best"]))
    rows = found["data"]["rows"]["train"]
    note = {name: found["training"][name] for name in ("steps", "epochs", "best_step", "stopped")}
    note |= {"best": found["metrics"]["valid"], "train_seconds": 2.0, "rows": rows}
    end = folder / "unfinished" / "train-end.json"
    end.parent.mkdir()
    end.write_text(json.dumps(note))
    if stopped != "after":
        shutil.move(folder / "checkpoint", trial)
    if stopped == "before":
        shutil.move(end.parent, trial)
    if stopped in ("after", "with nothing left"):
        shutil.rmtree(folder / "tuning")
    if stopped == "with nothing left":
        shutil.rmtree(end.parent)
    again = train(data, folder, "tune.trials=6", "resume=true")
    assert outcome(folder) == outcome(tuned)
    assert again["tuning"] == found["tuning"]
    trained_again = again["throughput"]["train_rows_per_second"] != round(rows / 2.0, 1)
    assert trained_again == (stopped == "with nothing left")
    assert {path.name for path in folder.iterdir() if not path.name.startswith("events")} == LEFT_BY_A_RUN


@pytest.mark.wide
def test_a_trial_has_all_stages(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    own = ("table=pep", "table.ramp=1", "trainer.epochs=2")
    found = train(data, tmp_path / "tuned", *own, "tune.trials=3")
    _, of_the_run = capsys.readouterr().err.split("tuned: ")
    assert "prune is finished already" in of_the_run
    train(data, tmp_path / "plain", *own, *as_given(found))
    assert outcome(tmp_path / "tuned") == outcome(tmp_path / "plain")
    plain = record(tmp_path / "plain")
    assert found["structure"] == plain["structure"]
    for ours, theirs in zip(found["stages"], plain["stages"], strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}
        assert ours["seconds"] > 0.05  # of the trial: what is taken over takes no time
    folder = tmp_path / "broken off"
    command = training(1, *options(data, folder, *own, "tune.trials=3", *STATES))
    kill_when(folder / "tuning" / "002" / "unfinished" / "train-state-000000006", command, tmp_path)
    again = train(data, folder, *own, "tune.trials=3", "resume=true")
    assert outcome(folder) == outcome(tmp_path / "tuned")
    assert tried(again) == tried(found)


def test_rates_that_break_are_told_and_end_nothing(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    found = train(data, tmp_path / "run", *BROKEN, "tune.trials=4")
    said = capsys.readouterr().err
    broken = [one for one in found["tuning"]["tried"] if one["valid"] is None]
    assert 0 < len(broken) < 4
    for one in broken:
        assert "the loss became" in one["error"]
        assert one["table_lr"] > 1
    assert f"best {found['metrics']['valid']['logloss']:.4f} (trial {found['tuning']['best']['trial']})" in said
    assert "trial 4 of 4: lr " in said
    assert found["status"] == "completed"


def test_where_all_break_the_run_says_so(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rates = ("trainer.table_optimizer=sgd", "trainer.table_lr=1e30", "tune.table_lr=[1e29,1e31]", "tune.trials=2")
    assert main(["train", *options(data, tmp_path / "run", *rates)]) == 2
    assert "none of the 2 trials came to a usable model; lower tune.lr and tune.table_lr." in capsys.readouterr().err
    assert record(tmp_path / "run")["status"] == "failed"
    assert len(record(tmp_path / "run")["tuning"]["tried"]) == 2


@pytest.mark.wide
def test_processes_together_try_the_same_rates(data: Path, tmp_path: Path):
    """In two processes whose steps overlap, one of which is killed, and with rates that break the loss."""
    alone = train(data, tmp_path / "alone", *BROKEN, "tune.trials=3")
    own = (*BROKEN, "tune.trials=3", "trainer.sharding=auto", "trainer.pipeline=true")
    folder = tmp_path / "together"
    command = training(2, *options(data, folder, *own, *STATES))
    kill_when(folder / "tuning" / "002", command, tmp_path, child=1)
    training(2, *options(data, folder, *own, "resume=true")).run(tmp_path)
    found = record(folder)
    for ours, theirs in zip(found["tuning"]["tried"], alone["tuning"]["tried"], strict=True):
        assert (ours["lr"], ours["table_lr"]) == (theirs["lr"], theirs["table_lr"])
        assert (ours["valid"] is None) == (theirs["valid"] is None)
        if ours["valid"]:
            assert ours["valid"] == pytest.approx(theirs["valid"], abs=1e-3)
    assert {one["valid"] is None for one in found["tuning"]["tried"]} == {True, False}
    assert found["tuning"]["best"] == alone["tuning"]["best"]


@pytest.mark.wide
def test_a_sweep_tunes_every_run_alike_and_goes_on(data: Path, tmp_path: Path):
    sweep = ["-m", "experiment=tuned_tradeoff", f"dataset.path='{data}'", "table=hashing,frequency", "budget=1/4",
             "seed=0", "tune.trials=2", "hydra.launcher.jobs=2", *SMALL]  # fmt: skip
    done = recemb("train", *sweep, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "tuned-synthetic-dlrm"
    found = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/run.json")}
    assert sorted((one["method"], one["budget"]) for one in found.values()) == [
        ("frequency", "1/4"), ("full", None), ("hashing", "1/4"),
    ]  # fmt: skip
    for one in found.values():
        assert (one["status"], len(one["tuning"]["tried"])) == ("completed", 2)
    rates = {
        json.dumps([(trial["lr"], trial["table_lr"]) for trial in one["tuning"]["tried"]]) for one in found.values()
    }
    assert len(rates) == 1  # one seed, the same chances
    again = recemb("train", *sweep, "hydra.launcher.jobs=1", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "3 complete already" in again.stderr
    assert {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/run.json")} == found


def test_a_run_is_not_gone_on_with_by_other_trials(
    tuned: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["train", *options(data, tuned, "tune.trials=4", "resume=true")]) == 2
    assert "has tune.trials=6, not 4; give its own options to resume it" in capsys.readouterr().err
    plain = train(data, tmp_path / "plain")
    assert main(["train", *options(data, tmp_path / "plain", "tune.trials=6", "resume=true")]) == 2
    assert "has tune.lr=None, not [0.0003, 0.02]" in capsys.readouterr().err
    # Ranges that nothing is drawn from are no difference.
    assert train(data, tmp_path / "plain", "tune.lr=[0.1,0.2]", "resume=true") == plain


def test_what_is_trained_on_later_takes_the_rates_that_were_used(tuned: Path, data: Path, tmp_path: Path):
    plain = tmp_path / "plain"
    train(data, plain, *as_given(record(tuned)))
    made = []
    for folder in (tuned, plain):
        run = open_run(folder)
        assert as_trained(run.config.trainer, run.record) == open_run(plain).config.trainer or folder == plain
        made.append(
            compress_run(run, tmp_path / f"small {folder.name}", precision="int8", finetuning=Finetuning(steps=8))
        )
    assert made[0]["metrics"] == made[1]["metrics"]
    assert made[0]["tuning"] == record(tuned)["tuning"]
    assert run_config_from_dict(made[0]["config"]).tune.trials == 6
    assert (made[0]["config"]["trainer"]["lr"], made[0]["config"]["trainer"]["table_lr"]) == (0.003, 0.02)
