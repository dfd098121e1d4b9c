"""Runs the command line as its users do: in processes of its own, with files, signals and exit statuses.

Importing torch, torchrec and FBGEMM takes five seconds of a processor. A server imports them once for each process of
pytest and forks a process for each command (multiprocessing's `forkserver`), so that a command starts at once. Tests of
the start itself use `subprocess`.
"""

import multiprocessing
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import cloudpickle

# Whatever else starts processes takes them from here: there is one such server in a process.
server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(
    ["recemb.cli", "recemb.advice", "recemb.inspection.inspection", "recemb.packing.export", "recemb.report"]
)


class Command:
    """A command in a process of its own.

    Args:
        run: what the process calls, given `arguments`; what it returns or raises `SystemExit` with is its exit status.
        arguments: of the command line.
        cwd: the folder it runs in.
        environment: variables that differ from this process's.
        before: called in the process first.
    """

    def __init__(
        self,
        run: Callable[[Sequence[str]], int],
        arguments: Sequence[str],
        cwd: Path,
        environment: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None,
    ) -> None:
        self.arguments = list(arguments)
        self._output = Path(tempfile.mkdtemp())
        variables = {**os.environ, **(environment or {})}
        asked = cloudpickle.dumps((run, self.arguments, os.fspath(cwd), variables, before))
        self._process = server.Process(target=_begin, args=(asked, os.fspath(self._output)))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def stdout(self) -> str:
        """What it has written so far."""
        return self._written("stdout")

    @property
    def stderr(self) -> str:
        """What it has written so far."""
        return self._written("stderr")

    def _written(self, name: str) -> str:
        path = self._output / name
        return path.read_text(errors="replace") if path.exists() else ""

    def poll(self) -> int | None:
        """Return its exit status, negative where a signal ended it; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float = 600) -> int:
        """Return its exit status once it has ended."""
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired(self.arguments, timeout, self.stdout.encode(), self.stderr.encode())
        return code

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def completed(self, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """Wait for it, and return what became of it."""
        code = self.wait(timeout)
        done = subprocess.CompletedProcess(self.arguments, code, self.stdout, self.stderr)
        shutil.rmtree(self._output, ignore_errors=True)
        return done


def recemb(*arguments: str, cwd: Path, before: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `recemb` with these arguments in a process of its own, which calls `before` first."""
    return start(*arguments, cwd=cwd, before=before).completed()


def start(*arguments: str, cwd: Path, before: Callable[[], None] | None = None) -> Command:
    """Start `recemb` with these arguments."""
    return Command(_recemb, arguments, cwd, before=before)


def start_ranks(ranks: int, *arguments: str, cwd: Path, script: str | None = None) -> list[Command]:
    """Start `recemb`, or a script, in so many processes that train together, as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run = _recemb if script is None else _script
    arguments = arguments if script is None else (script, *arguments)
    shared = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks),
        "TORCHELASTIC_RUN_ID": "tests",
    }  # fmt: skip
    return [
        Command(run, arguments, cwd, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(ranks)
    ]


def run_ranks(
    ranks: int, *arguments: str, cwd: Path, script: str | None = None, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """Run `recemb`, or a script, in so many processes; when one fails the others are stopped, as torchrun does."""
    commands = start_ranks(ranks, *arguments, cwd=cwd, script=script)
    wait_for_ranks(commands, timeout)
    done = [command.completed() for command in commands]
    code = next((one.returncode for one in done if one.returncode), 0)
    return subprocess.CompletedProcess(
        list(arguments), code, "".join(one.stdout for one in done), "".join(one.stderr for one in done)
    )


def wait_for_ranks(commands: Sequence[Command], timeout: float = 600) -> None:
    """Wait until all have ended; once one has failed, the others are told to stop, and then made to."""
    deadline = time.monotonic() + timeout
    while any(command.poll() is None for command in commands):
        failed = any(command.poll() for command in commands)
        late = time.monotonic() > deadline
        if failed or late:
            _stop([command for command in commands if command.poll() is None])
        assert not late, "".join(command.stderr for command in commands)
        time.sleep(0.01)


def _stop(commands: Sequence[Command]) -> None:
    for command in commands:
        command.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + 30
    while any(command.poll() is None for command in commands) and time.monotonic() < deadline:
        time.sleep(0.01)
    for command in commands:
        if command.poll() is None:
            command.kill()


def _begin(asked: bytes, output: str) -> None:
    """Become the process of a command."""
    os.setsid()
    for name, stream in (("stdout", 1), ("stderr", 2)):
        file = os.open(f"{output}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, stream)
        os.close(file)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run, arguments, cwd, environment, before = cloudpickle.loads(asked)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    if before is not None:
        before()
    sys.exit(run(arguments))


def _recemb(arguments: Sequence[str]) -> int:
    from recemb.__main__ import main

    sys.argv = ["recemb", *arguments]
    return main()


def _script(arguments: Sequence[str]) -> int:
    sys.argv = list(arguments)
    sys.path.insert(0, str(Path(arguments[0]).parent))
    runpy.run_path(arguments[0], run_name="__main__")
    return 0
