"""The file of a plan: what `recemb advise` and `recemb plan --json` write, and training takes up with `plan=FILE`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recemb.options import RecembError
from recemb.plan import PLAN_SCHEMA
from recemb.tables.base import TableConfig, TableSpec
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
    data: dict[str, str]
    model: dict[str, Any]
    advice: dict[str, Any] | None

    def check_fits(self, specs: Sequence[TableSpec]) -> None:
        """Raise where the plan was made for other tables."""
        there = {spec.name: spec.num_embeddings for spec in specs}
        for name in [*self.ids, *there]:
            if self.ids.get(name) != there.get(name):
                said = [f"{one[name]:,} ids" if name in one else "no such feature" for one in (self.ids, there)]
                raise RecembError(
                    f"plan={self.path} is one for other data: of {name} it knows {said[0]}, and the data set has "
                    f"{said[1]}; make a plan for this data set."
                )


def read_plan(path: str | Path) -> Planned:
    """Read the file of a plan, as `recemb advise` and `recemb plan --json` write it.

    Raises:
        RecembError: it cannot be read, or is no plan of this version.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        if values["schema"] != PLAN_SCHEMA:
            raise RecembError(f"plan={path} has form {values['schema']}, and this recemb reads form {PLAN_SCHEMA}.")
        table, advice = config_from_dict(values["table"]), values.get("advice")
        check_precision(values["precision"])
        return Planned(
            path=Path(path),
            method=method_of(table).name if advice is None else ADVISED,
            table=table,
            precision=values["precision"],
            budget=values["budget"],
            ids={one["name"]: int(one["ids"]) for one in values["features"]},
            data=values.get("data") or {},
            model=values.get("model") or {},
            advice=advice,
        )
    except OSError as error:
        raise RecembError(f"plan={path} cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, RecembError):
            raise
        raise RecembError(
            f"plan={path} is no plan, which recemb advise and recemb plan --json write ({type(error).__name__}: "
            f"{error})."
        ) from error
