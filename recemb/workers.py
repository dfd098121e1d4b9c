"""Runs single jobs of a sweep, in this process or side by side in others, however those end."""

import contextlib
import itertools
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from recemb.options import RecembError

_SECONDS_TO_STOP = 30
_MOST_KILLED = 3
_KILLED = (
    "the run was killed from outside, perhaps for its memory; give the same command again with resume=true to go on "
    "with it."
)
_TOO_MANY_KILLED = (
    "a run was killed from outside, perhaps for its memory, which ends the sweep. Start it again with resume=true, "
    "which leaves completed runs alone, and with fewer hydra.launcher.jobs."
)
_LOG = "train.log"
_STOPS = (signal.SIGINT, signal.SIGTERM)


class Outcome(NamedTuple):
    """What came of one job.

    Attributes:
        failure: in a sentence, None where there was none.
        impossible: the failure is that the method cannot be made as small as asked, which ends no trade-off.
        record: of the run, where there is one.
        fresh: the run was not complete before.
        reader_gone: whoever read what the command prints has gone.
    """

    failure: str | None = None
    impossible: bool = False
    record: dict[str, Any] | None = None
    fresh: bool = True
    reader_gone: bool = False


class Sweep(NamedTuple):
    """What the jobs of a sweep share.

    Attributes:
        context: of Hydra.
        task: what is called with each job's configuration.
        config: what the overrides of each job are applied to.
    """

    context: HydraContext
    task: TaskFunction
    config: DictConfig

    def run(self, number: int, overrides: Sequence[str]) -> JobReturn:
        """Run one job as Hydra's own launcher does."""
        one: DictConfig = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(one):
            one.hydra.job.id = number
            one.hydra.job.num = number
        return run_job(
            hydra_context=self.context, task_function=self.task, config=one, job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )  # fmt: skip


class Workers:
    """Processes that run the jobs of a sweep, one at a time each.

    Every process is a pool of its own, since a pool one of whose processes is killed ends all the others.

    Args:
        count: jobs at a time.
        threads: of torch, in each process.
    """

    def __init__(self, count: int, threads: int) -> None:
        self._count = count
        self._threads = threads
        self._pools: list[ProcessPoolExecutor] = []
        self._idle: list[ProcessPoolExecutor] = []
        self._busy: dict[Future[bytes], tuple[ProcessPoolExecutor, Sequence[str]]] = {}

    def run(self, sweep: Sweep, numbered: Iterable[tuple[int, Sequence[str]]]) -> Generator[JobReturn, None, None]:
        """Run jobs, and give what came of each as soon as it has ended.

        A job whose process is killed has failed; the others go on. Whoever leaves off early closes the iterator, which
        stops the jobs that are running.

        Raises:
            RecembError: several processes were killed one after the other.
        """
        left, killed = iter(numbered), 0
        with _stopped_once():
            try:
                while True:
                    for number, overrides in itertools.islice(left, self._count - len(self._busy)):
                        self._begin(sweep, number, overrides)
                    if not self._busy:
                        break
                    for one in wait(self._busy, return_when=FIRST_COMPLETED).done:
                        pool, overrides = self._busy.pop(one)
                        try:
                            done = cloudpickle.loads(one.result())
                        except BrokenProcessPool as error:
                            killed += 1
                            if killed == _MOST_KILLED:
                                raise RecembError(_TOO_MANY_KILLED) from error
                            self._pools.remove(pool)
                            done = JobReturn(overrides, _return_value=Outcome(_KILLED), status=JobStatus.COMPLETED)
                        else:
                            killed = 0
                            self._idle.append(pool)
                        yield done
                for pool in self._pools:
                    pool.shutdown()
            except BaseException:
                self._stop()
                raise

    def _begin(self, sweep: Sweep, number: int, overrides: Sequence[str]) -> None:
        """Give a job to a process that has none, or to a new one."""
        # Configurations hold what pickle alone does not take.
        job = cloudpickle.dumps((Singleton.get_state(), sweep, number, overrides))
        if self._idle:
            pool = self._idle.pop()
            try:
                self._submit(pool, job, overrides)
                return
            except BrokenProcessPool:  # killed while it had nothing to do
                self._pools.remove(pool)
        pool = ProcessPoolExecutor(
            # Spawned, since forked processes cannot use what torch's threads hold.
            1, mp_context=multiprocessing.get_context("spawn"), initializer=_start, initargs=(self._threads,)
        )  # fmt: skip
        self._pools.append(pool)
        self._submit(pool, job, overrides)

    def _submit(self, pool: ProcessPoolExecutor, job: bytes, overrides: Sequence[str]) -> None:
        with _held_back():
            self._busy[pool.submit(_run_elsewhere, job)] = (pool, overrides)

    def _stop(self) -> None:
        """Stop the jobs that are running, give them time to write what became of their runs, and end all processes."""
        for one in _STOPS:  # whoever is impatient would leave processes behind that nobody ends
            signal.signal(one, signal.SIG_IGN)
        processes = multiprocessing.active_children()
        deadline = time.monotonic() + _SECONDS_TO_STOP
        running = set(self._busy)
        try:
            while running and time.monotonic() < deadline:
                for process in processes:
                    _interrupt(process)
                # A process that was just starting has not heard it; one that has ignores it from then on.
                running = wait(running, timeout=1).not_done
        finally:
            for process in processes:
                process.kill()
            # Their threads end with the processes. Were they left to Python's exit, both might close one pipe at once,
            # of which Python would say over many lines that it is closed.
            for pool in self._pools:
                pool.shutdown(cancel_futures=True)


