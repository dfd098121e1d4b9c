"""The single methods that a plan made block by block has to be better than."""

import logging
from collections.abc import Iterator

from recemb.advice.record import Candidate
from recemb.budget import TooSmallBudgetError
from recemb.datasets import Feature
from recemb.models import ModelConfig
from recemb.options import RecembError
from recemb.plan import sized, table_specs
from recemb.tables.pruned import PrunedConfig
from recemb.tables.registry import get_table

log = logging.getLogger(__name__)

ORDER = (
    "mixed_dimension", "optembed", "pep", "low_rank", "magnitude", "multiplexed", "compositional", "full", "frequency",
    "hashing", "pq",
)  # fmt: skip
"""Those that were best on the data sets of docs/results first, with their defaults but for `_OPTIONS`."""

_OPTIONS = {"multiplexed": {"probes": 2}}


def single_methods(
    features: list[Feature], model: ModelConfig, budget: str | int | float, precision: str
) -> Iterator[Candidate]:
    """Give the methods that can be made as small as asked, in the order in which they are worth a trial."""
    specs = table_specs(features, model, precision)
    for name in ORDER:
        try:
            table = sized(get_table(name).config(**_OPTIONS.get(name, {})), budget, specs)
            if isinstance(table, PrunedConfig):
                table.check_trainable()
            model.check_widths(table.layout(specs).dims)
        except TooSmallBudgetError:
            continue
        except RecembError as error:  # two probes and an odd width, say
            log.info("%s is not tried: %s", name, error)
            continue
        yield Candidate(name, table, precision)
