"""Sweeps: several runs at a time come to what one after the other does, and the same command goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import recemb

from recemb.sweep import _with_baseline, folder_name

SMALL = ("trainer.epochs=1", "trainer.evaluations_per_epoch=2", "trainer.batch_size=200")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("sweep") / "some data"
    done = recemb("prepare", "dataset=synthetic", "dataset.rows=4000", f"dataset.path='{path}'", cwd=path.parent)
    assert done.returncode == 0, done.stderr
    return f"dataset.path='{path}'"


def records(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("*/run.json"))}


def test_a_trade_off_side_by_side_comes_to_the_same_and_goes_on(data: str, tmp_path: Path):
    sweep = ["experiment=tradeoff", data, "table=full,hashing", "budget=1/4,1/64", "seed=0,1", *SMALL]
    done = recemb("train", "-m", *sweep, "hydra.launcher.jobs=2", "hydra.sweep.dir='side by side'", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = records(tmp_path / "side by side")
    # The baseline once for each seed; what cannot be as small as asked is said, and leaves nothing.
    assert len(found) == 8
    assert {one["status"] for one in found.values()} == {"completed"}
    assert sorted((one["method"], str(one["budget"])) for one in found.values() if one["seed"] == 0) == [
        ("full", "1/4"),
        ("full", "None"),
        ("hashing", "1/4"),
        ("hashing", "1/64"),
    ]
    assert "cannot be made as small" in done.stderr
    assert "2 too small a budget" in done.stderr
    assert "best so far" in done.stderr
    assert {path.name for path in (tmp_path / "side by side").iterdir()} == {*found, "multirun.yaml"}
    for name in found:
        assert "test AUC" in (tmp_path / "side by side" / name / "train.log").read_text()

    alone = recemb("train", "-m", *sweep, "hydra.launcher.jobs=1", "hydra.sweep.dir=alone", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    others = records(tmp_path / "alone")
    assert list(others) == list(found)
    for name, one in found.items():
        assert one["metrics"]["test"] == pytest.approx(others[name]["metrics"]["test"], abs=1e-5)

    # One run is missing and one has failed: the same command makes those two, and looks at the others only.
    gone, failed = sorted(found)[::7]
    shutil.rmtree(tmp_path / "alone" / gone)
    (tmp_path / "alone" / failed / "run.json").write_text(json.dumps(others[failed] | {"status": "failed"}))
    again = recemb("train", "-m", *sweep, "hydra.launcher.jobs=2", "hydra.sweep.dir=alone", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "6 complete already" in again.stderr
    made = records(tmp_path / "alone")
    assert {one["status"] for one in made.values()} == {"completed"}
    assert {name for name in made if made[name]["seconds"] != others[name]["seconds"]} == {gone, failed}


def test_a_run_that_fails_ends_no_sweep_and_is_told(data: str, tmp_path: Path):
    options = [data, "table=hashing", "budget=1/4", "trainer.table_lr=1e30,0.02", "trainer.table_optimizer=sgd", *SMALL]
    done = recemb(
        "train", "-m", *options, "hydra.launcher.jobs=2", "hydra.sweep.dir=runs", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert "the loss became nan" in done.stderr
    assert "1 failed" in done.stderr
    assert sorted(one["status"] for one in records(tmp_path / "runs").values()) == ["completed", "failed"]


def test_only_impossible_runs_are_a_failure(data: str, tmp_path: Path):
    done = recemb("train", "-m", data, "table=full", "budget=1/64,1/256", "hydra.sweep.dir=runs", *SMALL, cwd=tmp_path)
    assert done.returncode == 2
    assert "2 jobs failed" in done.stderr


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_leaves_records_that_say_so(data: str, tmp_path: Path, stop: signal.Signals):
    command = [sys.executable, "-m", "recemb", "train", "-m", data, "table=full", "seed=0,1,2", "trainer.epochs=500",
               "trainer.patience=100000", "hydra.launcher.jobs=2", "hydra.sweep.dir=runs"]  # fmt: skip
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        deadline = time.monotonic() + 120
        while len(list(tmp_path.glob("runs/*/events*"))) < 2:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.1)
        time.sleep(1)
        os.killpg(process.pid, stop) if stop == signal.SIGINT else process.send_signal(stop)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said[-2000:]
    assert "interrupted" in said
    assert "Traceback" not in said
    assert {one["status"] for one in records(tmp_path / "runs").values()} == {"interrupted"}
    # Nobody goes on behind the sweep's back: what it had begun can be gone on with at once.
    folder = min(records(tmp_path / "runs"))
    again = recemb("train", data, "table=full", "seed=0", "resume=true", "trainer.epochs=500", "trainer.steps=20",
                   "trainer.patience=100000", f"hydra.run.dir='runs/{folder}'", cwd=tmp_path)  # fmt: skip
    assert "another run is going on" not in again.stderr
    assert "trainer.steps=None, not 20" in again.stderr


@pytest.mark.parametrize("jobs", ["0", "-3"])
def test_a_number_of_jobs_that_makes_no_sense(data: str, tmp_path: Path, jobs: str):
    done = recemb("train", "-m", data, "seed=0,1", f"hydra.launcher.jobs={jobs}", cwd=tmp_path)
    assert done.returncode == 2
    assert f"hydra.launcher.jobs={jobs} is too small; it must be at least 1, or null." in done.stderr


def test_a_baseline_runs_first_and_once_for_each_combination():
    jobs = [[f"seed={seed}", f"table={table}", f"budget={budget}"] for seed in (0, 1)
            for table in ("full", "hashing") for budget in ("1/4", "null")]  # fmt: skip
    found = _with_baseline(jobs, {"table": "full", "budget": None})
    assert found[:2] == [["table=full", "budget=null", "seed=0"], ["table=full", "budget=null", "seed=1"]]
    assert len(found) == len({tuple(sorted(one)) for one in found}) == 8
    assert _with_baseline(jobs, {}) == jobs


def test_folders_are_named_after_what_varies_and_differ():
    assert folder_name(3, "budget=1/4,table=full") == "003-budget=1_4,table=full"
    assert folder_name("budget=1/4,table=full") == "budget=1_4,table=full"
    long = [folder_name("x=" + "a" * 200 + end) for end in ("b", "c")]
    assert long[0] != long[1]
    assert max(map(len, long)) <= 120
