"""The options of tuning."""

import math
from dataclasses import dataclass

from recemb.options import RecembError, option
from recemb.training.trainer_config import TrainerConfig

RATES = ("lr", "table_lr")
"""What is tuned, by its name among the trainer's options."""


@dataclass(kw_only=True)
class TuneConfig:
    """Options of tuning: how the learning rates of a run are chosen before it is tested."""

    trials: int = option(
        0,
        "trainings of the whole run, the first with trainer.lr and trainer.table_lr as given and the others with rates "
        "that optuna suggests; the one that is best on validation rows is the run's; 0 to take the rates as given",
    )
    lr: list[float] = option([3e-4, 2e-2], "lowest and highest trainer.lr that is tried; even on a logarithmic scale")
    table_lr: list[float] = option([5e-3, 5e-1], "the same for trainer.table_lr")

    def __post_init__(self) -> None:
        if self.trials < 0 or self.trials == 1:
            raise RecembError(
                f"tune.trials={self.trials} chooses nothing; it must be 0, or at least 2, the first of which takes the "
                "rates as they are given."
            )
        for name in RATES:
            ends = getattr(self, name)
            if len(ends) != 2 or not 0 < ends[0] < ends[1] < math.inf:
                raise RecembError(
                    f"tune.{name}={ends} is no range; give a lowest and a higher positive rate, such as [0.001,0.1]."
                )

    def ranges(self) -> dict[str, list[float]]:
        """Lowest and highest of each rate that is tuned."""
        return {name: list(getattr(self, name)) for name in RATES}

    def check_first(self, trainer: TrainerConfig) -> None:
        """Refuse ranges that the first trial's rates lie outside of.

        Raises:
            RecembError: they do.
        """
        for name, (low, high) in self.ranges().items():
            rate = getattr(trainer, name)
            if self.trials and not low <= rate <= high:
                raise RecembError(
                    f"trainer.{name}={rate:g}, which the first trial takes, lies outside of tune.{name}=[{low:g},"
                    f"{high:g}]; widen the range, or give a rate in it."
                )
