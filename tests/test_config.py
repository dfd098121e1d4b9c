"""Every configuration that is shipped composes into the typed schema, and every package is shipped."""

import tomllib
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from recemb.config import GROUPS, RunConfig, register_configs, to_run_config

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))
CHOICES = [f"{group}={name}" for group, names in GROUPS.items() for name in names]


def composed(*overrides: str) -> RunConfig:
    register_configs()
    OmegaConf.register_new_resolver("recemb_slug", lambda *_: "x", replace=True)
    with initialize_config_module("recemb.conf", version_base="1.3"):
        return to_run_config(compose("train", overrides=list(overrides)))


@pytest.mark.parametrize("override", [*CHOICES, *(f"experiment={name}" for name in EXPERIMENTS)])
def test_every_choice_composes(override: str):
    config = composed(override)
    values = config.to_dict()
    group, name = override.split("=")
    if group in ("dataset", "table", "model"):
        assert values[group]["name"] == name


def test_there_are_experiments():
    assert {"demo", "baselines"} <= set(EXPERIMENTS)


def test_every_package_is_in_the_wheel():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "recemb").rglob("__init__.py")}
    assert set(packages) == found | {"recemb.conf"}
