"""A run that is killed goes on from its last state, on as many processes as there are, and comes to the same."""

import json
import resource
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import recemb
from together import kill_when, training

from recemb.training.checkpoint import save_tensors

OPTIONS = ("trainer.epochs=2", "trainer.batch_size=250", "trainer.evaluations_per_epoch=3", "budget=1/4")
STATES = ("trainer.checkpoint_steps=3", "trainer.checkpoint_minutes=null")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("resume") / "some data"
    done = recemb("prepare", "dataset=synthetic", "dataset.rows=6000", f"dataset.path='{path}'", cwd=path.parent)
    assert done.returncode == 0, done.stderr
    return f"dataset.path='{path}'"


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return found


def outcome(folder: Path) -> tuple[Any, ...]:
    """What must be the same however often a run was broken off."""
    found = record(folder)
    assert found["status"] == "completed"
    assert not (folder / "unfinished").exists()
    return found["metrics"], found["training"], (folder / "predictions.parquet").read_bytes()


@pytest.fixture(
    scope="module", params=[1, pytest.param(2, marks=pytest.mark.wide)], ids=["one-process", "two-processes"]
)
def undisturbed(request: pytest.FixtureRequest, data: str, tmp_path_factory: pytest.TempPathFactory):
    """Processes, the options of a run, and the folder of one that nobody disturbed, named by default."""
    cwd = tmp_path_factory.mktemp("undisturbed")
    # Rows of 30 floats and of fewer: padded ones, and ones that lie side by side.
    options = ["dataset=synthetic", data, "table=mixed_dimension", "model.embedding_dim=30", *OPTIONS]
    if request.param > 1:
        options.append("trainer.sharding=auto")
    training(request.param, *options).run(cwd)
    (folder,) = (cwd / "runs").iterdir()  # processes do not make a folder each
    return request.param, options, folder


def test_a_killed_run_goes_on_and_comes_to_the_same(undisturbed, tmp_path: Path):
    processes, options, alone = undisturbed
    folder = tmp_path / "a killed run"
    # Overlapping steps change nothing of what comes out.
    pipeline = ["trainer.pipeline=true"] if processes > 1 else []
    begin = training(processes, *options, *STATES, *pipeline, f"hydra.run.dir='{folder}'")
    again = training(processes, f"resume={folder}", *pipeline)
    begin, again = (command._replace(by_torchrun=processes > 1) for command in (begin, again))
    child = processes - 1 if processes > 1 else None
    # Once while a state is being written, once between two, once while the best weights are written.
    for command, moment in (
        (begin, "train-state-000000006.partial"), (again, "train-state-000000012"), (again, "train-best-*.partial"),
    ):  # fmt: skip
        said, seconds = kill_when(folder / "unfinished" / moment, command, tmp_path, child=child)
        assert seconds < 60
        assert record(folder)["status"] in ("running", "failed", "interrupted")
        if child is not None:
            assert "Signal 9 (SIGKILL)" in said  # torchrun tells why it takes the others down
        assert len(list((folder / "unfinished").glob("train-state-*[0-9]"))) <= 3
    again.run(tmp_path)
    assert outcome(folder) == outcome(alone)


def test_other_numbers_of_processes_may_go_on(data: str, undisturbed, tmp_path: Path):
    processes, options, alone = undisturbed
    if processes == 1:
        pytest.skip("what two processes began is the subject")
    folder = tmp_path / "run"
    begin = training(2, *options, *STATES, f"hydra.run.dir='{folder}'")
    # A worker is killed, which ends all: workers whose launcher was killed would train to the end.
    kill_when(folder / "unfinished" / "train-state-000000006", begin, tmp_path, child=1)
    alone_again = training(1, f"resume={folder}")
    kill_when(folder / "unfinished" / "train-state-000000015", alone_again, tmp_path)
    training(2, f"resume={folder}", "trainer.sharding=row_wise").run(tmp_path)
    found, wanted = record(folder), record(alone)
    assert found["training"] == wanted["training"]
    for split in ("valid", "test"):
        assert found["metrics"][split] == pytest.approx(wanted["metrics"][split], abs=1e-5)


