"""Declares the options of dataclass configs, and the one kind of error that is meant for a person's eyes.

Every configurable thing in recemb (a table method, a data set, a backbone, the trainer, the report) is a plain
dataclass whose fields are made by `option`. The default lives there and nowhere else, and the help line beside it is
what `--help`, `recemb tables NAME` and the README print.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple


class RecembError(ValueError):
    """Something the caller can mend. The message is one sentence: what came, what was needed, what to do.

    The command line prints it without a traceback and exits with status 2.
    """


class Option(NamedTuple):
    """One field of a config class, as help pages show it."""

    name: str
    type: str
    default: Any
    help: str


def option(default: Any, help: str) -> Any:
    """Declare a dataclass field with its default and its one-line help.

    Args:
        default: the value when nothing is given; a list or dict is copied for every instance.
        help: one line for people, with the unit where there is one.
    """
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata={"help": help})
    return dataclasses.field(default=default, metadata={"help": help})


def options_of(config_class: type) -> Iterator[Option]:
    """Yield the options of a config class in the order of its definition."""
    for field in dataclasses.fields(config_class):
        default = field.default
        if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        kind = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
        yield Option(field.name, kind, default, field.metadata.get("help", ""))
