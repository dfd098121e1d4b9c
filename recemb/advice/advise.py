"""Chooses a plan for a data set and a budget: which ids get rows, how wide and how finely held, or which method.

From statistics alone one plan is made, block by block (`recemb.tables.auto`). With trials the first one trains full
tables, whose vectors say what every block is worth; the second one trains the plan that is made of that, the third one
the plan with projections; the others train single methods within the same budget. What is best on validation rows is
chosen. No choice depends on test rows.
"""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from recemb.advice.candidates import single_methods
from recemb.advice.record import Candidate
from recemb.advice.words import because, explain
from recemb.advice.worth import worth_by_labels, worth_of_trained
from recemb.budget import TooSmallBudgetError, parse_budget
from recemb.datasets import PreparedDataset
from recemb.inspection.facts import inspect_dataset
from recemb.options import RecembError
from recemb.plan import table_specs
from recemb.tables.allocation import Worth
from recemb.tables.auto import AutoConfig
from recemb.tables.base import TableSpec, total_full_bytes
from recemb.tables.full import FullConfig
from recemb.tables.precision import PRECISIONS
from recemb.training.evaluation import DivergedError
from recemb.training.processes import world_size
from recemb.training.record import TrialFolder, read_trial
from recemb.training.trials import train_trial
from recemb.training.tune_config import TuneConfig

if TYPE_CHECKING:
    from recemb.config import RunConfig

log = logging.getLogger(__name__)


class Chosen(NamedTuple):
    """What an advice comes to.

    Attributes:
        candidate: what is chosen.
        specs: the logical tables, of its precision.
        trial: the folder in which it was trained, None where it was not.
    """

    candidate: Candidate
    specs: list[TableSpec]
    trial: Path | None


