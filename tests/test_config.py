"""Every configuration that is shipped composes into the typed schema, and every package is shipped."""

import tomllib
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

from recemb.config import GROUPS, PlanConfig, RunConfig, register_configs, to_plan_config, to_run_config
from recemb.tables.registry import method_of

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))
CHOICES = [f"{group}={name}" for group, names in GROUPS.items() for name in names]


METHOD_OPTIONS = sorted(path.stem for path in (ROOT / "conf" / "experiment" / "method").glob("*.yaml"))


def composed(*overrides: str) -> RunConfig:
    return to_run_config(compose_verb("train", *overrides))


def compose_verb(verb: str, *overrides: str) -> DictConfig:
    register_configs()
    OmegaConf.register_new_resolver("recemb_slug", lambda *_: "x", replace=True)
    with initialize_config_module("recemb.conf", version_base="1.3"):
        return compose(verb, overrides=list(overrides))


@pytest.mark.parametrize("override", [*CHOICES, *(f"experiment={name}" for name in EXPERIMENTS)])
def test_every_choice_composes(override: str):
    config = composed(override)
    values = config.to_dict()
    group, name = override.split("=")
    if group in ("dataset", "table", "model"):
        assert values[group]["name"] == name


@pytest.mark.parametrize("override", [choice for choice in CHOICES if not choice.startswith("trainer=")])
def test_every_choice_can_be_planned(override: str):
    config = to_plan_config(compose_verb("plan", override))
    assert isinstance(config, PlanConfig)
    group, name = override.split("=")
    chosen = getattr(config, group)
    assert (method_of(chosen) if group == "table" else chosen).name == name


def test_there_are_experiments():
    assert {"demo", "baselines", "unified_movielens"} <= set(EXPERIMENTS)


@pytest.mark.parametrize("name", METHOD_OPTIONS)
def test_what_an_experiment_says_of_a_method_reaches_that_method_alone(name: str):
    experiment, method = name.split("-")
    assert experiment in EXPERIMENTS
    chosen = (f"experiment={experiment}", f"table={method}")
    said = OmegaConf.load(ROOT / "conf" / "experiment" / "method" / f"{name}.yaml")["table"]
    assert {option: getattr(composed(*chosen).table, option) for option in said} == dict(said)
    assert composed(chosen[1]).table == composed("experiment=demo", chosen[1]).table == GROUPS["table"][method]()
    option = next(iter(said))
    assert getattr(composed(*chosen, f"table.{option}=77").table, option) == 77  # the command line has the last word


def test_the_movielens_experiment_is_what_it_says():
    for method, threshold in (("full", None), ("hashing", 0), ("multiplexed", 0)):
        config = composed("experiment=unified_movielens", f"table={method}")
        assert getattr(config.table, "threshold", None) == threshold
        assert (config.dataset.name, config.model.name, config.model.embedding_dim) == ("movielens_1m", "dcn_v2", 32)
        assert (config.model.cross_layers, config.model.deep_layers, config.model.normalize) == (1, [192], False)
        assert config.model.init_std == pytest.approx(0.05 / 3**0.5, rel=1e-5)


def test_every_package_is_in_the_wheel():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "recemb").rglob("__init__.py")}
    assert set(packages) == found | {"recemb.conf"}
