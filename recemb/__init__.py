"""recemb: embedding-table compression for recommenders.

Name a method and a byte budget, train the same CTR model, read an honest memory/accuracy report.
"""

import importlib
import os
from typing import Any

from recemb._platform import check_platform

# Idle OpenMP threads otherwise spin, and on a machine with anything else to do a training step takes ten times as long.
# The runtime reads this once, when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

check_platform()

_HOMES = {
    "CompressedEmbeddingBagCollection": "recemb.tables.collection",
    "FusedOptimizer": "recemb.tables.storage",
    "Packing": "recemb.packing.packing",
    "RecembError": "recemb.options",
    "TableSpec": "recemb.tables.base",
    "compress": "recemb.packing.swap",
    "get_table": "recemb.tables.registry",
    "list_tables": "recemb.tables.registry",
    "load": "recemb.packing.load",
}
__all__ = list(_HOMES)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: torch and torchrec take seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module 'recemb' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
