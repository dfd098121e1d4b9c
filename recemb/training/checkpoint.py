"""The best weights of a run on disk, in torch.distributed.checkpoint's form."""

import contextlib
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint import CheckpointException

from recemb.options import RecembError


def save_weights(model: nn.Module, folder: Path) -> None:
    """Write the model's weights to a folder; an earlier one is replaced only when the new one is whole."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with _one_process():
            dcp.save(model.state_dict(), checkpoint_id=partial, no_dist=True)
    except BaseException:
        # Half a checkpoint helps nobody and may be what fills the disk.
        shutil.rmtree(partial, ignore_errors=True)
        raise
    replaced = folder.with_name(folder.name + ".replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        os.replace(folder, replaced)
    os.replace(partial, folder)
    shutil.rmtree(replaced, ignore_errors=True)


def load_weights(model: nn.Module, folder: Path) -> None:
    """Read what `save_weights` wrote into a model of the same shape, in place.

    Raises:
        RecembError: it is missing, damaged or of another shape.
    """
    state = model.state_dict()
    try:
        with _one_process():
            dcp.load(state, checkpoint_id=folder, no_dist=True)
    except (CheckpointException, Exception) as error:  # the first is no Exception of Python's
        raise RecembError(f"the weights in {folder} cannot be read; train them anew.") from error
    model.load_state_dict(state)


@contextlib.contextmanager
def _one_process() -> Iterator[None]:
    """Keep torch from warning that one process saves alone: that is what no_dist asks for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield
