"""The family of compressed tables: one file per method, imported here so that it registers itself."""

from recemb.tables import (  # noqa: F401 - importing a method registers it; the order is that of every listing
    full,
    frequency,
    hashing,
    low_rank,
    mixed_dimension,
    compositional,
    multiplexed,
    optembed,
    pep,
    magnitude,
    pq,
    auto,
)
