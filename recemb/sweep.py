"""Runs the jobs of a sweep, side by side where asked: Hydra's launcher over processes, and what it says."""

import contextlib
import hashlib
import math
import os
import re
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, filter_overrides, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from recemb.options import RecembError
from recemb.record import metric_text
from recemb.workers import Outcome, Sweep, Workers

_MEMORY_OF_A_JOB = 3 << 30
_LONGEST_NAME = 120


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
            RecembError: a number of jobs makes no sense, or several processes were killed from outside.
        """
        setup_globals()
        Path(str(self._config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        numbered = list(enumerate(_with_baseline(job_overrides, self._baseline), initial_job_idx))
        jobs = min(_jobs(self._jobs), len(numbered))
        given = [set(overrides) for _, overrides in numbered]
        overview = _Overview(len(numbered), set.intersection(*given) if len(given) > 1 else set(), SideBySide.say)
        returned = []
        # Closed before anything goes on past an error, so that nobody goes on behind the sweep's back.
        with contextlib.closing(self._one_by_one(numbered) if jobs == 1 else self._at_a_time(numbered, jobs)) as ended:
            for done in ended:
                outcome = done.return_value  # what the job raised is raised here
                returned.append(done)
                if isinstance(outcome, Outcome):
                    self.outcomes.append(outcome)
                    overview.add(done.overrides or [], outcome)
        overview.close()
        return returned

    def _one_by_one(self, numbered: list[tuple[int, Sequence[str]]]) -> Generator[JobReturn, None, None]:
        sweep = Sweep(self._context, self._task, self._config)
        for count, (number, overrides) in enumerate(numbered, start=1):
            SideBySide.say(f"\n[{count}/{len(numbered)}] {' '.join(filter_overrides(overrides))}")
            yield sweep.run(number, overrides)

    def _at_a_time(self, numbered: list[tuple[int, Sequence[str]]], jobs: int) -> Generator[JobReturn, None, None]:
        workers = Workers(jobs, threads=max(1, len(os.sched_getaffinity(0)) // jobs))
        return workers.run(Sweep(self._context, self._task, self._config), numbered)


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
        auc, logloss = (record["metrics"]["valid"][metric] for metric in ("auc", "logloss"))
        if logloss is not None and not math.isnan(logloss) and (self._best is None or logloss < self._best[0]):
            self._best = (logloss, name)
        if not outcome.fresh:
            self._counts["complete already"] += 1
        took = f"{record['seconds']:.0f} s" if outcome.fresh else "complete already"
        parts = [f"kept {record['kept']:.4g}, valid AUC {metric_text(auc)}, logloss {metric_text(logloss)}, {took}"]
        if left := self._left():
            parts.append(f"about {left} left")
        if self._best is not None:
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
