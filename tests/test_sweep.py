"""Sweeps: several runs at a time come to what one after the other does, and the same command goes on."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import recemb

from recemb.sweep import _with_baseline, folder_name

LONG = ("table=full", "trainer.epochs=500", "trainer.patience=100000")
SMALL = ("trainer.epochs=1", "trainer.evaluations_per_epoch=2", "trainer.batch_size=200")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("sweep") / "some data"
    done = recemb("prepare", "dataset=synthetic", "dataset.rows=4000", f"dataset.path='{path}'", cwd=path.parent)
    assert done.returncode == 0, done.stderr
    return f"dataset.path='{path}'"


def records(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("*/run.json"))}


@contextlib.contextmanager
def two_at_a_time(*options: str, cwd: Path) -> Iterator["subprocess.Popen[str]"]:
    """Run a sweep into `runs`, and leave no process of it behind."""
    command = [sys.executable, "-m", "recemb", "train", "-m", *options, "hydra.launcher.jobs=2", "hydra.sweep.dir=runs"]
    with subprocess.Popen(command, cwd=cwd, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def until(reached: Callable[[], Any], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while not reached():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)


def workers(process: "subprocess.Popen[str]") -> list[int]:
    """Find the processes that a sweep has started for its jobs."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(one) for one in children if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes()]


@pytest.mark.wide
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
    gone, undefined, *_, failed = sorted(found)
    shutil.rmtree(tmp_path / "alone" / gone)
    (tmp_path / "alone" / failed / "run.json").write_text(json.dumps(others[failed] | {"status": "failed"}))
    # Data of one class has no AUC; what somebody keeps in a folder stays there.
    metrics = {split: others[undefined]["metrics"][split] | {"auc": None} for split in ("valid", "test")}
    (tmp_path / "alone" / undefined / "run.json").write_text(json.dumps(others[undefined] | {"metrics": metrics}))
    log = tmp_path / "alone" / undefined / "train.log"
    log.write_text("what it said before\n")
    impossible = [tmp_path / "alone" / one.replace("hashing", "full") for one in found if "1_64" in one]
    for folder in impossible:
        folder.mkdir(exist_ok=True)
        (folder / "notes").touch()
    again = recemb("train", "-m", *sweep, "hydra.launcher.jobs=2", "hydra.sweep.dir=alone", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "6 complete already" in again.stderr
    assert "2 too small a budget" in again.stderr
    assert "valid AUC not defined, logloss 0." in again.stderr
    assert log.read_text().startswith("what it said before\n")
    assert "test AUC not defined, logloss 0." in log.read_text()
    made = records(tmp_path / "alone")
    assert {one["status"] for one in made.values()} == {"completed"}
    assert {name for name in made if made[name]["seconds"] != others[name]["seconds"]} == {gone, failed}
    assert [[path.name for path in folder.iterdir()] for folder in impossible] == [["notes"], ["notes"]]


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


@pytest.mark.parametrize("stop", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.wide)])
def test_a_stop_leaves_records_that_say_so(data: str, tmp_path: Path, stop: signal.Signals):
    with two_at_a_time(data, "seed=0,1,2", *LONG, cwd=tmp_path) as process:
        until(lambda: len(list(tmp_path.glob("runs/*/events*"))) == 2, process)
        time.sleep(1)
        for _ in range(3):  # whoever is impatient gets no less
            os.killpg(process.pid, stop) if stop == signal.SIGINT else process.send_signal(stop)
            time.sleep(0.3)
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


@pytest.mark.wide
def test_a_stop_while_processes_start_ends_them_without_a_word(data: str, tmp_path: Path):
    with two_at_a_time(data, "seed=0,1,2", *LONG, cwd=tmp_path) as process:
        until(lambda: workers(process), process)
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said[-2000:]
    assert "interrupted" in said
    assert "Traceback" not in said
    assert "Process SpawnProcess" not in said
    assert {one["status"] for one in records(tmp_path / "runs").values()} <= {"interrupted"}


@pytest.mark.wide
def test_a_run_that_is_killed_ends_no_sweep_and_no_other_run(data: str, tmp_path: Path):
    with two_at_a_time(data, "table=full", "seed=0,1,2", *SMALL, cwd=tmp_path) as process:
        until(lambda: len(workers(process)) == 2, process)
        os.kill(workers(process)[0], signal.SIGKILL)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 2, said[-2000:]
    assert "the run was killed from outside, perhaps for its memory; give the same command again" in said
    assert "3 of 3 runs" in said
    assert "1 failed" in said
    assert [one["status"] for one in records(tmp_path / "runs").values()] == ["completed", "completed"]


@pytest.mark.wide
def test_a_sweep_whose_runs_are_all_killed_ends(data: str, tmp_path: Path):
    killed = set[int]()
    with two_at_a_time(data, "seed=0,1,2,3,4,5,6,7", *LONG, cwd=tmp_path) as process:
        until(lambda: workers(process), process)
        while process.poll() is None:
            for one in set(workers(process)) - killed:
                os.kill(one, signal.SIGKILL)
                killed.add(one)
            time.sleep(0.05)
        said = process.communicate()[1]
    assert process.returncode == 2, said[-2000:]
    assert 3 <= len(killed) <= 5
    assert "which ends the sweep. Start it again with resume=true" in said
    assert "Traceback" not in said


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
