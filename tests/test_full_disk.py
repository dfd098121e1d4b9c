"""A disk that fills up: every command ends in one sentence, and leaves nothing half and nothing that was there changed.

A limit on the size of a file stands for the disk: what is written past it fails in the same way, without a device.
"""

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import recemb
from parameters import mostly_wide

SMALL = ("trainer.batch_size=512", "trainer.epochs=1", "trainer.evaluations_per_epoch=1")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a prepared data set, and a finished run in it."""
    folder = tmp_path_factory.mktemp("a disk")
    done = recemb("prepare", "dataset=synthetic", "dataset.rows=3000", "dataset.path=data", cwd=folder)
    assert done.returncode == 0, done.stderr
    done = recemb("train", "dataset.path=data", "table=hashing", "budget=1/4", "hydra.run.dir=run", *SMALL, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def limit(size: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


COMMANDS = {
    "prepare": ("prepare", "dataset=synthetic", "dataset.rows=4000", "dataset.path=new/data"),
    "train": ("train", "dataset.path=data", "table=full", "hydra.run.dir=new", *SMALL),
    "compress": ("compress", "run", "--precision", "int8", "--out", "new"),
    "export": ("export", "run", "--out", "new"),
    "report": ("report", "run", "--out", "new"),
    "inspect": ("inspect", "data", "--out", "new"),
    "advise": ("advise", "data", "--budget", "1/16", "--out", "new.json"),
}


@pytest.mark.parametrize("size", mostly_wide([4_000, 15_000, 40_000, 120_000], "4000", "40000"))
@pytest.mark.parametrize("verb", COMMANDS)
def test_a_disk_that_is_full_is_one_sentence_and_leaves_nothing_half(verb: str, size: int, place: Path, tmp_path: Path):
    folder = tmp_path / "copy of it"
    shutil.copytree(place, folder)
    before = listing(folder)
    done = recemb(*COMMANDS[verb], cwd=folder, before=limit(size))
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    assert "frame #" not in done.stderr
    after = listing(folder)
    assert {name: after.get(name) for name in before} == before
    assert not [name for name in after if "partial" in name]
    if done.returncode == 0:  # all of it was small enough
        return
    assert done.returncode == 2, done.stderr[-2000:]
    told = [line for line in done.stderr.replace("\r", "\n").splitlines() if line.startswith("recemb: ")]
    assert len(told) == 1, done.stderr
    assert any(words in told[0] for words in ("File too large", "disk is full", "no room left")), told
    made = [name for name in after if name not in before]
    # A record of what failed is no half of anything.
    assert not made or (verb in ("train", "compress") and json.loads(after["new/run.json"])["status"] == "failed"), made
