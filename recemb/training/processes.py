"""The processes that train together: torchrun starts them, torch.distributed joins them.

Everything here also works in a process that runs alone, and then does nothing.
"""

import contextlib
import datetime
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from recemb.options import RecembError

_Result = TypeVar("_Result")

# What gloo and NCCL say when a process at the other end is gone.
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "gloo", "NCCL", "Gloo")
# The first process may have much to do while the others wait, such as to prepare a data set.
_PATIENCE = datetime.timedelta(days=2)
_waiting: list[Any] = []


class ToldElsewhereError(RecembError):
    """The first process has failed at what only it does, and tells so itself."""


def join() -> bool:
    """Join the other processes if torchrun has started this one.

    Returns:
        Whether it has, be it alone.

    Raises:
        RecembError: the others cannot be reached.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or dist.is_initialized():
        return dist.is_initialized()
    # What torchrec and torch tell each other about names to come helps nobody here.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed|torchrec|recemb")
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(local_rank() % torch.cuda.device_count())
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
        _waiting.append(dist.new_group(backend="gloo", timeout=_PATIENCE))
    except (RuntimeError, ValueError) as error:
        raise RecembError(
            f"the processes that torchrun started cannot reach each other: {_first_line(error)}"
        ) from error
    return True


def leave() -> None:
    """Part from the others once all is done."""
    if dist.is_initialized():
        _waiting.clear()
        dist.destroy_process_group()


def rank() -> int:
    """Which of the processes this is."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_rank() -> int:
    """Which of the processes on this machine this is."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank() == 0


def on_first(make: Callable[[], _Result]) -> _Result:
    """Do something in the first process only, and give what comes of it to all.

    Args:
        make: what to do; what it returns must be picklable.

    Raises:
        ToldElsewhereError: it failed, in the processes that are not the first.
    """
    if world_size() == 1:
        return make()
    told: list[Any] = [None, None]
    failed: Exception | None = None
    if is_first():
        try:
            told[0] = make()
        except Exception as error:
            failed, told[1] = error, str(error)
    dist.broadcast_object_list(told, src=0, group=_waiting[0])
    if failed is not None:
        raise failed
    if told[1] is not None:
        raise ToldElsewhereError(told[1])
    result: _Result = told[0]
    return result


def gather_rows(rows: Tensor, counts: list[int]) -> list[Tensor]:
    """Give every process the rows of all.

    Args:
        rows: (n, ...) of this process.
        counts: how many each process has.

    Returns:
        For each process (n, ...).
    """
    if world_size() == 1:
        return [rows]
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    found = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(found, padded)
    return [one[:count] for one, count in zip(found, counts, strict=True)]


def mean_over_processes(values: Tensor) -> Tensor:
    """Average tensors of one shape over the processes."""
    if world_size() == 1:
        return values
    dist.all_reduce(values)
    return values / world_size()


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Say in one sentence that another process is gone, where that ends what is done inside."""
    try:
        yield
    except RuntimeError as error:
        if world_size() > 1 and any(sign in str(error) for sign in _LOST):
            raise RecembError(
                f"another of the {world_size()} processes has ended or cannot be reached; what it said tells why. "
                f"({_first_line(error)[:120]})"
            ) from error
        raise


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