@pytest.mark.wide
@pytest.mark.parametrize("stage", ["supernet", "train"])
@pytest.mark.parametrize("table", ["optembed", "pep"])
def test_stages_go_on_in_the_middle(data: str, tmp_path: Path, table: str, stage: str):
    stage = "prune" if (table, stage) == ("pep", "supernet") else stage
    options = ["dataset=synthetic", data, f"table={table}", "table.ramp=1", *OPTIONS]
    options += ["table.rounds=1", "table.mutants=2", "table.crossovers=1"] if table == "optembed" else []
    alone, folder = tmp_path / "alone", tmp_path / "broken"
    training(1, *options, f"hydra.run.dir='{alone}'").run(tmp_path)
    begin = training(1, *options, *STATES, f"hydra.run.dir='{folder}'")
    kill_when(folder / "unfinished" / f"{stage}-state-000000012", begin, tmp_path)
    training(1, f"resume={folder}").run(tmp_path)
    assert outcome(folder) == outcome(alone)
    assert record(folder)["structure"] == record(alone)["structure"]


def test_a_state_that_does_not_fit_the_disk_costs_nothing_but_itself(data: str, undisturbed, tmp_path: Path):
    processes, options, alone = undisturbed
    if processes > 1:
        pytest.skip("one process is enough to fill a disk")
    weights = max(path.stat().st_size for path in (alone / "checkpoint").iterdir())
    # Room for the weights, and not for the moments of Adam beside them.
    small = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (weights + 1000, weights + 1000))
    done = training(1, *options, *STATES, f"hydra.run.dir='{tmp_path / 'run'}'").run(tmp_path, small)
    assert "training goes on, but its state could not be kept" in done.stderr
    assert "File too large" in done.stderr
    assert outcome(tmp_path / "run") == outcome(alone)


def test_a_damaged_state_gives_way_to_the_one_before(data: str, undisturbed, tmp_path: Path):
    processes, options, alone = undisturbed
    if processes > 1:
        pytest.skip("reading is the same")
    folder = tmp_path / "run"
    begin = training(1, *options, *STATES, f"hydra.run.dir='{folder}'")
    kill_when(folder / "unfinished" / "train-state-000000012", begin, tmp_path)
    newest = max((folder / "unfinished").glob("train-state-*[0-9]"))
    (file,) = newest.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:1000])
    shutil.copytree(folder, tmp_path / "both damaged")
    done = training(1, f"resume={folder}").run(tmp_path)
    assert f"the state in {newest} cannot be read. Trying the one before." in done.stderr
    assert outcome(folder) == outcome(alone)
    for file in (tmp_path / "both damaged" / "unfinished").glob("train-state-*/*.safetensors"):
        file.unlink()
    done = recemb("train", f"resume={tmp_path / 'both damaged'}", cwd=tmp_path)
    assert done.returncode == 2
    assert "leave resume=true out to begin anew" in done.stderr


def test_a_folder_without_a_run_cannot_be_gone_on_with(tmp_path: Path):
    done = recemb("train", f"resume={tmp_path}", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"recemb: resume={tmp_path}: there is no run in this folder that can be gone on with.\n"


def test_what_began_with_overwrite_can_be_gone_on_with(data: str, tmp_path: Path):
    folder = tmp_path / "run"
    options = ["dataset=synthetic", data, "table=hashing", *OPTIONS, *STATES, "overwrite=true"]
    kill_when(
        folder / "unfinished" / "train-state-000000006", training(1, *options, f"hydra.run.dir='{folder}'"), tmp_path
    )
    training(1, f"resume={folder}").run(tmp_path)
    assert record(folder)["status"] == "completed"


@pytest.mark.parametrize("led_to_another", [False, True])
def test_a_stop_while_a_state_is_written_stops(led_to_another: bool):
    folder = Path("nowhere")

    class Interrupting(torch.Tensor):
        """A tensor that is being saved when somebody presses Ctrl-C."""

        def detach(self):
            try:
                raise KeyboardInterrupt
            finally:
                if led_to_another:
                    raise RuntimeError("unexpected pos 704 vs 598")  # what torch's writer says on its way out

    tensor = torch.zeros(3).as_subclass(Interrupting)
    with pytest.raises(KeyboardInterrupt):
        save_tensors({"weight": tensor}, folder)
    assert not folder.exists()


def test_training_that_ends_before_pruning_has_settled_says_so(data: str, tmp_path: Path):
    options = ["dataset=synthetic", data, "table=pep", "budget=1/4", "trainer.batch_size=250", "trainer.steps=3"]
    done = recemb("train", *options, f"hydra.run.dir='{tmp_path / 'run'}'", cwd=tmp_path)
    assert done.returncode == 2
    assert "weights count only after 1, when pruning has settled; train for longer, or lower table.ramp." in done.stderr
