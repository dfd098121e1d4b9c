"""The folder of a run: claimed once, every file in it whole or absent."""

import contextlib
import fcntl
import json
import math
import os
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from recemb.files import read_json, reason_of
from recemb.options import RecembError
from recemb.record import FREE_TO_CHANGE, PREDICTIONS, RECORD, asked_options
from recemb.training.processes import is_first, on_first

STRUCTURE = "kept.parquet"
CHECKPOINT = "checkpoint"
UNFINISHED = "unfinished"
PROJECTOR = "projector"
TUNING = "tuning"
ADVICE = "advice"
TRIAL_RECORD = "trial.json"
_STAGES = "stages"
_OURS = (
    RECORD, "config.yaml", PREDICTIONS, STRUCTURE, _STAGES, UNFINISHED, PROJECTOR, TUNING, ADVICE,
    CHECKPOINT, f"{CHECKPOINT}.partial", f"{CHECKPOINT}.replaced",
)  # fmt: skip
_UNFINISHED = ("running", "failed", "interrupted")


class RunFolder:
    """Writes what a run leaves.

    Args:
        path: the folder; made if missing.
        overwrite: replace a completed run. An unfinished one is always replaced, unless it is resumed.
        resumes: the first record of a run that goes on with the one in the folder, if there is one. What that one has
            finished is put into it.

    Attributes:
        completed: the record of the completed run that is in the folder, when it was to be resumed.

    Raises:
        RecembError: the folder cannot be written, or holds a completed run, one still going, one with other options
            than the run that would resume it, or other things.
    """

    record_name = RECORD

    def __init__(self, path: Path, *, overwrite: bool, resumes: dict[str, Any] | None = None) -> None:
        self.path = path
        self.completed: dict[str, Any] | None = None
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecembError(f"cannot make the run folder {path}: {error.strerror}.") from error
        self._claim()
        earlier = self._earlier() if resumes is not None else None
        if resumes is not None and earlier is not None and earlier.get("status") in (*_UNFINISHED, "completed"):
            self._go_on(earlier, resumes)
        else:
            self._make_room(overwrite)

    @property
    def stages(self) -> Path:
        """Where finished stages leave what later ones need, until the run is completed."""
        folder = self.path / _STAGES
        folder.mkdir(exist_ok=True)
        return folder

    def forget_unfinished(self) -> None:
        """Remove what only going on with the run needed."""
        for name in (_STAGES, UNFINISHED, TUNING, ADVICE):
            shutil.rmtree(self.path / name, ignore_errors=True)

    def _go_on(self, earlier: dict[str, Any], record: dict[str, Any]) -> None:
        """Take over what an earlier run of the same options has finished."""
        now = json.loads(json.dumps(finite(record)))
        then_options, now_options = (
            _flat(asked_options(one.get("config"), one.get("asked_table"), one.get("advice"))) for one in (earlier, now)
        )
        free = {"resume", "overwrite", *(f"trainer.{name}" for name in FREE_TO_CHANGE)}
        for name in sorted({*then_options, *now_options} - free):
            if then_options.get(name) != now_options.get(name):
                raise RecembError(
                    f"the run in {self.path} has {name}={then_options.get(name)}, not {now_options.get(name)}; give "
                    "its own options to resume it, or choose another hydra.run.dir."
                )
        if earlier.get("dataset_fingerprint") != now["dataset_fingerprint"]:
            raise RecembError(f"the run in {self.path} is of other data; choose another hydra.run.dir.")
        if earlier["status"] == "completed":
            self.completed = earlier
            return
        for name in ("stages", "structure", "tuning", "advice"):
            if name in earlier:
                record[name] = earlier[name]
        # The advice of a plan took its time elsewhere.
        own = not earlier["config"].get("plan")
        trials = [earlier.get("tuning", {}), earlier.get("advice", {}) if own else {}]
        tried = [one.get("tried", []) for one in trials]
        finished = (earlier.get("stages", []), *tried)
        seconds = [sum(one["seconds"] for one in each) for each in finished]
        record["seconds"] = max(earlier.get("seconds") or 0.0, *seconds)  # the best trial's stages are the run's own

    def _claim(self) -> None:
        """Lock the folder for as long as this object lives; the system lets go when a process dies."""
        self._handle = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._handle)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RecembError(f"another run is going on in {self.path}; choose another hydra.run.dir.") from error

    def _make_room(self, overwrite: bool) -> None:
        """Remove an earlier, unfinished run; touch nothing that was not left by a run."""
        found = [self.path / name for name in _OURS if (self.path / name).exists()]
        found += self.path.glob("events.out.tfevents.*")
        if found and not (self.path / RECORD).exists():
            raise RecembError(
                f"{self.path} holds {found[0].name}, which no run left there and nobody will touch; "
                "choose another hydra.run.dir."
            )
        earlier = self._earlier() if found else None
        status = earlier.get("status") if earlier else None
        if found and not overwrite and status not in _UNFINISHED:
            raise RecembError(
                f"{self.path} already holds a {status or 'damaged'} run; choose another hydra.run.dir or pass "
                "overwrite=true."
            )
        for path in found:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def start(self, record: dict[str, Any]) -> dict[str, Any]:
        """Write the config and the first record, and return it."""
        self.write(record)  # first, since it is what tells a run's folder from any other
        with self.replacing("config.yaml") as partial:
            partial.write_text(yaml.safe_dump(record["config"], sort_keys=False, allow_unicode=True), encoding="utf-8")
        return record

    def write(self, record: dict[str, Any]) -> None:
        """Write the record; a number that JSON has no word for becomes null."""
        with self.replacing(self.record_name) as partial:
            text = json.dumps(finite(record), indent=1, ensure_ascii=False, allow_nan=False)
            partial.write_text(text + "\n", encoding="utf-8")

    def save(self, name: str, write: Callable[[Path], None]) -> None:
        """Let something be written to a path, and move it to `name` once that is done."""
        with self.replacing(name) as partial:
            write(partial)

    @contextlib.contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        """Give a path to write to, and move it to `name` once that is done."""
        partial = self.path / f".{name}.partial"
        try:
            yield partial
            os.replace(partial, self.path / name)
        except OSError as error:
            raise RecembError(f"cannot write {self.path / name}: {reason_of(error)}.") from error
        finally:
            partial.unlink(missing_ok=True)

    def _earlier(self) -> dict[str, Any] | None:
        return read_mapping(self.path / RECORD)


