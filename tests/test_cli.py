"""The command line as people and machines use it: what it prints, what it leaves, how it fails."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from command_line import recemb, start

from recemb import RecembError, list_tables
from recemb.cli import main
from recemb.config import GROUPS
from recemb.options import options_of
from recemb.training.metrics import binary_metrics
from recemb.training.record import RunFolder
from recemb.training.tune_config import TuneConfig

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["trainer.batch_size=256", "trainer.epochs=1", "trainer.evaluations_per_epoch=2"]


def record_of(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small prepared data set, in a path with a space."""
    folder = tmp_path_factory.mktemp("with space") / "data"
    done = recemb("prepare", "dataset=synthetic", "dataset.rows=6000", f"dataset.path={folder}", cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    assert "5,142 training, 429 validation and 429 test rows" in done.stdout
    assert "best reachable on test" in done.stdout
    return folder


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    """One finished run."""
    folder = data.parent / "a run"
    done = recemb(
        "train",
        "table=hashing",
        "budget=1/4",
        f"dataset.path={data}",
        f"hydra.run.dir={folder}",
        *SMALL,
        cwd=data.parent,
    )
    assert done.returncode == 0, done.stderr
    assert "hashing: test AUC" in done.stdout
    return folder


def test_help_names_every_method_and_every_option(capsys: pytest.CaptureFixture[str]):
    assert main(["train", "--help"]) == 0
    said = capsys.readouterr().out
    for method in list_tables():
        assert f"table={method.name} " in said
    for group, nodes in GROUPS.items():
        for node in nodes.values():
            for option in options_of(node):
                assert f"  {group}.{option.name}=" in said
                assert option.help
    for option in options_of(TuneConfig):
        assert f"  tune.{option.name}=" in said
    assert main(["prepare", "--help"]) == 0
    assert "on_bad_rows=error" in capsys.readouterr().out


def test_tables_lists_and_explains(capsys: pytest.CaptureFixture[str]):
    assert main(["tables"]) == 0
    said = capsys.readouterr().out
    assert all(method.summary in said for method in list_tables())
    assert main(["tables", "hashing"]) == 0
    said = capsys.readouterr().out
    assert "table.threshold=200" in said
    assert "Weinberger" in said
    assert main(["tables", "hashign"]) == 2
    assert "Did you mean hashing?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "Did you mean train?"),
        (["train", "tabel=hashing"], "there is no option 'tabel'. Did you mean table?"),
        (["train", "trainer.lrr=1"], "there is no option 'trainer.lrr'. Did you mean trainer.lr?"),
        (["train", "table.rows=3"], "the chosen table= has no option 'table.rows'"),
        (
            ["train", "table=hashin"],
            "there is no table 'hashin'. Known: auto, compositional, frequency, full, hashing,",
        ),
        (["train", "dataset=nope"], "there is no dataset 'nope'. Known: avazu, criteo, criteo_kaggle_shape, "),
        (
            ["train", "model=dcn"],
            "there is no model 'dcn'. Did you mean dcn_v2? Known: autoint, dcn_v2, deepfm, dlrm, fnn, ipnn,",
        ),
        (["train", "model=dcn_v2", "model.structure=x"], "model.structure=x is not known; choose stacked or parallel."),
        (
            ["train", "experiment=nope"],
            "there is no experiment 'nope'. Known: baselines, demo, tradeoff, tuned_tradeoff, unified_movielens.",
        ),
        (["train", "trainer.lr=abc"], "trainer.lr=abc: Value 'abc'"),
        (["train", "seed=1.5"], "seed=1.5: Value '1.5'"),
        (["train", "trainer.lr=-1"], "trainer.lr=-1.0 must be a positive number."),
        (["train", "tune.trails=4"], "there is no option 'tune.trails'. Did you mean tune.trials?"),
        (["train", "tune.trials=-1"], "tune.trials=-1 chooses nothing; it must be 0, or at least 2"),
        (
            ["train", "tune.trials=1"],
            "tune.trials=1 chooses nothing; it must be 0, or at least 2, the first of which takes",
        ),
        (["train", "tune.lr=[0.1]"], "tune.lr=[0.1] is no range; give a lowest and a higher positive rate"),
        (["train", "tune.lr=[0.1,0.01]"], "tune.lr=[0.1, 0.01] is no range; give a lowest and a higher positive rate"),
        (["train", "tune.table_lr=[0,1]"], "tune.table_lr=[0.0, 1.0] is no range; give a lowest and a higher positive"),
        (["train", "tune.table_lr=[1,inf]"], "tune.table_lr=[1.0, inf] is no range"),
        (["train", "tune.lr=0.1"], "tune.lr=0.1: Invalid value assigned"),
        (
            ["train", "tune.trials=4", "trainer.lr=0.1"],
            "trainer.lr=0.1, which the first trial takes, lies outside of tune.lr=[0.0003,0.02]; widen the range",
        ),
        (["train", "trainer.table_optimizer=adam"], "there is no table optimizer 'adam'. Known: rowwise_adagrad"),
        (["train", "budget=2/0"], "budget=2/0 is not a budget"),
        (["train", "budget=lots"], "budget=lots is not a budget"),
        (["train", "table=full,hashing"], "has several values: sweep with -m"),
        (["prepare", "dataset.rows=1,2"], "has several values: recemb prepare takes one."),
        (["prepare", "trainer.lr=1"], "there is no option 'trainer.lr'. `recemb prepare --help` lists them."),
        (["train", "a b"], "options are given as name=value"),
        (["train", "dataset=criteo", "dataset.path=no/such"], "There is no prepared data set at no/such"),
        (["prepare", "on_bad_rows=maybe"], "on_bad_rows=maybe is not known; choose error or skip."),
        (["prepare", "dataset=criteo", "dataset.source=no/such.txt"], "no/such.txt"),
        (["report", "no/such"], "no/such"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert error.startswith("recemb: ")
    assert "\n" not in error


def test_an_impossible_budget_fails_before_training(data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    folder = tmp_path / "run"
    budget = ["table=hashing", "budget=1KiB"]
    assert main(["train", *budget, f"dataset.path={data}", f"hydra.run.dir={folder}"]) == 2
    assert "the least possible is" in capsys.readouterr().err
    assert not (folder / "run.json").exists()


def test_an_option_the_data_was_not_prepared_with_is_refused(
    data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    asked = ["dataset.rows=7000", f"dataset.path={data}", f"hydra.run.dir={tmp_path}"]
    assert main(["train", *asked]) == 2
    assert "dataset.rows=7000 was asked for" in capsys.readouterr().err


def test_a_run_leaves_a_whole_and_true_record(run: Path, data: Path):
    record = record_of(run)
    assert record["status"] == "completed"
    assert record["error"] is None
    assert (record["method"], record["dataset"], record["model"], record["budget"]) == (
        "hashing",
        "synthetic",
        "dlrm",
        "1/4",
    )
    assert 0.2 < record["kept"] <= 0.25
    sizes = record["bytes"]
    assert sizes["tables_serving"] == sum(sizes["parts"].values()) <= sizes["tables_full"] / 4
    assert sum(sizes["per_table"].values()) == sizes["parts"]["rows"]
    assert sizes["optimizer"] > 0
    assert sizes["dense"] > 0
    assert record["training"]["steps"] == -(-record["data"]["rows"]["train"] // 256)
    assert record["config"]["table"]["rows"] > 0
    assert record["data"]["ceiling"]["test"]["auc"] > record["metrics"]["test"]["auc"] > 0.5
    predictions = pd.read_parquet(run / "predictions.parquet")
    probability = torch.tensor(predictions["probability"].to_numpy(), dtype=torch.float64)
    again = binary_metrics(torch.logit(probability), torch.tensor(predictions["label"].to_numpy()))
    assert again["logloss"] == pytest.approx(record["metrics"]["test"]["logloss"], abs=1e-5)
    assert again["auc"] == pytest.approx(record["metrics"]["test"]["auc"], abs=1e-4)
    assert (run / "config.yaml").exists()
    assert list(run.glob("events.out.tfevents.*"))
    assert (run / "checkpoint").is_dir()
    assert not list(run.glob(".*partial*"))


def test_the_command_in_the_record_repeats_the_run(run: Path, data: Path):
    command = shlex.split(record_of(run)["command"])
    again = run.parent / "again"
    arguments = [a for a in command[1:] if not a.startswith("hydra.run.dir")] + [f"hydra.run.dir={again}"]
    done = recemb(*arguments, cwd=run.parent)
    assert done.returncode == 0, done.stderr
    assert record_of(again)["metrics"] == record_of(run)["metrics"]


def test_a_finished_run_is_not_overwritten_unasked(run: Path, data: Path, capsys: pytest.CaptureFixture[str]):
    before = (run / "run.json").read_bytes()
    same = ["train", f"dataset.path={data}", f"hydra.run.dir={run}", *SMALL]
    assert main(same) == 2
    assert "already holds a completed run" in capsys.readouterr().err
    assert (run / "run.json").read_bytes() == before


def test_overwrite_replaces_it_whole(data: Path, tmp_path: Path):
    (tmp_path / "run.json").write_text('{"status": "completed"}')
    assert main(["train", f"dataset.path={data}", f"hydra.run.dir={tmp_path}", "overwrite=true", *SMALL]) == 0
    assert record_of(tmp_path)["status"] == "completed"
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) >= 1


def test_a_loss_that_is_no_number_stops_the_run_and_says_where(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    broken = ["trainer.lr=1e30", f"dataset.path={data}", f"hydra.run.dir={tmp_path}", *SMALL]
    assert main(["train", *broken]) == 2
    error = capsys.readouterr().err
    record = record_of(tmp_path)
    assert record["status"] == "failed"
    for text in (error, record["error"]):
        assert "the loss became" in text
        assert "at step" in text
        assert "trainer.lr" in text


@pytest.mark.parametrize("mine", ["config.yaml", "predictions.parquet", "checkpoint/precious.pt"])
def test_a_folder_of_other_things_is_not_touched(
    mine: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / mine).parent.mkdir(exist_ok=True)
    (tmp_path / mine).write_text("mine")
    assert main(["train", f"dataset.path={data}", f"hydra.run.dir={tmp_path}", "overwrite=true", *SMALL]) == 2
    assert "which no run left there" in capsys.readouterr().err
    assert (tmp_path / mine).read_text() == "mine"


def test_a_damaged_record_is_replaced_only_when_asked(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "run.json").write_text("{half")
    same = ["train", f"dataset.path={data}", f"hydra.run.dir={tmp_path}", *SMALL]
    assert main(same) == 2
    assert "holds a damaged run" in capsys.readouterr().err
    assert main([*same, "overwrite=true"]) == 0


def test_two_runs_cannot_share_a_folder(tmp_path: Path):
    first = RunFolder(tmp_path, overwrite=False)
    with pytest.raises(RecembError, match="another run is going on"):
        RunFolder(tmp_path, overwrite=True)
    del first
    RunFolder(tmp_path, overwrite=False)


def test_the_record_says_what_the_data_is_and_how_large_the_tables_are(run: Path):
    config = record_of(run)["config"]
    assert config["dataset"]["rows"] == 6000
    assert config["table"]["rows"] > 0
    assert yaml.safe_load((run / "config.yaml").read_text()) == config


def test_a_default_that_was_asked_for_is_not_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = ["dataset.rows=2000", f"dataset.path={tmp_path}/data"]
    assert main(["prepare", *rows, "dataset.protocol=random"]) == 0
    assert main(["train", *rows, "dataset.protocol=last_day", f"hydra.run.dir={tmp_path}/run", *SMALL]) == 2
    assert "dataset.protocol=last_day was asked for" in capsys.readouterr().err
    assert main(["train", f"dataset.path={tmp_path}/data", f"hydra.run.dir={tmp_path}/run", *SMALL]) == 0
    assert record_of(tmp_path / "run")["config"]["dataset"]["protocol"] == "random"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["table=hashing", "table.rows=100", "budget=1/4"], "table.rows=100 both say how large"),
        (["table=full", "table.width=100"], "table.width=100 is wider"),
        (["table=full", "table.keep=5"], "the chosen table= has no option 'table.keep'"),
        (["model.init_std=nan"], "model.init_std=nan"),
        (["model.embedding_dim=100000000"], "between 1 and 8192"),
        (["trainer=null"], "Hydra cannot compose this"),
    ],
)
def test_options_that_contradict_are_one_sentence(
    options: list[str], said: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["train", f"dataset.path={data}", f"hydra.run.dir={tmp_path}/run", *options]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "\n" not in error
    assert not (tmp_path / "run" / "run.json").exists()


def test_minimum_counts_of_single_features_are_given_as_help_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = ["prepare", "dataset.rows=2000", f"dataset.path={tmp_path}/data"]
    assert main([*rows, "dataset.min_counts={C1: 10}"]) == 0
    assert json.loads((tmp_path / "data" / "meta.json").read_text())["config"]["min_counts"] == {"C1": 10}
    assert main([*rows, "dataset.min_counts={X1: 10}"]) == 2
    assert "names the feature X1" in capsys.readouterr().err


def test_flags_may_stand_anywhere(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["train", f"dataset.path={data}", "seed=3", "--cfg", "job", "table=hashing"]) == 0
    assert "seed: 3" in capsys.readouterr().out
    sweep = [f"dataset.path={data}", f"hydra.sweep.dir={tmp_path}", "trainer.epochs=1", "-m", "seed=choice(0,1)"]
    assert main(["train", *sweep]) == 0
    assert "[2/2]" in capsys.readouterr().err


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_a_readable_record(data: Path, tmp_path: Path, stop: signal.Signals):
    endless = ["trainer.epochs=1000", "trainer.patience=100000", "trainer.batch_size=64"]
    process = start("train", f"dataset.path={data}", f"hydra.run.dir={tmp_path}", *endless, cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("unfinished/train-best-*")):  # the first evaluation is over
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert record_of(tmp_path)["status"] == "running"
    process.send_signal(stop)
    assert process.wait(60) == 130, process.stderr[-2000:]
    error = process.stderr
    record = record_of(tmp_path)
    assert record["status"] == "interrupted"
    assert record["training"]["steps"] > 0
    assert record["throughput"]["train_rows_per_second"] > 0
    assert "Traceback" not in error


def test_ctrl_c_while_torch_is_imported_is_one_line(tmp_path: Path):
    command = [sys.executable, "-X", "importtime", "-m", "recemb", "train"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.rstrip().endswith("numpy"):  # early among what torch imports
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(timeout=60) == 130
    assert "recemb: interrupted." in rest
    assert "Traceback" not in rest


def test_a_sweep_goes_on_past_a_budget_that_cannot_be_met_and_reports(data: Path, tmp_path: Path):
    done = recemb(
        "train", "-m", "table=full,frequency", "budget=1/64,1/4", f"dataset.path={data}",
        "hydra.sweep.dir=runs", *SMALL, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0  # which methods can be how small is what such a sweep shows
    assert "[4/4] table=frequency budget=1/4" in done.stderr
    assert "1 too small a budget" in done.stderr
    assert "least possible" in done.stderr
    assert done.stdout.count("test AUC") == 3
    reported = recemb("report", "runs", "--out", "a report", cwd=tmp_path)
    assert reported.returncode == 0, reported.stderr
    results = pd.read_csv(tmp_path / "a report" / "results.csv")
    assert sorted(results["method"]) == ["frequency", "frequency", "full"]
    page = (tmp_path / "a report" / "report.html").read_text()
    assert "frequency" in page
    assert "recemb train" in page


def test_a_folder_that_cannot_be_is_one_sentence(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "file").write_text("")
    assert main(["train", f"dataset.path={data}", f"hydra.run.dir={tmp_path}/file/run"]) == 2
    error = capsys.readouterr().err.strip()
    assert "file" in error
    assert "\n" not in error


def test_one_seed_gives_one_set_of_numbers(data: Path, tmp_path: Path):
    found = []
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        folder = tmp_path / name
        arguments = [f"seed={seed}", "table=frequency", "budget=1/8", f"dataset.path={data}"]
        assert main(["train", *arguments, f"hydra.run.dir={folder}", *SMALL]) == 0
        found.append(record_of(folder)["metrics"])
    assert found[0] == found[1] != found[2]


def test_it_runs_without_a_home_or_a_writable_place_for_caches(data: Path, tmp_path: Path):
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    command = [sys.executable, "-m", "recemb", "train", f"dataset.path={data}", "hydra.run.dir=run", *SMALL]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
