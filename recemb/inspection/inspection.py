"""Everything `recemb inspect` finds out about a data set, and about a plan for it."""

from typing import Any, NamedTuple

from recemb.config import PlanConfig
from recemb.datasets import PreparedDataset
from recemb.inspection.facts import inspect_dataset
from recemb.inspection.records import DatasetFacts
from recemb.inspection.sharing import PlanSharing, share_rows
from recemb.inspection.traffic import Traffic
from recemb.plan import Plan, make_plan, table_specs
from recemb.tables.registry import config_from_dict


class Inspection(NamedTuple):
    """The facts, and where a plan was asked for, the plan and what its ids share."""

    facts: DatasetFacts
    plan: Plan | None = None
    sharing: PlanSharing | None = None

    def to_dict(self) -> dict[str, Any]:
        """Write it as plain JSON types: the keys of the facts, and `plan` and `sharing`."""
        document = self.facts.to_dict()
        if self.plan is not None and self.sharing is not None:
            document |= {"plan": self.plan.to_dict(), "sharing": self.sharing.to_dict()}
        return document


def inspect(dataset: PreparedDataset, config: PlanConfig, *, with_plan: bool) -> Inspection:
    """Inspect a data set, with or without a plan.

    Args:
        dataset: the prepared rows.
        config: the width of vectors, and the plan; its data set does not matter.
        with_plan: say what ids share under the plan.

    Raises:
        RecembError: there is nothing to count, or the plan's options do not fit the data.
    """
    plan = None
    if with_plan:  # before any row is read, since what is wrong with it can be told at once
        plan = make_plan(
            dataset.features,
            config.table,
            config.model,
            config.budget,
            precision=config.precision,
            dataset=dataset.meta["dataset"],
        )
    facts = inspect_dataset(dataset, embedding_dim=config.model.embedding_dim)
    if plan is None:
        return Inspection(facts)
    specs = table_specs(dataset.features, config.model, config.precision)
    return Inspection(facts, plan, share_rows(config_from_dict(plan.table), specs, Traffic(dataset)))
