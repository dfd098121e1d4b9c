"""Which columns of a table are what: the few lines of YAML that `dataset=tabular` needs, read and checked."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from recemb.datasets.tabular_labels import label_rule
from recemb.datasets.tabular_numbers import DEFAULT, TRANSFORMS
from recemb.options import RecembError

SPLIT_KINDS = ("column", "time", "random")
_EXAMPLE = "label: clicked, categorical: [user, item], dense: [price], split: {time: timestamp}"


@dataclass(frozen=True, kw_only=True)
class Columns:
    r"""What each column of a table is; a column that is named nowhere is left out.

    Attributes:
        label: the column of the label.
        positive: the rule that makes a label of its values, such as ">=4"; "" = they are 0 and 1, or true and false.
        dense: columns of numbers, and the kind of each one's transform.
        categorical: columns with one value a row.
        multi_valued: columns with any number of values a row, and what separates them; "" = they are lists.
        split: how rows are split: "column", "time" or "random", and by which column, or with which seed.
        rename: features by the columns they come from, where their names differ.
        separator: what separates the columns of a CSV, also several characters, or `\s+` for any blanks
            and tabs; "" = a tab in files that end in .tsv, else a comma.
        header: names of a CSV's columns where its first line has none.
        quoting: a CSV's values may be in double quotes.
    """

    label: str
    positive: str = ""
    dense: dict[str, str] = dataclasses.field(default_factory=dict)
    categorical: list[str] = dataclasses.field(default_factory=list)
    multi_valued: dict[str, str] = dataclasses.field(default_factory=dict)
    split: tuple[str, str | int]
    rename: dict[str, str] = dataclasses.field(default_factory=dict)
    separator: str = ""
    header: list[str] = dataclasses.field(default_factory=list)
    quoting: bool = True

    @property
    def split_column(self) -> str:
        """The column that says how rows are split, "" where none does."""
        return "" if self.split[0] == "random" else str(self.split[1])

    @property
    def needed(self) -> list[str]:
        """Every column that is read, under its feature's name."""
        names = [self.label, *self.dense, *self.categorical, *self.multi_valued, self.split_column]
        return list(dict.fromkeys(filter(None, names)))

    def source_name(self, name: str) -> str:
        """Return what a feature's column is called in the files."""
        return next((column for column, feature in self.rename.items() if feature == name), name)

    def to_dict(self) -> dict[str, Any]:
        """Write it as what `read_columns` takes, in plain JSON types and whole."""
        values = dataclasses.asdict(self)
        positive, (kind, by) = values.pop("positive"), values.pop("split")
        return values | {"label": {self.label: positive} if positive else self.label, "split": {kind: by}}


def read_columns(given: Any, seed: int, option: str = "dataset.columns") -> Columns:
    """Read and check the description of a table.

    Args:
        given: the path of a YAML file, or what such a file holds.
        seed: of a random split that names none.
        option: what the user calls `given`.

    Raises:
        RecembError: it is missing, cannot be read, or says something that cannot be.
    """
    if given is None or given == "":
        raise RecembError(
            f"{option} is not given; name a YAML file that says which columns are what, such as {_EXAMPLE}."
        )
    values, where = (given, option) if isinstance(given, dict) else (_load(str(given), option), str(given))
    if not isinstance(values, dict):
        raise RecembError(f"{where} holds no names with values; it must look like {_EXAMPLE}.")
    known = [field.name for field in dataclasses.fields(Columns) if field.name != "positive"]
    for key in values:
        if key not in known:
            close = get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}."
            raise RecembError(f"{where} has {key!r}, which means nothing here; {hint}")
    for key in ("label", "split"):
        if values.get(key) in (None, "", [], {}):  # 0 is a name, as pandas gives columns without one
            raise RecembError(f"{where} has no {key}; it must look like {_EXAMPLE}.")
    label, positive = _label(values["label"], where)
    columns = Columns(
        label=label,
        positive=positive,
        dense=_named(values, "dense", where, DEFAULT),
        categorical=list(_named(values, "categorical", where, "")),
        multi_valued=_named(values, "multi_valued", where, ""),
        split=_split(values["split"], seed, where),
        rename=_named(values, "rename", where, None),
        separator=_separator(values.get("separator", ""), where),
        header=list(_named(values, "header", where, "")),
        quoting=_yes_or_no(values.get("quoting", True), where),
    )
    _check(columns, where)
    return columns


def _load(path: str, option: str) -> Any:
    try:
        return yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise RecembError(f"{option}={path} cannot be read ({error.strerror}); name a YAML file.") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RecembError(f"{path} is no YAML ({reason}); it must look like {_EXAMPLE}.") from error


