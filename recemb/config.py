"""The typed schema of a run, and the groups that Hydra composes it from.

Every group option is a registered dataclass: `table=` comes from the registry of methods, `dataset=` and `model=` from
their own. The YAML files in conf/ only choose and override.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

import recemb.tables  # noqa: F401 - registers the methods
from recemb.budget import parse_budget
from recemb.datasets import DATASETS, DatasetConfig
from recemb.models import MODELS, ModelConfig
from recemb.options import RecembError, option
from recemb.sweep import SideBySideConf
from recemb.tables.base import TableConfig
from recemb.tables.precision import PRECISIONS, check_precision
from recemb.tables.registry import config_from_dict, list_tables, method_of
from recemb.training.trainer_config import TrainerConfig
from recemb.training.tune_config import TuneConfig

_Config = TypeVar("_Config", bound="RunConfig | PlanConfig")
_BUDGET_HELP = "serving bytes of the tables: a share of the full ones (1/16) or a size (64MiB)"
_PRECISION_HELP = (
    f"how served rows are held: {', '.join(PRECISIONS)}; training is in fp32, and a budget counts what is served"
)


@dataclass(kw_only=True)
class RunConfig:
    """Everything that decides a training run."""

    dataset: Any = MISSING
    table: Any = MISSING
    model: Any = MISSING
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
    budget: Any = option(None, _BUDGET_HELP)
    precision: str = option("fp32", _PRECISION_HELP)
    plan: str | None = option(
        None,
        "file of a plan (`recemb advise`), which says table, budget and precision, and unless given data and model",
    )
    seed: int = option(0, "seed of the initial weights and the order of the rows")
    overwrite: bool = option(False, "replace a completed run in the same folder")
    resume: bool = option(
        False,
        "go on with an unfinished run from its last state, in the same folder, or resume=FOLDER; leave a completed one",
    )

    def __post_init__(self) -> None:
        if self.overwrite and self.resume:
            raise RecembError("overwrite=true and resume=true contradict each other; give one of them.")
        check_precision(self.precision)
        if self.budget is not None:
            parse_budget(self.budget, 1 << 62)  # an unreadable budget is told before any data is looked at
        if not 0 <= self.seed < 2**63:
            raise RecembError(f"seed={self.seed} must be at least 0 and below 2**63.")
        self.tune.check_first(self.trainer)

    def to_dict(self) -> dict[str, Any]:
        """Write the config as plain JSON types, each group with the name it has on the command line.

        A run that tunes nothing says nothing of tuning, as runs did before there was any: resuming and reports take
        those for the same.
        """
        values = dataclasses.asdict(self)
        for group, name in (
            ("dataset", self.dataset.name),
            ("table", method_of(self.table).name),
            ("model", self.model.name),
        ):
            values[group] = {"name": name, **values[group]}
        if not self.tune.trials:
            del values["tune"]
        return values


def run_config_from_dict(values: dict[str, Any]) -> RunConfig:
    """Read what `RunConfig.to_dict` wrote, as a run's record has it.

    Raises:
        RecembError: it is none of this version's configs.
    """
    rest = {name: value for name, value in values.items() if name != "compressed"}  # what a run was made from
    try:
        groups: dict[str, Any] = {"table": config_from_dict(rest.pop("table"))}
        for group, classes in (("dataset", DATASETS), ("model", MODELS)):
            options = dict(rest.pop(group))
            config = classes[options.pop("name")]
            known = {field.name for field in dataclasses.fields(config)}
            groups[group] = config(**{name: value for name, value in options.items() if name in known})
        trainer, tune = TrainerConfig(**rest.pop("trainer")), TuneConfig(**rest.pop("tune", {}))
        return RunConfig(**groups, trainer=trainer, tune=tune, **rest)
    except RecembError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise RecembError(f"the run's configuration is of another version of recemb, or damaged ({error}).") from error


@dataclass(kw_only=True)
class PrepareConfig:
    """Everything that decides a preparation."""

    dataset: Any = MISSING
    on_bad_rows: str = option("error", "what to do with a row that cannot be read: error, or skip and count it")
    overwrite: bool = option(False, "replace a data set that was prepared with other options")

    def __post_init__(self) -> None:
        if self.on_bad_rows not in ("error", "skip"):
            raise RecembError(f"on_bad_rows={self.on_bad_rows} is not known; choose error or skip.")


@dataclass(kw_only=True)
class PlanConfig:
    """Everything that decides a plan."""

    dataset: Any = MISSING
    table: Any = MISSING
    model: Any = MISSING
    budget: Any = option(None, _BUDGET_HELP)
    precision: str = option("fp32", _PRECISION_HELP)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    processes: int = option(1, "processes that shall share the tables; more than one says which holds what")
    memory: Any = option(None, "memory of each of these processes, such as 80GiB; null for no limit")

    def __post_init__(self) -> None:
        check_precision(self.precision)
        if self.budget is not None:
            parse_budget(self.budget, 1 << 62)
        if self.processes < 1:
            raise RecembError(f"processes={self.processes} is too small; it must be at least 1.")
        if self.processes > 1 and self.trainer.sharding == "none":
            self.trainer.sharding = "auto"
        if self.memory is not None:
            parse_budget(self.memory, 1 << 62)


GROUPS: dict[str, dict[str, type]] = {
    "dataset": dict(DATASETS),
    "table": {method.name: method.config for method in list_tables()},
    "model": dict(MODELS),
    "trainer": {"default": TrainerConfig},
}
"""The config groups of the command line and the classes behind their options."""


def register_configs() -> None:
    """Tell Hydra the schemas and groups; the YAML files in conf/ refer to them."""
    store = ConfigStore.instance()
    store.store(name="run_schema", node=RunConfig)
    store.store(name="plan_schema", node=PlanConfig)
    store.store(name="prepare_schema", node=PrepareConfig)
    store.store(group="hydra/launcher", name="side_by_side", node=SideBySideConf)
    for group, classes in GROUPS.items():
        for name, node in classes.items():
            store.store(group=group, name=name, node=node)


def to_run_config(composed: Any) -> RunConfig:
    """Turn what Hydra composed for a run into the typed config, checking every value.

    Raises:
        RecembError: a value is out of its range; the sentence names the option.
    """
    return _to_config(composed, RunConfig, "run_schema")


def to_plan_config(composed: Any) -> PlanConfig:
    """Turn what Hydra composed for a plan into the typed config, as `to_run_config` does for a run."""
    return _to_config(composed, PlanConfig, "plan_schema")


def _to_config(composed: Any, schema: type[_Config], schema_name: str) -> _Config:
    config = OmegaConf.to_object(composed)
    if not isinstance(config, schema):
        raise RecembError(f"the configuration lacks its schema: its defaults list must begin with {schema_name}.")
    for group, base in (("dataset", DatasetConfig), ("table", TableConfig), ("model", ModelConfig)):
        if not isinstance(getattr(config, group), base):
            raise RecembError(f"{group}= must be one of: {', '.join(GROUPS[group])}.")
    return config
