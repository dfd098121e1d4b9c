"""Tensors of a run on disk, as safetensors: whole or absent, whoever wrote them.

What is saved has the same names and shapes in one process and in many, so that any number of them can read it.
"""

import contextlib
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint import CheckpointException

from recemb.files import reason_of
from recemb.options import RecembError
from recemb.training.processes import ToldElsewhereError, is_first, on_first, world_size
from recemb.training.tensor_files import TensorsOnlyPlanner, tensor_reader, tensor_writer


def save_weights(model: nn.Module, folder: Path) -> None:
    """Write the model's weights to a folder; an earlier one is replaced only when the new one is whole.

    Raises:
        RecembError: they cannot be written.
    """
    save_tensors(model.state_dict(), folder)


def load_weights(model: nn.Module, folder: Path) -> None:
    """Read what `save_weights` wrote into a model of the same shape, in place.

    Raises:
        RecembError: it is missing, damaged or of another shape.
    """
    load_tensors(model.state_dict(), folder, "the weights in {folder} cannot be read; train them anew.")


def save_tensors(tensors: dict[str, Any], folder: Path, note: str | None = None) -> None:
    """Write tensors, each process what it holds of them; an earlier folder is replaced only when the new one is whole.

    Args:
        tensors: by name; sharded ones may be missing where nothing of them is held.
        folder: where they go.
        note: a text that goes with them, as `note.json`.

    Raises:
        RecembError: they cannot be written; nothing is left of the attempt.
    """
    partial = folder.with_name(folder.name + ".partial")
    on_first(lambda: shutil.rmtree(partial, ignore_errors=True))
    try:
        with _quiet():
            dcp.save(tensors, storage_writer=tensor_writer(partial), no_dist=world_size() == 1)
        on_first(lambda: _put_in_place(partial, folder, note))
    except ToldElsewhereError:
        raise
    except (CheckpointException, OSError, RuntimeError) as error:  # the first is no Exception of Python's
        _pass_interrupts_on(error)
        raise RecembError(f"cannot write {folder}: {_reason(error)}.") from error
    finally:
        # Half a checkpoint helps nobody and may be what fills the disk. By now every process has stopped writing.
        if is_first():
            shutil.rmtree(partial, ignore_errors=True)


def load_tensors(tensors: dict[str, Any], folder: Path, otherwise: str) -> None:
    """Read what `save_tensors` wrote into tensors of the same names and shapes, in place, each process what it holds.

    Args:
        tensors: by name.
        folder: where they are.
        otherwise: what to say where that cannot be done; `{folder}` stands for the folder.

    Raises:
        RecembError: they are missing, damaged or of another shape.
    """
    replaced = _replaced(folder)
    if replaced.exists() and not folder.exists():
        folder = replaced  # broken off between the two renames that put a new one in its place
    try:
        with _quiet():
            reader, planner = tensor_reader(folder), TensorsOnlyPlanner()
            dcp.load(tensors, storage_reader=reader, planner=planner, no_dist=world_size() == 1)
    except (CheckpointException, Exception) as error:  # the first is no Exception of Python's
        _pass_interrupts_on(error)
        raise RecembError(otherwise.format(folder=folder)) from error


def _put_in_place(partial: Path, folder: Path, note: str | None) -> None:
    if note is not None:
        (partial / "note.json").write_text(note, encoding="utf-8")
    replaced = _replaced(folder)
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        os.replace(folder, replaced)
    os.replace(partial, folder)
    handle = os.open(folder.parent, os.O_RDONLY)
    try:
        os.fsync(handle)  # a power cut must not take the new name away
    finally:
        os.close(handle)
    shutil.rmtree(replaced, ignore_errors=True)


def _pass_interrupts_on(error: BaseException) -> None:
    """Raise the Ctrl-C that torch has wrapped like any failure to write or read, or that led to one in its writer."""
    failures = [one for one, _ in error.failures.values()] if isinstance(error, CheckpointException) else [error]
    for failure in failures:
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, KeyboardInterrupt):
                raise KeyboardInterrupt from error
            cause = cause.__cause__ or cause.__context__


def _replaced(folder: Path) -> Path:
    return folder.with_name(folder.name + ".replaced")


def _reason(error: BaseException) -> str:
    """Find what the file system said, which torch wraps by rank."""
    causes: list[BaseException] = [error]
    if isinstance(error, CheckpointException):
        causes += [failure[0] for failure in error.failures.values()]
    for cause in causes:
        if isinstance(cause, OSError):
            return reason_of(cause)
    text = str(causes[-1]).strip()
    return text.splitlines()[-1] if text else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from warning that one process saves alone, and from what concerns those who write torch."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", "TypedStorage is deprecated", UserWarning)
        yield
