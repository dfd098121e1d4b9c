"""What the machine lends: cores, and sentences for what its file system refuses."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recemb.budget import format_bytes
from recemb.options import RecembError


def usable_cores() -> int:
    """Cores this process may use; eight at most, since more only hold more memory here."""
    return min(len(os.sched_getaffinity(0)), 8)


@contextmanager
def writing_to(path: Path, bytes_needed: int = 0) -> Iterator[None]:
    """Turn what can go wrong while writing below `path` into one sentence that says what to do.

    Args:
        path: the folder the user asked for.
        bytes_needed: a rough size of what has to fit there, named when the disk is full; 0 = not known.
    """
    try:
        yield
    except OSError as error:
        need = f" (about {format_bytes(bytes_needed)} are needed)" if bytes_needed else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise RecembError(
                f"There is no room left to write {path}{need}; free some, or choose another dataset.path."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise RecembError(f"{path} cannot be written ({error.strerror}); choose another dataset.path.") from error
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.ELOOP):
            raise RecembError(f"{path} cannot be created ({error.strerror}); choose another dataset.path.") from error
        raise