class TrialFolder(RunFolder):
    """The folder of a trial, below that of its run, which is claimed; the first process alone writes.

    The record has a name of its own, so that nobody who looks for runs takes it for one.

    Args:
        path: the folder; made if missing.
    """

    record_name = TRIAL_RECORD

    def __init__(self, path: Path) -> None:
        self.path = path
        self.completed = None
        on_first(lambda: path.mkdir(parents=True, exist_ok=True))

    def write(self, record: dict[str, Any]) -> None:
        """Write the trial's record."""
        if is_first():
            super().write(record)

    def save(self, name: str, write: Callable[[Path], None]) -> None:
        """Let something be written to a path, and move it to `name` once that is done."""
        if is_first():
            super().save(name, write)


class Bystander(RunFolder):
    """The folder of a run for the processes that are not the first: nothing is written.

    Args:
        path: the folder, which the first process has made.
        completed: as in `RunFolder`.
    """

    def __init__(self, path: Path, completed: dict[str, Any] | None) -> None:
        self.path = path
        self.completed = completed

    def start(self, record: dict[str, Any]) -> dict[str, Any]:
        """Give the record back."""
        return record

    def write(self, record: dict[str, Any]) -> None:
        """Leave that to the first process."""

    def save(self, name: str, write: Callable[[Path], None]) -> None:
        """Leave that to the first process."""

    def forget_unfinished(self) -> None:
        """Leave that to the first process."""


def read_status(path: Path) -> str | None:
    """Say how the run in a folder stands; None where there is none."""
    try:
        return str(read_json(path / RECORD)["status"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def open_folder(path: Path, record: dict[str, Any], *, overwrite: bool, resume: bool) -> RunFolder:
    """Claim the folder of a run in the first process, and give every process its view of it.

    Args:
        path: the folder.
        record: the run's first record; afterwards the first process's, in all of them.
        overwrite: replace a completed run.
        resume: go on with the run that is there.
    """
    made: list[RunFolder] = []

    def claim() -> tuple[dict[str, Any] | None, dict[str, Any]]:
        made.append(RunFolder(path, overwrite=overwrite, resumes=record if resume else None))
        return made[0].completed, record

    completed, told = on_first(claim)
    if is_first():
        return made[0]
    record.clear()
    record.update(told)
    return Bystander(path, completed)


def read_trial(path: Path) -> dict[str, Any] | None:
    """Read a trial's record; None where there is none."""
    return read_mapping(path / TRIAL_RECORD)


def read_mapping(path: Path) -> dict[str, Any] | None:
    """Read a JSON file that holds a mapping; None where there is none, or it cannot be read."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _flat(options: Any, prefix: str = "") -> dict[str, Any]:
    """Write nested options as names with dots."""
    if not isinstance(options, dict):
        return {prefix: options}
    flat: dict[str, Any] = {}
    for name, value in options.items():
        flat |= _flat(value, f"{prefix}.{name}" if prefix else name)
    return flat


def finite(value: Any) -> Any:
    """Write nested values so that JSON has words for them: a number that is none becomes null."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
