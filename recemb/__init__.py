"""recemb: embedding-table compression for recommenders.

Name a method and a byte budget, train the same CTR model, read an honest memory/accuracy report.
"""

import os

# Idle OpenMP threads otherwise spin, and on a machine with anything else to do a training step takes ten times as long.
# The runtime reads this once, when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from recemb._platform import check_platform

check_platform()

from recemb import tables as _tables  # noqa: F401 - registers the methods
from recemb.options import RecembError
from recemb.tables.base import TableSpec
from recemb.tables.collection import CompressedEmbeddingBagCollection
from recemb.tables.registry import get_table, list_tables
from recemb.tables.storage import FusedOptimizer

__all__ = [
    "CompressedEmbeddingBagCollection",
    "FusedOptimizer",
    "RecembError",
    "TableSpec",
    "get_table",
    "list_tables",
]
__version__ = "0.1.0"