class Advisor:
    """Chooses a table for one run.

    Args:
        config: the run; its table is an `AutoConfig` without a plan, its budget says how small.
        dataset: the prepared data.
        folder: below which trials are made, a folder each.
        advice: gets what is found (`recemb.advice.record`); trials that are in it are not repeated.
        save: is called whenever something was added to it.
    """

    def __init__(
        self,
        config: "RunConfig",
        dataset: PreparedDataset,
        folder: Path,
        advice: dict[str, Any],
        save: Callable[[], None],
    ) -> None:
        self.config = config
        self.dataset = dataset
        self.folder = folder
        self.advice = advice
        self.save = save
        table = config.table
        assert isinstance(table, AutoConfig)
        self.table: AutoConfig = dataclasses.replace(table, plan=None)
        self.specs = table_specs(dataset.features, config.model, config.precision)
        self.coarsest = max(table.coarsest, config.precision, key=PRECISIONS.index)
        self.budget = parse_budget(config.budget, total_full_bytes(self.specs))
        if table.trials and world_size() > 1:
            raise RecembError(
                f"table=auto makes its {table.trials} trials in one process; choose a plan with recemb advise and "
                "train it in several with plan=FILE, or give table.trials=0."
            )

    def choose(self) -> Chosen:
        """Make the trials that are left, choose, and explain.

        Raises:
            RecembError: nothing can be made as small as asked, or no trial came to a usable model.
        """
        trials = self.table.trials
        least = self.table.fit(self.specs, self.budget)  # says so if there is none, before anything is trained
        if least.plan is None:
            trials = 0  # the budget holds all of it
        tried: list[tuple[Candidate, int]] = []
        worths = self._pilot() if trials else self._told()
        planned = list(self._planned(worths))
        others = single_methods(self.dataset.features, self.config.model, self.config.budget, self.coarsest)
        for number, candidate in enumerate(islice(chain(planned, others), max(trials - 1, 0)), start=2):
            self._try(number, candidate)
            tried.append((candidate, number))
        return self._explained(planned[0], tried, worths)

    def _planned(self, worths: Sequence[Worth]) -> Iterator[Candidate]:
        """Give the plans that these worths lead to: as asked, and with projections, where they are not asked for."""
        for project in dict.fromkeys((self.table.project, True)):
            try:
                table = dataclasses.replace(self.table, project=project).fit_to(self.specs, self.budget, worths)
            except TooSmallBudgetError:
                continue  # projections alone are too much
            yield Candidate("auto with projections" if project else "auto", table, self.config.precision)

    def _explained(self, planned: Candidate, tried: list[tuple[Candidate, int]], worths: Sequence[Worth]) -> Chosen:
        monitor = self.config.trainer.monitor
        sign = 1 if monitor == "logloss" else -1
        of_trials = [self.advice["tried"][number - 1] for _, number in tried]
        usable = [n for n, trial in enumerate(of_trials) if trial["valid"]]
        chosen, trial = planned, None
        why = "made block by block from what a trained full table makes of the ids."
        if planned.table.layout(self.specs).serving_bytes >= total_full_bytes(self.specs):
            why = "the budget holds the full tables."
        elif not self.table.trials:
            why = "made block by block from what the ids' frequencies and labels tell; nothing was trained."
        elif tried and not usable:
            raise RecembError(
                f"none of the {len(tried)} trials within the budget came to a usable model; lower trainer.table_lr. "
                f"The first: {of_trials[0]['error']}"
            )
        elif usable:
            best = min(usable, key=lambda n: (sign * of_trials[n]["valid"][monitor], n))
            chosen, number = tried[best]
            trial = self._folder(number)
            why = because(best, [one for one, _ in tried], of_trials, monitor)
        specs = table_specs(self.dataset.features, self.config.model, chosen.precision)
        self.advice |= {
            "chosen": {"method": chosen.method, "precision": self._coarsest(chosen)},
            "because": why,
            "features": explain(chosen, specs, worths if isinstance(chosen.table, AutoConfig) else None),
        }
        self.save()
        return Chosen(chosen, specs, trial)

    def _told(self) -> list[Worth]:
        """Say what vectors are worth by what ids tell about the label."""
        facts = inspect_dataset(self.dataset, embedding_dim=self.config.model.embedding_dim)
        return worth_by_labels(self.specs, facts)

    def _pilot(self) -> list[Worth]:
        """Train full tables, and say what their vectors are worth."""
        pilot = Candidate("full", FullConfig(), "fp32")
        specs = table_specs(self.dataset.features, self.config.model, pilot.precision)
        built = self._try(1, pilot, again=True)
        if built is None:
            raise RecembError(f"the full table cannot be trained: {self.advice['tried'][0]['error']}")
        return worth_of_trained(built, specs, self.dataset, self.config.trainer.batch_size, self.config.seed)

    def _try(self, number: int, candidate: Candidate, again: bool = False) -> Any:
        """Train a candidate, unless that is done; give the model, None where it is not there or of no use.

        Args:
            number: of the trial, from 1.
            candidate: the table.
            again: make the model of a finished trial, too.
        """
        tried = self.advice["tried"]
        known = tried[number - 1] if len(tried) >= number else None
        if known is not None and (not again or not known["valid"]):
            return None
        specs = table_specs(self.dataset.features, self.config.model, candidate.precision)
        config = dataclasses.replace(
            self.config, table=candidate.table, precision=candidate.precision, tune=TuneConfig(), resume=True,
            overwrite=False,
        )  # fmt: skip
        folder, clock = TrialFolder(self._folder(number)), time.monotonic()
        built, found = None, dict[str, Any]()
        try:
            note = read_trial(folder.path) or {}
            folder.write(note)
            found["valid"], built = train_trial(config, candidate.table, specs, self.dataset, folder, note)
        except DivergedError as error:
            found = {"valid": None, "error": str(error)}
        if known is None:
            tried.append(
                {
                    "method": candidate.method,
                    "precision": self._coarsest(candidate),
                    "bytes": candidate.table.layout(specs).serving_bytes,
                    **found,
                    "seconds": round(time.monotonic() - clock, 3),
                }
            )
            self._announce(number)
            self.save()
        return built

    def _coarsest(self, candidate: Candidate) -> str:
        return self.coarsest if isinstance(candidate.table, AutoConfig) else candidate.precision

    def _announce(self, number: int) -> None:
        trial, monitor = self.advice["tried"][number - 1], self.config.trainer.monitor
        said = f"valid {monitor} {trial['valid'][monitor]:.4f}" if trial["valid"] else trial["error"]
        log.info("trial %d of %d: %s: %s", number, self.table.trials, trial["method"], said)

    def _folder(self, number: int) -> Path:
        return self.folder / f"{number:03d}"
