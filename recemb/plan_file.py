"""The file of a plan: what `recemb advise` and `recemb plan --json` write, and training takes up with `plan=FILE`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recemb.budget import format_bytes, parse_budget
from recemb.files import read_json
from recemb.options import RecembError
from recemb.plan import PLAN_SCHEMA
from recemb.tables.base import TableConfig, TableSpec, total_full_bytes
from recemb.tables.precision import check_precision
from recemb.tables.registry import config_from_dict, method_of

ADVISED = "auto"
"""What runs are called whose method was not named but chosen."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What training takes from the file of a plan.

    Attributes:
        path: the file.
        method: what the run is called after: the method, or `auto` where it was advised.
        table: the method's options, sizes set.
        precision: how rows are asked to be held when served.
        budget: as it was given, or None.
        ids: V of each logical table, by name.
        embedding_dim: D of the full tables.
        data: see `recemb.plan.Plan`; empty where the file does not say.
        model: see `recemb.plan.Plan`; empty where the file does not say.
        advice: see `recemb.plan.Plan`.
    """

    path: Path
    method: str
    table: TableConfig
    precision: str
    budget: str | None
    ids: dict[str, int]
    embedding_dim: int
    data: dict[str, str]
    model: dict[str, Any]
    advice: dict[str, Any] | None

    def check_fits(self, specs: Sequence[TableSpec]) -> None:
        """Raise where the plan was made for other tables, or is larger than the budget that it states."""
        there = {spec.name: spec.num_embeddings for spec in specs}
        for name in [*self.ids, *there]:
            if self.ids.get(name) != there.get(name):
                said = [f"{one[name]:,} ids" if name in one else "no such feature" for one in (self.ids, there)]
                raise RecembError(
                    f"plan={self.path} is one for other data: of {name} it knows {said[0]}, and the data set has "
                    f"{said[1]}; make a plan for this data set."
                )
        if self.embedding_dim != specs[0].embedding_dim:
            raise RecembError(
                f"plan={self.path} is one for vectors of {self.embedding_dim} numbers, and the model takes "
                f"{specs[0].embedding_dim}; leave model.embedding_dim out, or make a plan for it."
            )
        size = self.table.layout(specs).serving_bytes
        if self.budget is not None and size > parse_budget(self.budget, total_full_bytes(specs)):
            raise RecembError(
                f"plan={self.path} takes {size:,} bytes ({format_bytes(size)}), more than the budget {self.budget} "
                "that it states; make it anew instead of changing it."
            )


def read_plan(path: str | Path) -> Planned:
    """Read the file of a plan, as `recemb advise` and `recemb plan --json` write it.

    Raises:
        RecembError: it cannot be read, or is no plan of this version.
    """
    try:
        values = read_json(Path(path))
        if values["schema"] != PLAN_SCHEMA:
            raise RecembError(f"plan={path} has form {values['schema']}, and this recemb reads form {PLAN_SCHEMA}.")
        table, advice = config_from_dict(values["table"]), values.get("advice")
        if values["budget"] is not None:
            parse_budget(values["budget"], 1 << 62)
        check_precision(values["precision"])
        return Planned(
            path=Path(path),
            method=method_of(table).name if advice is None else ADVISED,
            table=table,
            precision=values["precision"],
            budget=values["budget"],
            ids={str(one["name"]): int(one["ids"]) for one in values["features"]},
            embedding_dim=int(values["embedding_dim"]),
            data=_mapping(values, "data"),
            model=_mapping(values, "model"),
            advice=_mapping(values, "advice") or None,
        )
    except OSError as error:
        raise RecembError(f"plan={path} cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        if isinstance(error, RecembError):
            raise
        raise RecembError(
            f"plan={path} is no plan, which recemb advise and recemb plan --json write ({type(error).__name__}: "
            f"{error})."
        ) from error


def _mapping(values: dict[str, Any], name: str) -> dict[str, Any]:
    """Give a part of a plan that may be missing; `data` and `model` have a name."""
    found = values.get(name) or {}
    if not isinstance(found, dict) or (found and name != "advice" and not isinstance(found.get("name"), str)):
        raise TypeError(f"{name} is {found!r}")
    return found
