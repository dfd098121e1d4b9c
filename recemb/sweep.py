"""Runs the jobs of a sweep, side by side where asked: Hydra's launcher over processes, and what it says."""

import contextlib
import hashlib
import itertools
import logging
import math
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, NamedTuple

import cloudpickle
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, filter_overrides, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from recemb.options import RecembError

_MEMORY_OF_A_JOB = 3 << 30
_SECONDS_TO_STOP = 30
_LONGEST_NAME = 120
_LOG = "train.log"


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


@dataclass
class SideBySideConf:
    """Options of the launcher, `hydra.launcher.*` on the command line."""

    _target_: str = "hydra_plugins.recemb.SideBySide"
    jobs: int | None = 1
    baseline: dict[str, Any] = field(default_factory=dict)


class SideBySide(Launcher):
    """Runs jobs one after the other in this process, or several at a time in processes of their own.

    Args:
        jobs: at a time. None = one for each core, as far as 3 GiB of memory each allow; one where there is a GPU.
        baseline: options of a job that is run before the others, once for each combination of whatever else is swept:
            what the others are to be compared with.
    """

    __module__ = "hydra_plugins.recemb"  # see register_launcher

    outcomes: ClassVar[list[Outcome]] = []
    """What came of the jobs of this process's sweeps, in the order that they ended."""
    say: ClassVar[Callable[[str], None]]
    """Shows a line to whoever waits."""

    def __init__(self, jobs: int | None = 1, baseline: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self._jobs = jobs
        self._baseline = dict(baseline or {})
        self._config: DictConfig
        self._task: TaskFunction
        self._context: HydraContext

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra hands over."""
        self._context, self._task, self._config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs, and say of each what came of it.

        Raises:
            RecembError: a number of jobs makes no sense, or a process was killed from outside.
        """
        setup_globals()
        Path(str(self._config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        numbered = list(enumerate(_with_baseline(job_overrides, self._baseline), initial_job_idx))
        jobs = min(_jobs(self._jobs), len(numbered))
        given = [set(overrides) for _, overrides in numbered]
        overview = _Overview(len(numbered), set.intersection(*given) if len(given) > 1 else set(), SideBySide.say)
        returned = []
        for done in self._one_by_one(numbered) if jobs == 1 else self._at_a_time(numbered, jobs):
            outcome = done.return_value  # what the job raised is raised here
            returned.append(done)
            if isinstance(outcome, Outcome):
                self.outcomes.append(outcome)
                overview.add(done.overrides or [], outcome)
        overview.close()
        return returned

    def _one_by_one(self, numbered: list[tuple[int, Sequence[str]]]) -> Iterator[JobReturn]:
        for count, (number, overrides) in enumerate(numbered, start=1):
            SideBySide.say(f"\n[{count}/{len(numbered)}] {' '.join(filter_overrides(overrides))}")
            yield _run(self._context, self._task, self._config, number, overrides)

    def _at_a_time(self, numbered: list[tuple[int, Sequence[str]]], jobs: int) -> Iterator[JobReturn]:
        cores = max(1, len(os.sched_getaffinity(0)) // jobs)
        state = Singleton.get_state()
        # Spawned, since forked processes cannot use what torch's threads hold.
        with ProcessPoolExecutor(
            jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(cores,)
        ) as pool:
            left, running = iter(numbered), set[Future[bytes]]()
            try:
                while True:
                    for number, overrides in itertools.islice(left, jobs - len(running)):
                        # Configurations hold what pickle alone does not take.
                        job = cloudpickle.dumps((state, self._context, self._task, self._config, number, overrides))
                        running.add(pool.submit(_run_elsewhere, job))
                    if not running:
                        return
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for one in done:
                        yield cloudpickle.loads(one.result())
            except BrokenProcessPool as error:
                raise RecembError(
                    "a run was killed from outside, perhaps for its memory, which ends the sweep. Start it again with "
                    "resume=true, which leaves completed runs alone, and with fewer hydra.launcher.jobs."
                ) from error
            except BaseException:
                _interrupt(running)
                raise


def register_launcher(say: Callable[[str], None]) -> None:
    """Let Hydra find the launcher, hydra/launcher=side_by_side; `say` shows a line to whoever waits."""
    SideBySide.say = say
    SideBySide.outcomes.clear()
    plugins = Plugins.instance()
    # Hydra instantiates plugins of the package hydra_plugins alone, which only an installed distribution could add to.
    package = sys.modules.setdefault("hydra_plugins", ModuleType("hydra_plugins"))
    package.recemb = sys.modules["hydra_plugins.recemb"] = ModuleType("hydra_plugins.recemb")  # type: ignore[attr-defined]
    package.recemb.SideBySide = SideBySide
    plugins.register(SideBySide)


def folder_name(*parts: Any) -> str:
    """Name a run's folder after its number, if given, and what its sweep varies, for any file system."""
    *number, overrides = parts
    name = re.sub(r"[^A-Za-z0-9.,=_+-]+", "_", str(overrides))
    if len(name) > _LONGEST_NAME:  # what is cut off may be all that tells two runs apart
        digest = hashlib.sha256(str(overrides).encode()).hexdigest()[:8]
        name = f"{name[: _LONGEST_NAME - len(digest) - 1]}-{digest}"
    return "".join(f"{int(one):03d}-" for one in number) + name


def _run(
    context: HydraContext, task: TaskFunction, config: DictConfig, number: int, overrides: Sequence[str]
) -> JobReturn:
    """Run one job as Hydra's own launcher does."""
    one: DictConfig = context.config_loader.load_sweep_config(config, list(overrides))
    with open_dict(one):
        one.hydra.job.id = number
        one.hydra.job.num = number
    return run_job(
        hydra_context=context, task_function=task, config=one, job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )  # fmt: skip


def _start_worker(threads: int) -> None:
    """Prepare a process for jobs; between them it is the sweep that is interrupted."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    torch.set_num_threads(threads)


def _run_elsewhere(job: bytes) -> bytes:
    """Run one job in a process of its own; what it says goes to train.log in its folder."""
    state, context, task, config, number, overrides = cloudpickle.loads(job)

    def quietly(composed: DictConfig) -> Any:
        folder = Path(HydraConfig.get().runtime.output_dir)
        log = folder / _LOG
        with log.open("w", encoding="utf-8") as file:
            for handler in logging.getLogger().handlers:
                if isinstance(handler, logging.StreamHandler):
                    handler.setStream(file)
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                outcome = task(composed)
        if isinstance(outcome, Outcome) and outcome.impossible:
            log.unlink()
            folder.rmdir()  # there was no run
        return outcome

    setup_globals()
    Singleton.set_state(state)
    signal.signal(signal.SIGINT, _interrupt_once)
    try:
        done = _run(context, quietly, config, number, overrides)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    done.cfg = done.hydra_cfg = None  # nobody reads them, and they would be sent back
    sent: bytes = cloudpickle.dumps(done)
    return sent


def _interrupt_once(number: int, frame: Any) -> None:
    """Stop a job; a second signal, as a terminal and the sweep each send one, does not disturb its last words."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.default_int_handler(number, frame)


def _interrupt(running: set["Future[bytes]"]) -> None:
    """Stop the jobs that are running, and give them time to write what became of their runs."""
    workers = multiprocessing.active_children()
    for worker in workers:
        if worker.pid is not None:
            os.kill(worker.pid, signal.SIGINT)
    _, deaf = wait(running, timeout=_SECONDS_TO_STOP)
    if deaf:
        for worker in workers:
            worker.kill()


def _with_baseline(jobs: Sequence[Sequence[str]], baseline: Mapping[str, Any]) -> list[Sequence[str]]:
    """Put jobs with the options of the baseline before the others, once for each combination of other options."""
    if not baseline:
        return list(jobs)
    first = {}
    for overrides in jobs:
        rest = [one for one in overrides if one.split("=")[0].lstrip("+") not in baseline]
        own = [f"{name}={'null' if value is None else value}" for name, value in baseline.items()]
        first[tuple(rest)] = [*own, *rest]
    return [*first.values(), *(one for one in jobs if sorted(one) not in [sorted(two) for two in first.values()])]


def _jobs(asked: int | None) -> int:
    """Say how many jobs run at a time."""
    if asked is not None and asked < 1:
        raise RecembError(f"hydra.launcher.jobs={asked} is too small; it must be at least 1, or null.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if asked is not None and asked > 1:
            raise RecembError(
                f"hydra.launcher.jobs={asked}: the processes that torchrun has started train one run together; "
                "leave it out, or start recemb without torchrun."
            )
        return 1
    if asked is not None:
        return asked
    import torch

    if torch.cuda.is_available():
        return 1
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(len(os.sched_getaffinity(0)), memory // _MEMORY_OF_A_JOB))


class _Overview:
    """Says how a sweep stands: what is done, what is best so far on validation rows, what time is left."""

    def __init__(self, total: int, common: set[str], say: Callable[[str], None]) -> None:
        self._total = total
        self._common = common
        self._say = say
        self._done = 0
        self._fresh = 0
        self._start = time.monotonic()
        self._best: tuple[float, str] | None = None
        self._counts = {"complete already": 0, "too small a budget": 0, "failed": 0}

    def add(self, overrides: Sequence[str], outcome: Outcome) -> None:
        """Take note of a job that has ended, and say so."""
        name = " ".join(one for one in filter_overrides(overrides) if one not in self._common)
        self._done += 1
        self._fresh += outcome.fresh and outcome.record is not None
        if outcome.failure is not None:
            self._counts["too small a budget" if outcome.impossible else "failed"] += 1
            said = outcome.failure
        else:
            assert outcome.record is not None
            said = self._completed(name, outcome)
        self._say(f"[{self._done:{len(str(self._total))}}/{self._total}] {name}: {said}")

    def _completed(self, name: str, outcome: Outcome) -> str:
        record = outcome.record
        assert record is not None
        valid = record["metrics"]["valid"]
        if self._best is None or valid["logloss"] < self._best[0]:
            self._best = (valid["logloss"], name)
        if not outcome.fresh:
            self._counts["complete already"] += 1
        took = f"{record['seconds']:.0f} s" if outcome.fresh else "complete already"
        parts = [f"kept {record['kept']:.4g}, valid AUC {valid['auc']:.4f}, logloss {valid['logloss']:.4f}, {took}"]
        if left := self._left():
            parts.append(f"about {left} left")
        parts.append(f"best so far {self._best[0]:.4f} ({self._best[1]})")
        return "; ".join(parts)

    def _left(self) -> str:
        """Say how long the rest will take, if what runs took so far is typical."""
        if not self._fresh or self._done == self._total:
            return ""
        seconds = (time.monotonic() - self._start) / self._fresh * (self._total - self._done)
        return f"{math.ceil(seconds)} s" if seconds < 90 else f"{seconds / 60:.0f} min"

    def close(self) -> None:
        """Say what the sweep came to."""
        rest = "".join(f", {count} {what}" for what, count in self._counts.items() if count)
        self._say(f"{self._done} of {self._total} runs in {(time.monotonic() - self._start) / 60:.1f} min{rest}")
