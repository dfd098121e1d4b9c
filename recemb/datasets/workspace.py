"""A folder that appears whole or not at all: work goes on beside it, held by a lock, and one rename shows it."""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from recemb.datasets.machine import writing_to
from recemb.datasets.prepared import META
from recemb.options import RecembError

_LOCK = "lock"


@contextmanager
def workspace(target: Path, shown: str) -> Iterator[Path]:
    """Yield an empty folder beside `target`, and remove it whatever happens inside.

    What a killed process has left there is removed first; a process that is still alive is respected.

    Args:
        target: the folder to be, with no symbolic link in its path.
        shown: what to call it in a sentence.
    """
    partial = target.with_name(f".{target.name}.partial")
    with writing_to(Path(shown)):
        lock = _lock(partial, shown)
        _sweep(partial)
        _restore(target)
    try:
        yield partial
    finally:
        if _owns(partial, lock):
            _sweep(partial)
            with suppress(OSError):
                (partial / _LOCK).unlink()
                partial.rmdir()
        os.close(lock)


def publish(partial: Path, target: Path, replace: bool) -> None:
    """Make what was written in `partial` durable and show it as `target`.

    Args:
        partial: the folder that `workspace` gave.
        target: the folder to be.
        replace: take the place of what is there; otherwise only an empty folder may be there.
    """
    for path in sorted(partial.rglob("*")):
        if path.is_file():
            _sync(path)
    _sync(partial)
    old = _old(target)
    # A full folder cannot be renamed over; dying between the two renames is mended by `_restore` at the next start.
    if replace and target.exists():
        target.rename(old)
    (partial / _LOCK).unlink()
    partial.rename(target)
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _lock(partial: Path, shown: str) -> int:
    """Create `partial` if need be and take its lock; return the descriptor that holds it."""
    while True:
        partial.mkdir(parents=True, exist_ok=True)
        # Its lock marks a folder of ours, or at the very end, when the lock is gone, its record.
        ours = (partial / _LOCK).exists() or (partial / META).exists() or not any(partial.iterdir())
        if partial.is_symlink() or not ours:
            raise RecembError(
                f"{partial} is in the way and was made by somebody else; move it away, or choose another dataset.path."
            )
        try:
            lock = os.open(partial / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:
            continue  # its owner has just finished and taken the folder away
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN):
                raise
            raise RecembError(
                f"Another process is preparing {shown} at this moment; wait for it, or choose another dataset.path."
            ) from None
        if _owns(partial, lock):
            return lock
        os.close(lock)


def _owns(partial: Path, lock: int) -> bool:
    """Tell whether the locked file is the one that lies in `partial` now."""
    try:
        return os.path.samestat((partial / _LOCK).stat(), os.fstat(lock))
    except OSError:
        return False


def _sweep(partial: Path) -> None:
    for path in partial.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != _LOCK:
            path.unlink(missing_ok=True)


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.replaced")


def _restore(target: Path) -> None:
    """Mend a replacement that was cut short: put the older folder back, or finish removing it."""
    old = _old(target)
    if (old / META).is_file() and not old.is_symlink():
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(target)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
