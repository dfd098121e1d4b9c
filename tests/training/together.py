"""Runs things in several processes, as torchrun's users do."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def torchrun(
    ranks: int, *command: str, cwd: Path | None = None, options: tuple[str, ...] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a script, or with `-m` a module, in so many processes that use one thread each."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    if not any(option.startswith("--master") for option in options):
        launch.append("--standalone")  # a free port for each launch
    return subprocess.run(
        [*launch, *options, *command],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def recemb_together(ranks: int, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `recemb` with these arguments in so many processes."""
    return torchrun(ranks, "-m", "recemb", *arguments, cwd=cwd, **environment)


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
    python = [sys.executable, "-m"]
    launch = [*python, "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
    return [*(launch if ranks > 1 else python), "recemb", "train", *options]
