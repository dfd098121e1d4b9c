"""TensorBoard's events, without which training goes on where they cannot be written."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread
from torch.utils.tensorboard import SummaryWriter

from recemb.files import reason_of

log = logging.getLogger(__name__)


class EventWriter(SummaryWriter):
    """Writes events to a folder; where the disk is full it says so once, and writes no more.

    Args:
        folder: where the events go.
        options: of `SummaryWriter`.
    """

    def __init__(self, folder: Path, **options: Any) -> None:
        self._folder = folder
        self._failed = False
        _expect_failures_of_writers()
        super().__init__(str(folder), **options)

    def _get_file_writer(self) -> Any:
        known = self.file_writer
        writer = super()._get_file_writer()
        if writer is not known:
            for name in ("add_event", "flush", "close"):
                setattr(writer, name, self._tolerant(getattr(writer, name)))
        return writer

    def _tolerant(self, write: Callable[..., Any]) -> Callable[..., Any]:
        def written(*arguments: Any, **named: Any) -> Any:
            if self._failed:
                return None
            try:
                return write(*arguments, **named)
            except OSError as error:
                self._failed = True
                log.warning(
                    "training goes on, but TensorBoard's events in %s end here: %s.", self._folder, reason_of(error)
                )
            return None

        return written


def _expect_failures_of_writers() -> None:
    """Keep Python from printing what ends a writer's thread, which is raised again where the next event is added."""
    before = threading.excepthook
    if getattr(before, "is_recembs", False):
        return

    def hook(failure: threading.ExceptHookArgs) -> None:
        if not (isinstance(failure.thread, _AsyncWriterThread) and isinstance(failure.exc_value, OSError)):
            before(failure)

    hook.is_recembs = True  # type: ignore[attr-defined]
    threading.excepthook = hook
