"""How the tables of a trained model shall be held once they are compressed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from recemb.tables.precision import check_precision


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How tables shall be held.

    Attributes:
        table: the method; rows stay as they are, but for their precision, when not given.
        budget: serving bytes of each matched module, as a share of its fp32 tables (1/8) or a size (64MiB); what the
            options say when not given.
        precision: how rows are held: fp32, fp16, int8, int4 or int2.
        options: of the method, by name.
    """

    table: str = "full"
    budget: str | int | float | None = None
    precision: str = "fp32"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_precision(self.precision)
