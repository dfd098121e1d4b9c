"""The folder of a run: claimed once, every file in it whole or absent."""

import contextlib
import errno
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from recemb.options import RecembError
from recemb.record import RECORD

_OURS = ("run.json", "config.yaml", "predictions.parquet", "checkpoint", "checkpoint.partial", "checkpoint.replaced")


class RunFolder:
    """Writes what a run leaves.

    Args:
        path: the folder; made if missing.
        overwrite: replace a completed run. An unfinished one is always replaced.

    Raises:
        RecembError: the folder cannot be written, holds a completed run, or a run that is still going.
    """

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecembError(f"cannot make the run folder {path}: {error.strerror}.") from error
        earlier = self._earlier()
        if earlier.get("status") == "completed" and not overwrite:
            raise RecembError(
                f"{path} already holds a completed run ({earlier.get('command') or earlier.get('method')}); choose "
                "another hydra.run.dir or pass overwrite=true."
            )
        if earlier.get("status") == "running" and _is_alive(earlier.get("process")):
            raise RecembError(
                f"process {earlier['process']} is still training in {path}; choose another hydra.run.dir."
            )
        for name in _OURS:
            shutil.rmtree(path / name, ignore_errors=True)
            (path / name).unlink(missing_ok=True)
        for events in path.glob("events.out.tfevents.*"):
            events.unlink()

    def start(self, record: dict[str, Any]) -> dict[str, Any]:
        """Write the config and the first record, and return it."""
        with self.replacing("config.yaml") as partial:
            partial.write_text(yaml.safe_dump(record["config"], sort_keys=False, allow_unicode=True), encoding="utf-8")
        self.write(record)
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

    def _earlier(self) -> dict[str, Any]:
        try:
            found = json.loads((self.path / RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def _is_alive(process: Any) -> bool:
    if not isinstance(process, int) or process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
