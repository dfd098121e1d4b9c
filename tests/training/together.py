"""Runs things in several processes, as torchrun's users do."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def launch(ranks: int) -> list[str]:
    """What starts a script, or with `-m` a module, in so many processes."""
    # Standalone is a free port for each launch.
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]


def torchrun(ranks: int, *command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a script, or with `-m` a module, in so many processes that use one thread each."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*launch(ranks), *command], cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=600
    )


def recemb_together(ranks: int, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `recemb` with these arguments in so many processes."""
    return torchrun(ranks, "-m", "recemb", *arguments, cwd=cwd)


def kill_when(pattern: Path, command: list[str], cwd: Path, *, child: int | None = None) -> tuple[str, float]:
    """Start a command, and kill it, or a child of it, as soon as something matches a pattern.

    Returns:
        What it wrote, and how many seconds it took to end after the kill.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (cwd / "killed.txt").open("w+") as out:
        run = subprocess.Popen(command, cwd=cwd, env=environment, stdout=out, stderr=out)
        deadline = time.monotonic() + 300
        while not list(pattern.parent.glob(pattern.name)):
            assert run.poll() is None, (cwd / "killed.txt").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        victim = run.pid
        if child is not None:
            victims = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
            victim = int(victims[child])
        os.kill(victim, signal.SIGKILL)
        clock = time.monotonic()
        run.wait(timeout=120)
        out.seek(0)
        return out.read(), time.monotonic() - clock


def training(ranks: int, *options: str) -> list[str]:
    """The command that trains in so many processes; one alone without torchrun."""
    return [*(launch(ranks) if ranks > 1 else [sys.executable]), "-m", "recemb", "train", *options]