def _interrupt(process: multiprocessing.process.BaseProcess) -> None:
    if process.pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGINT)


@contextlib.contextmanager
def _stopped_once() -> Iterator[None]:
    """Let the first Ctrl-C or stop interrupt the block, and ignore all others until this process ends."""
    before = _heeded()

    def stop(number: int, frame: Any) -> None:
        for one in before:
            signal.signal(one, signal.SIG_IGN)
        signal.default_int_handler(number, frame)

    for one in before:
        signal.signal(one, stop)
    try:
        yield
    finally:
        for one, handler in before.items():
            if signal.getsignal(one) is stop:
                signal.signal(one, handler)


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """Hold Ctrl-C and stops back until the end of the block, and Ctrl-C from processes that are started in it.

    Python would say over many lines where it was in starting one.
    """
    before = _heeded()
    came: list[int] = []
    for one in before:
        signal.signal(one, lambda number, _: came.append(number))
    # What is blocked here begins blocked there. Other threads may still take it, so the handlers are needed too.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for one, handler in before.items():
            signal.signal(one, handler)
        for number in came[:1]:
            signal.raise_signal(number)


def _heeded() -> dict[int, Any]:
    """Give the handlers of the stops that are not ignored, as a shell's background job ignores Ctrl-C."""
    found = {one: signal.getsignal(one) for one in _STOPS}
    return {one: handler for one, handler in found.items() if handler not in (signal.SIG_IGN, None)}


def _start(threads: int) -> None:
    """Prepare a process for jobs; between them it is the sweep that is interrupted."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    import torch

    torch.set_num_threads(threads)


def _run_elsewhere(job: bytes) -> bytes:
    """Run one job in a process of its own."""
    state, sweep, number, overrides = cloudpickle.loads(job)
    setup_globals()
    Singleton.set_state(state)
    signal.signal(signal.SIGINT, _interrupt_once)
    try:
        done = sweep._replace(task=partial(_quietly, sweep.task)).run(number, overrides)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    done.cfg = done.hydra_cfg = None  # nobody reads them, and they would be sent back
    sent: bytes = cloudpickle.dumps(done)
    return sent


def _interrupt_once(number: int, frame: Any) -> None:
    """Stop a job; a second signal, as a terminal and the sweep each send one, does not disturb its last words."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.default_int_handler(number, frame)


def _quietly(task: TaskFunction, composed: DictConfig) -> Any:
    """Run a job whose output goes to the end of train.log in its folder."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    log = folder / _LOG
    begun = not log.exists()
    with log.open("a", encoding="utf-8") as file:
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setStream(file)
        with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            outcome = task(composed)
    if isinstance(outcome, Outcome) and outcome.impossible and begun:  # there was no run
        log.unlink()
        with contextlib.suppress(OSError):  # other things are in the folder
            folder.rmdir()
    return outcome
