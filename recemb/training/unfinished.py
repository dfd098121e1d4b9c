"""What a run keeps while it is going on, so that it can go on from there after it was broken off."""

import contextlib
import json
import logging
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from recemb.files import read_json
from recemb.options import RecembError
from recemb.training.checkpoint import load_tensors, save_tensors
from recemb.training.processes import on_first

log = logging.getLogger(__name__)


class Unfinished:
    """The states of one stage of training, by step, and the best weights that they refer to.

    Everything is below one folder: `STAGE-state-STEP/` hold tensors and a note, `STAGE-best-STEP/` weights, and
    `STAGE-end.json` says that training is over. All processes call all methods together.

    Args:
        folder: made when something is written.
        stage: the name of the stage.
        keep: how many states are kept.
    """

    def __init__(self, folder: Path, stage: str, keep: int) -> None:
        self._folder = folder
        self._stage = stage
        self._keep = keep

    def best(self, step: int) -> Path:
        """Where the weights after a step are if they were the best at the time."""
        return self._folder / f"{self._stage}-best-{step:09d}"

    @property
    def end(self) -> dict[str, Any] | None:
        """What was noted down when training was over."""

        def read() -> dict[str, Any] | None:
            try:
                found = read_json(self._end)
            except (OSError, ValueError):
                return None
            return found if isinstance(found, dict) else None

        return on_first(read)

    def note_end(self, note: dict[str, Any]) -> None:
        """Note down that training is over; its states are not needed any more."""

        def write() -> None:
            with contextlib.suppress(OSError):  # it only saves time
                self._folder.mkdir(parents=True, exist_ok=True)
                whole = self._end.with_suffix(".partial")
                whole.write_text(json.dumps(note), encoding="utf-8")
                os.replace(whole, self._end)
                for path in self._states():
                    shutil.rmtree(path, ignore_errors=True)

        on_first(write)

    def forget(self) -> None:
        """Remove all of the stage, which is finished."""

        def remove() -> None:
            self._end.unlink(missing_ok=True)
            for path in self._folder.glob(f"{self._stage}-*"):
                shutil.rmtree(path, ignore_errors=True)

        on_first(remove)

    def save(self, step: int, tensors: dict[str, Any], note: dict[str, Any]) -> None:
        """Keep a state, and forget those that are too old; where that fails, the earlier ones stay."""
        try:
            on_first(lambda: self._folder.mkdir(parents=True, exist_ok=True))
            save_tensors(tensors, self._state(step), json.dumps(note))
        except (RecembError, OSError) as error:
            log.warning("training goes on, but its state could not be kept: %s", error)
            return
        on_first(self._prune)

    def forget_other_bests(self, best_step: int) -> None:
        """Remove best weights that neither a state nor the present needs."""

        def remove() -> None:
            needed = {self.best(best_step)}
            for path in self._states():
                with contextlib.suppress(RecembError, KeyError):
                    needed.add(self.best(_read_note(path)["best_step"]))
            for path in self._folder.glob(f"{self._stage}-best-*"):
                if path not in needed:
                    shutil.rmtree(path, ignore_errors=True)

        on_first(remove)

    def load(self, tensors: dict[str, Any]) -> dict[str, Any] | None:
        """Read the newest state that can be read into tensors, in place.

        Returns:
            Its note, or None where there is no state.

        Raises:
            RecembError: there are states, and none of them can be read.
        """
        paths = on_first(self._states)
        for path in reversed(paths):
            try:
                note = on_first(partial(_read_note, path))
                load_tensors(tensors, path, "the state in {folder} cannot be read.")
            except RecembError as error:
                log.warning("%s Trying the one before.", error)
                continue
            return note
        if paths:
            raise RecembError(
                f"no state of the unfinished run in {self._folder} can be read; leave resume=true out to begin anew."
            )
        return None

    @property
    def _end(self) -> Path:
        return self._folder / f"{self._stage}-end.json"

    def _state(self, step: int) -> Path:
        return self._folder / f"{self._stage}-state-{step:09d}"

    def _states(self) -> list[Path]:
        """The states, the oldest first."""
        found = self._folder.glob(f"{self._stage}-state-*")
        return sorted(path for path in found if path.name.rsplit("-", 1)[1].isdigit())

    def _prune(self) -> None:
        for path in self._states()[: -self._keep]:
            shutil.rmtree(path, ignore_errors=True)


def _read_note(path: Path) -> dict[str, Any]:
    try:
        return dict(read_json(path / "note.json"))
    except (OSError, ValueError) as error:
        raise RecembError(f"the state in {path} cannot be read.") from error