def _label(value: Any, where: str) -> tuple[str, str]:
    if isinstance(value, dict):
        if len(value) != 1:
            raise RecembError(f"{where}: label names {len(value)} columns; it must name one, e.g. {{rating: '>=4'}}.")
        ((name, rule),) = value.items()
        label_rule(str(rule), where)  # refuses what is none
        return str(name), str(rule)
    return _text(value, "label", where), ""


def _split(value: Any, seed: int, where: str) -> tuple[str, str | int]:
    if value == "random":
        return "random", seed
    if not (isinstance(value, dict) and len(value) == 1 and next(iter(value)) in SPLIT_KINDS):
        raise RecembError(
            f"{where}: split is {value!r}; it must be {{column: NAME}} of a column with train, valid and test, "
            "{time: NAME} of a column that grows with time, or {random: SEED}."
        )
    ((kind, by),) = value.items()
    if kind != "random":
        return kind, _text(by, f"the {kind} of split", where)
    if not isinstance(by, int) or isinstance(by, bool):
        raise RecembError(f"{where}: the seed of split is {by!r}; it must be a whole number, e.g. {{random: 0}}.")
    return kind, by


def _named(values: dict[str, Any], key: str, where: str, default: str | None) -> dict[str, str]:
    """Read names in a list, or with a text each, where nothing said of one is `default`."""
    given = values.get(key) or {}
    if isinstance(given, str):
        given = [given]
    if isinstance(given, list) and default is not None:
        if twice := [name for name, count in Counter(map(str, given)).items() if count > 1]:
            raise RecembError(f"{where}: {key} names {twice[0]!r} twice; name it once.")
        given = dict.fromkeys(given, default)
    if not isinstance(given, dict):
        raise RecembError(
            f"{where}: {key} is {given!r}; it must be {'a list of' if default is not None else ''} names."
        )
    named = {}
    for name, value in given.items():
        kept = default if value is None and default is not None else value
        named[_text(name, f"a name in {key}", where)] = _text(kept, f"{name} in {key}", where)
    return named


def _text(value: Any, what: str, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise RecembError(f"{where}: {what} is {value!r}; it must be a text (put it in quotes).")
    return str(value)


def _separator(value: Any, where: str) -> str:
    text = _text(value, "separator", where)
    return "\t" if text == r"\t" else text  # as YAML reads it outside of double quotes


def _yes_or_no(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise RecembError(f"{where}: quoting is {value!r}; it must be true or false.")
    return value


def _check(columns: Columns, where: str) -> None:
    features = [*columns.dense, *columns.categorical, *columns.multi_valued]
    if not columns.categorical and not columns.multi_valued:
        raise RecembError(f"{where} names no categorical column, and embedding tables need one; name some.")
    for name, count in Counter([*features, columns.label]).items():
        if count > 1:
            raise RecembError(f"{where} names {name!r} in several places; a column is one thing.")
    if columns.split_column == columns.label:
        raise RecembError(f"{where}: split and label are both the column {columns.label!r}; split by another.")
    for name, kind in columns.dense.items():
        if kind not in TRANSFORMS:
            known = ", ".join(TRANSFORMS)
            raise RecembError(f"{where}: the transform of {name} is {kind!r}; it must be one of {known}.")
    for name in features:
        _check_name(name, where)
    if set(columns.separator) & set('"\n\r'):
        raise RecembError(
            f"{where}: separator is {columns.separator!r}; it must be one or more characters, none of them a double "
            "quote or the end of a line, e.g. ';' or '::'."
        )
    for column, name in columns.rename.items():
        if name not in columns.needed:
            raise RecembError(f"{where} renames {column!r} to {name!r}, which is named nowhere else; name it.")
    for name, count in Counter(columns.rename.values()).items():
        if count > 1:
            listed = " and ".join(repr(column) for column, feature in columns.rename.items() if feature == name)
            raise RecembError(f"{where} renames {listed} to {name!r}; a feature is one column, so name them apart.")


_REASONS: list[tuple[Callable[[str], bool], str]] = [
    (lambda name: not name.strip(), "is empty"),
    (lambda name: name == "label", "is what prepared data call the label"),
    (lambda name: bool(set("./\\\"'") & set(name)), "has a dot, slash, backslash or quote in it"),
    (lambda name: not name.isprintable(), "has characters in it that cannot be seen"),
    (lambda name: len(name.encode()) > 200, "is longer than 200 bytes"),
    (lambda name: hasattr(nn.ModuleDict(), name), "is taken in torch.nn.ModuleDict"),
]


def _check_name(name: str, where: str) -> None:
    """Refuse what cannot name a feature: it becomes the name of a file, of a module, and a text in exported code."""
    for applies, reason in _REASONS:
        if applies(name):
            raise RecembError(
                f"{where}: a feature cannot be named {name!r}, which {reason}; add rename: {{{name!r}: another_name}} "
                "and use the other name everywhere else."
            )
