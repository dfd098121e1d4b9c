"""The folder of a run: claimed once, every file in it whole or absent."""

import contextlib
import errno
import fcntl
import json
import math
import os
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from recemb.options import RecembError
from recemb.record import RECORD

_OURS = (RECORD, "config.yaml", "predictions.parquet", "checkpoint", "checkpoint.partial", "checkpoint.replaced")


class RunFolder:
    """Writes what a run leaves.

    Args:
        path: the folder; made if missing.
        overwrite: replace a completed run. An unfinished one is always replaced.

    Raises:
        RecembError: the folder cannot be written, or holds a completed run, one still going, or other things.
    """

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecembError(f"cannot make the run folder {path}: {error.strerror}.") from error
        self._claim()
        self._make_room(overwrite)

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
        status = self._earlier_status() if found else None
        if found and not overwrite and status not in ("running", "failed", "interrupted"):
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
        with self.replacing(RECORD) as partial:
            text = json.dumps(_finite(record), indent=1, ensure_ascii=False, allow_nan=False)
            partial.write_text(text + "\n", encoding="utf-8")

    @contextlib.contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        """Give a path to write to, and move it to `name` once that is done."""
        partial = self.path / f".{name}.partial"
        try:
            yield partial
            os.replace(partial, self.path / name)
        except OSError as error:
            reason = "the disk is full" if error.errno == errno.ENOSPC else str(error.strerror or error)
            raise RecembError(f"cannot write {self.path / name}: {reason}.") from error
        finally:
            partial.unlink(missing_ok=True)

    def _earlier_status(self) -> str | None:
        try:
            found = json.loads((self.path / RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found.get("status") if isinstance(found, dict) else None


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
