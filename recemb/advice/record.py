"""What an advice says, in the plan's file and in the record of a run, as plain JSON types.

    {"by": "labels" | "training",          what the worth of ids was taken from
     "trials": int,                        trainings that were allowed
     "monitor": "logloss" | "auc",         what is better on validation rows
     "tried": [{"method": "full",          every training
                "precision": "fp32",       coarsest that its rows are held in
                "bytes": int,              of its tables when served
                "valid": {...} | null,     null where the loss became no number, and then alone
                "error": str,              why
                "seconds": float}, ...],
     "chosen": {"method": "auto", "precision": "int8"},
     "because": str,                       why this one, in a sentence
     "features": [{"name": "C1", "share": float | null, "kept": float | null, "bytes": int, "sentence": str}, ...]}

`share` is what a feature's vectors are worth of all, `kept` what of that the plan keeps; both null where the chosen
method is not planned block by block.
"""

from typing import Any, NamedTuple

from recemb.tables.base import TableConfig


class Candidate(NamedTuple):
    """A table that may be chosen: its name, its options with sizes set, and the precision asked for."""

    method: str
    table: TableConfig
    precision: str


def new_advice(trials: int, monitor: str) -> dict[str, Any]:
    """Begin an advice."""
    return {"by": "training" if trials else "labels", "trials": trials, "monitor": monitor, "tried": []}
