"""Options on the command line, before Hydra composes them: what some of them stand for, and their order."""

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from recemb.config import GROUPS
from recemb.files import read_json
from recemb.options import RecembError, options_of
from recemb.plan_file import read_plan
from recemb.record import RECORD

_OF_A_PLAN = ("table", "budget", "precision")
_OPTION = re.compile(r"\+*[A-Za-z_][\w.]*=", re.ASCII)


def resumed(arguments: list[str]) -> list[str]:
    """Write `resume=RUN` as the command that began the run in that folder, to go on in the same one."""
    given = [one.removeprefix("resume=") for one in arguments if one.startswith("resume=")]
    if not given or given[-1].lower() in ("true", "false", "null", ""):
        return arguments
    folder = Path(given[-1])
    try:
        command = shlex.split(read_json(folder / RECORD)["command"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RecembError(f"resume={folder}: there is no run in this folder that can be gone on with.") from error
    if command[:2] != ["recemb", "train"]:
        raise RecembError(f"resume={folder}: this run was not trained, but made by `{shlex.join(command[:2])}`.")
    rest = [one for one in arguments if not one.startswith("resume=")]
    again = [one for one in command[2:] if not one.startswith(("hydra.run.dir=", "overwrite="))]
    return [*again, *rest, "resume=true", f"hydra.run.dir={json.dumps(str(folder), ensure_ascii=False)}"]


def with_plan(arguments: list[str]) -> list[str]:
    """Let the file of `plan=FILE` say data set and backbone, where the command does not.

    Raises:
        RecembError: the file is no plan, the command says what the plan does, or swept plans are for different things.
    """
    given = [one for one in arguments if one.lstrip("+").startswith("plan=")]
    if not given:
        return arguments
    plans = [read_plan(str(value)) for value in _values(given[-1]) if value is not None]
    if not plans:
        return arguments
    for argument in arguments:
        if group_of(argument) in _OF_A_PLAN:
            raise RecembError(f"{argument} and {given[-1]} both say what the tables are; give one of them.")
    if any((one.data, one.model) != (plans[0].data, plans[0].model) for one in plans):
        raise RecembError(f"the plans of {given[-1]} are for several data sets or backbones; sweep over each apart.")
    said = {argument.lstrip("+").split("=")[0] for argument in arguments}
    added = []
    data, model = plans[0].data, dict(plans[0].model)
    if data.get("name") and "dataset" not in said:
        added.append(f"dataset={data['name']}")
        if data.get("path") and "dataset.path" not in said:
            added.append(f"dataset.path={_quoted(data['path'])}")
    if model and "model" not in said:
        name = model.pop("name")
        usual = {one.name: one.default for one in options_of(GROUPS["model"][name])} if name in GROUPS["model"] else {}
        added.append(f"model={name}")
        # What goes without saying would only lengthen the names of folders.
        added += [
            f"model.{key}={_quoted(value)}"
            for key, value in model.items()
            if f"model.{key}" not in said and usual.get(key) != value
        ]
    elif "model" in said and "model.embedding_dim" not in said:
        added.append(f"model.embedding_dim={plans[0].embedding_dim}")
    return [*added, *arguments]


def asked_of_data(overrides: Sequence[str]) -> list[str]:
    """Name the options of the data set that somebody gave."""
    return [
        override.split("=")[0].removeprefix("dataset.") for override in overrides if override.startswith("dataset.")
    ]


def folder_and_options(given: Sequence[str], call: str) -> tuple[Path, list[str]]:
    """Tell the one folder among a verb's arguments from its options, `name=value`.

    Args:
        given: the arguments.
        call: how the verb is called, "recemb inspect DATASET", for the error.

    Raises:
        RecembError: not one folder.
    """
    options = [one for one in given if _OPTION.match(one) and not Path(one).exists()]
    folders = [one for one in given if one not in options]
    if len(folders) != 1:
        raise RecembError(
            f"{call.split(' DATASET')[0]} takes one folder of a prepared data set, and {len(folders) or 'none'} came"
            f"{': ' + ', '.join(folders) if folders else ''}; call it as {call}."
        )
    return Path(folders[0]), options


def group_of(option: str) -> str:
    """Name the group that an option is of: `model` of `+model.embedding_dim=8`."""
    return option.split("=")[0].lstrip("+").split(".")[0]


def refuse_additions(arguments: list[str]) -> None:
    """Raise where Hydra is told to add or remove an option: nothing reads what nobody has declared.

    Raises:
        RecembError: an argument begins with + or ~.
    """
    for argument in arguments:
        if argument.startswith(("+", "~")) and not argument.lstrip("+~").startswith("hydra"):
            raise RecembError(
                f"{argument[:100]!r} adds or removes an option, which would be of no effect; options are given as "
                "name=value."
            )


def flags_first(arguments: list[str]) -> list[str]:
    """Move flags before the options, since Hydra's parser takes options in one run only."""
    flags, options = [], []
    mappings = tuple(
        f"{group}.{option.name}"
        for group, nodes in GROUPS.items()
        for node in nodes.values()
        for option in options_of(node)
        if isinstance(option.default, dict)
    )
    rest = iter(arguments)
    for argument in rest:
        if argument.startswith("-"):
            flags.append(argument)
            if argument in _FLAGS_WITH_VALUE:
                flags += [value for value in (next(rest, None),) if value is not None]
        else:
            # An open mapping: Hydra wants to be told that its keys are new.
            options.append(f"++{argument}" if argument.startswith(mappings) else argument)
    return flags + options


_FLAGS_WITH_VALUE = (
    "--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
)  # fmt: skip


def _values(argument: str) -> list[Any]:
    """Give the values that an option is given, several in a sweep."""
    parser = OverridesParser.create()
    (override,) = parser.parse_overrides([argument])
    if not override.is_sweep_override():
        return [override.value()]
    if not override.is_choice_sweep():
        raise RecembError(f"{argument} cannot be read; name the files, plan=a.json,b.json.")
    return [parser.parse_override(f"plan={one}").value() for one in override.sweep_string_iterator()]


def _quoted(value: Any) -> str:
    """Write a value as Hydra reads it."""
    return json.dumps(value, ensure_ascii=False)
