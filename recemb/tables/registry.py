"""The methods there are, by name. A method registers itself; everything else asks here."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeVar

from recemb.options import RecembError
from recemb.tables.base import CompressedTable, TableConfig, TableSpec

_METHODS: dict[str, "Method"] = {}
_Table = TypeVar("_Table", bound=type[CompressedTable])


@dataclass(frozen=True)
class Method:
    """What is known about a method of the family.

    Attributes:
        name: its name on the command line, and the name of its file in recemb/tables/.
        config: its options.
        table: its module.
        summary: one line.
        paper: citation, empty for baselines without one.
    """

    name: str
    config: type[TableConfig]
    table: type[CompressedTable]
    summary: str
    paper: str


def register(name: str, config: type[TableConfig], *, summary: str, paper: str = "") -> Callable[[_Table], _Table]:
    """Register the decorated `CompressedTable` under a name.

    Raises:
        RecembError: the name is taken.
    """

    def add(table: _Table) -> _Table:
        if name in _METHODS:
            raise RecembError(f"there is a table method {name!r} already ({_METHODS[name].table.__module__}).")
        _METHODS[name] = Method(name, config, table, summary, paper)
        return table

    return add


def list_tables() -> list[Method]:
    """List the methods in the order of their registration."""
    return list(_METHODS.values())


def get_table(name: str) -> Method:
    """Find a method by its name.

    Raises:
        RecembError: there is none; the sentence lists those there are.
    """
    if name not in _METHODS:
        close = get_close_matches(name, _METHODS, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise RecembError(f"there is no table method {name!r}.{hint} Known: {', '.join(_METHODS)}.")
    return _METHODS[name]


def method_of(config: TableConfig) -> Method:
    """Find the method that a config belongs to."""
    for method in _METHODS.values():
        if type(config) is method.config:
            return method
    raise RecembError(f"{type(config).__name__} belongs to no registered table method.")


def create_table(config: TableConfig, specs: Sequence[TableSpec]) -> CompressedTable:
    """Make the module of a sized config.

    Raises:
        RecembError: the tables have raw ids, which the method does not take.
    """
    check_raw_ids(config, specs)
    return method_of(config).table(config, specs)


def check_raw_ids(config: TableConfig, specs: Sequence[TableSpec]) -> None:
    """Raise where ids are raw and the method needs those of a vocabulary."""
    raw = [spec.name for spec in specs if spec.raw_ids]
    if raw and not method_of(config).table.takes_raw_ids:
        takers = [name for name, method in _METHODS.items() if method.table.takes_raw_ids]
        raise RecembError(
            f"table={method_of(config).name} needs ids from a vocabulary, and those of {raw[0]} are raw; prepare with "
            f"dataset.vocabulary=frequency, or take a method that hashes: {', '.join(takers)}."
        )


def approximating_methods() -> list[str]:
    """Name the methods that can be made from trained tables."""
    return [method.name for method in _METHODS.values() if method.config.approximates()]


def check_approximates(config: TableConfig) -> None:
    """Raise where a method's tables cannot be made from trained ones."""
    if not config.approximates():
        raise RecembError(
            f"table={method_of(config).name} cannot be made from trained tables, only trained; choose one of "
            f"{', '.join(approximating_methods())}."
        )


def config_to_dict(config: TableConfig) -> dict[str, Any]:
    """Write a config as plain JSON types, the method's name first."""
    return {"name": method_of(config).name, **dataclasses.asdict(config)}


def config_from_dict(values: dict[str, Any]) -> TableConfig:
    """Read what `config_to_dict` wrote.

    Raises:
        RecembError: unknown method or option.
    """
    options = dict(values)
    method = get_table(options.pop("name", ""))
    known = [field.name for field in dataclasses.fields(method.config)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise RecembError(f"table method {method.name} has no option {unknown[0]!r}. Known: {', '.join(known)}.")
    return method.config(**options)
