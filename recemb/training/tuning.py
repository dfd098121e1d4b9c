"""Chooses the learning rates of a run: trains it with several, and keeps what is best on validation rows.

A trial is the run itself, all its stages and its seed, but for the rates; test rows are not looked at. What the best
trial has trained becomes what the run has trained, so that nothing is trained twice. The run's record is the journal:
it has every finished trial, and what is suggested next depends on the seed and on those alone, so that a run that was
broken off comes to what it would have come to.
"""

import dataclasses
import logging
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recemb.datasets import PreparedDataset
from recemb.options import RecembError
from recemb.record import metric_text
from recemb.tables.base import TableConfig, TableSpec
from recemb.training.evaluation import DivergedError
from recemb.training.processes import on_first
from recemb.training.record import TUNING, RunFolder, TrialFolder, read_trial
from recemb.training.trainer_config import TrainerConfig
from recemb.training.trials import take_over, train_trial
from recemb.training.tune_config import RATES, TuneConfig

if TYPE_CHECKING:
    from recemb.config import RunConfig

log = logging.getLogger(__name__)

_AT_RANDOM = 4  # trials that succeeded before optuna models them, half of the eight of experiment=tuned_tradeoff


class Tuning:
    """The trials of one run.

    Args:
        config: the run.
        table: its table, sizes set.
        specs: the logical tables.
        dataset: the prepared data.
        run: the folder.
        record: the run's record; its `tuning` (see `recemb.report.records`) gets every trial that is finished, and
            those that are in it are not repeated.
    """

    def __init__(
        self,
        config: "RunConfig",
        table: TableConfig,
        specs: list[TableSpec],
        dataset: PreparedDataset,
        run: RunFolder,
        record: dict[str, Any],
    ) -> None:
        self.config = config
        self.table = table
        self.specs = specs
        self.dataset = dataset
        self.run = run
        self.record = record
        self.monitor = config.trainer.monitor
        found = {"trials": config.tune.trials, "ranges": config.tune.ranges(), "monitor": self.monitor, "tried": []}
        self.tried: list[dict[str, Any]] = record.setdefault("tuning", found | {"best": None})["tried"]
        record["versions"]["optuna"] = version("optuna")

    def choose(self) -> "RunConfig":
        """Make the trials that are left, and put what the best one trained into the run's folder.

        Returns:
            The run with the best rates; it goes on with what is in its folder.

        Raises:
            RecembError: no trial came to a usable model, or whatever else ends a run.
        """
        trials = self.config.tune.trials
        done = f", {len(self.tried)} are finished already" if self.tried else ""
        log.info("learning rates are chosen by %d trials on validation rows%s", trials, done)
        while (number := len(self.tried) + 1) <= trials:
            self._forget_all_but(number, self._best())
            rates = on_first(partial(self._suggest, number))
            self.tried.append(self._try(number, rates))
            self.run.write(self.record)
            self._announce()
        best = self._best()
        if best is None:
            raise RecembError(
                f"none of the {trials} trials came to a usable model; lower tune.lr and tune.table_lr. The first: "
                f"{self.tried[0]['error']}"
            )
        rates = {name: self.tried[best - 1][name] for name in RATES}
        self.record["tuning"]["best"] = {"trial": best, **rates}
        take_over(self.run, self.record, self._folder(best))
        log.info("tuned: %s, of trial %d", _in_words(rates), best)
        return self._with(rates)

    def _best(self) -> int | None:
        """The number of the best finished trial, from 1, the first of equal ones; None where none succeeded."""
        sign = 1 if self.monitor == "logloss" else -1
        scores = {n: sign * one["valid"][self.monitor] for n, one in enumerate(self.tried, start=1) if one["valid"]}
        return min(scores, key=lambda number: (scores[number], number), default=None)

    def _suggest(self, number: int) -> dict[str, float]:
        """Give the rates of a trial: first those that were asked for, then what optuna makes of the earlier trials."""
        if number == 1:
            return {name: getattr(self.config.trainer, name) for name in RATES}
        optuna = _optuna()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        # A seed for each trial, so that it does not matter whether the same process made the earlier ones.
        seed = np.random.SeedSequence([self.config.seed, number]).generate_state(1).item()
        study = optuna.create_study(
            direction="minimize" if self.monitor == "logloss" else "maximize",
            sampler=optuna.samplers.TPESampler(n_startup_trials=_AT_RANDOM, seed=seed),
        )
        ranges: dict[str, Any] = {
            name: optuna.distributions.FloatDistribution(low, high, log=True)
            for name, (low, high) in self.config.tune.ranges().items()
        }
        for one in self.tried:
            state = optuna.trial.TrialState.COMPLETE if one["valid"] else optuna.trial.TrialState.FAIL
            study.add_trial(
                optuna.trial.create_trial(
                    state=state,
                    value=one["valid"][self.monitor] if one["valid"] else None,
                    params={name: one[name] for name in RATES},
                    distributions=ranges,
                )
            )
        asked = study.ask(ranges)
        return {name: float(asked.params[name]) for name in RATES}

    def _with(self, rates: dict[str, float]) -> "RunConfig":
        """The run with these rates, to go on with what is in its folder."""
        trainer = _with_rates(self.config.trainer, rates)
        return dataclasses.replace(self.config, trainer=trainer, tune=TuneConfig(), resume=True, overwrite=False)

    def _try(self, number: int, rates: dict[str, float]) -> dict[str, Any]:
        """Train the run with these rates, going on where an earlier attempt was broken off, and say how it went."""
        clock = time.monotonic()
        folder, note = self._open(number, rates)
        found: dict[str, Any] = {}
        try:
            found["valid"], _ = train_trial(self._with(rates), self.table, self.specs, self.dataset, folder, note)
        except DivergedError as error:
            found |= {"valid": None, "error": str(error)}
        return {**rates, **found, "seconds": round(time.monotonic() - clock, 3)}

    def _open(self, number: int, rates: dict[str, float]) -> tuple[TrialFolder, dict[str, Any]]:
        """Give a trial's folder and its record; what was begun there with other rates is removed."""
        path = self._folder(number)

        def begun() -> dict[str, Any]:
            found = read_trial(path)
            if found is not None and all(found.get(name) == rates[name] for name in RATES):
                return found
            shutil.rmtree(path, ignore_errors=True)
            return dict(rates)

        note = on_first(begun)
        folder = TrialFolder(path)
        folder.write(note)
        return folder, note

    def _announce(self) -> None:
        last, best, number = self.tried[-1], self._best(), len(self.tried)
        broken = last.get("error", "").removesuffix(".")
        said = broken or f"valid {self.monitor} {metric_text(last['valid'][self.monitor])}"
        top = ""
        if best is not None:
            top = f"; best {metric_text(self.tried[best - 1]['valid'][self.monitor])} (trial {best})"
        log.info("trial %d of %d: %s: %s%s", number, self.config.tune.trials, _in_words(last), said, top)

    def _folder(self, number: int) -> Path:
        return self.run.path / TUNING / f"{number:03d}"

    def _forget_all_but(self, *numbers: int | None) -> None:
        """Remove the folders of trials that are not needed any more."""
        needed = [self._folder(number) for number in numbers if number is not None]

        def remove() -> None:
            for path in (self.run.path / TUNING).glob("*"):
                if path not in needed:
                    shutil.rmtree(path, ignore_errors=True)

        on_first(remove)


def _optuna() -> Any:
    """Import optuna, which takes a moment, when it is first needed.

    It keeps the errors of what it could not import for good, and with them the frames that they passed through and all
    that those hold; a thread's hold nothing of a run.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(import_module, "optuna").result()


def used_rates(record: dict[str, Any]) -> dict[str, float]:
    """Give the learning rates `lr` and `table_lr` of a completed run: what tuning chose, else what was asked for."""
    chosen = (record.get("tuning") or {}).get("best") or record["config"]["trainer"]
    return {name: float(chosen[name]) for name in RATES}


def as_trained(trainer: TrainerConfig, record: dict[str, Any]) -> TrainerConfig:
    """Give the options of training of a completed run with the learning rates that it was trained with."""
    return _with_rates(trainer, used_rates(record))


def _with_rates(trainer: TrainerConfig, rates: dict[str, Any]) -> TrainerConfig:
    return dataclasses.replace(trainer, **rates)


def _in_words(rates: dict[str, Any]) -> str:
    return ", ".join(f"{name} {rates[name]:.3g}" for name in RATES)
