"""Runs things in several processes, as torchrun's users do."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from command_line import run_ranks, start, start_ranks, wait_for_ranks


def torchrun(ranks: int, *command: str) -> list[str]:
    """The command by which torchrun starts a script, or with `-m` a module, in so many processes."""
    # Standalone is a free port for each launch.
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), *command]


class Training(NamedTuple):
    """A command that trains in so many processes.

    Attributes:
        ranks: how many.
        arguments: of `recemb`.
        by_torchrun: they are started by torchrun itself, which takes seconds to import torch in each of them; else in
            the same way from processes that have imported it.
    """

    ranks: int
    arguments: tuple[str, ...]
    by_torchrun: bool = False

    def run(self, cwd: Path, before: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
        """Run it to its end, which must be a good one."""
        if self.by_torchrun:
            command = torchrun(self.ranks, "-m", "recemb", *self.arguments)
            done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=600)
        elif self.ranks > 1:
            done = run_ranks(self.ranks, *self.arguments, cwd=cwd)
        else:
            done = start(*self.arguments, cwd=cwd, before=before).completed()
        assert done.returncode == 0, done.stderr[-3000:]
        return done


def training(ranks: int, *options: str) -> Training:
    """`recemb train` in so many processes."""
    return Training(ranks, ("train", *options))


def kill_when(pattern: Path, command: Training, cwd: Path, *, child: int | None = None) -> tuple[str, float]:
    """Start a training, and kill a process of it as soon as something matches a pattern.

    Returns:
        What it wrote, and how many seconds it took to end after the kill.
    """
    kill = _kill_below_torchrun if command.by_torchrun else _kill_a_rank
    return kill(pattern, command, cwd, child or 0)


def _kill_a_rank(pattern: Path, command: Training, cwd: Path, child: int) -> tuple[str, float]:
    if command.ranks == 1:
        ranks = [start(*command.arguments, cwd=cwd)]
    else:
        ranks = start_ranks(command.ranks, *command.arguments, cwd=cwd)
    _wait_for(pattern, lambda: any(rank.poll() is not None for rank in ranks), lambda: ranks[child].stderr)
    ranks[child].kill()
    clock = time.monotonic()
    wait_for_ranks(ranks, 120)
    return "".join(rank.stdout + rank.stderr for rank in ranks), time.monotonic() - clock


def _kill_below_torchrun(pattern: Path, command: Training, cwd: Path, child: int) -> tuple[str, float]:
    path = cwd / "killed.txt"
    with path.open("w+") as out:
        arguments = torchrun(command.ranks, "-m", "recemb", *command.arguments)
        run = subprocess.Popen(arguments, cwd=cwd, stdout=out, stderr=out)
        _wait_for(pattern, lambda: run.poll() is not None, path.read_text)
        victims = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        os.kill(int(victims[child]), signal.SIGKILL)
        clock = time.monotonic()
        run.wait(timeout=120)
        return path.read_text(), time.monotonic() - clock


def _wait_for(pattern: Path, has_ended: Callable[[], bool], said: Callable[[], str]) -> None:
    deadline = time.monotonic() + 300
    while not list(pattern.parent.glob(pattern.name)):
        assert not has_ended(), said()
        assert time.monotonic() < deadline, said()
        time.sleep(0.01)
