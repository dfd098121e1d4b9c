"""Who shares rows with whom under a method: what a plan costs before anything is trained.

Two ids collide where they read one row. How much that matters is a question of traffic: the collision of two ids that
nobody looks up costs nothing. So shares here are of cells (a row's value of a feature), not of ids.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from recemb.inspection.traffic import HELD_OUT, IdTraffic
from recemb.tables.base import CompressedTable, TableConfig, TableSpec
from recemb.tables.registry import create_table

NO_ROW = -1
_PIECE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Occupancy:
    """How many ids read a row, over the rows of some physical tables.

    Attributes:
        rows: how many rows there are.
        unused: of these, read by no id.
        mean: ids a used row.
        most: ids of the most crowded row.
        histogram: rows by how many ids read them: 1, 2, 3 to 4, 5 to 8, ...; each entry has the largest number of its
            range as `at_most`, and `rows`.
    """

    rows: int
    unused: int
    mean: float
    most: int
    histogram: list[dict[str, int]]


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """What the ids of a feature, or of all of them, share. Shares of no cells are None.

    Attributes:
        collides: share of the training cells whose id shares at least one of its rows with another id.
        collides_everywhere: share of those whose id shares all of its rows.
        foreign_updates: of all updates that the rows of a training cell get, the share that other ids cause; mean over
            the cell's rows and over the cells that read one.
        without_row: share of the training cells whose id has no row and reads zeros.
        own_vector: for each split the share of cells whose id has a combination of rows, and with it a vector, that no
            other id of the feature has. In validation and test, ids that training does not show have none.
        own_row: the same for ids that read at least one row alone, whichever feature the others are of.
    """

    collides: float | None
    collides_everywhere: float | None
    foreign_updates: float | None
    without_row: float | None
    own_vector: dict[str, float | None]
    own_row: dict[str, float | None]


@dataclass(frozen=True, kw_only=True)
class FeatureSharing(Sharing):
    """What the ids of a feature share.

    Attributes:
        name: the feature.
        rows_per_id: how many rows an id reads.
        occupancy: of the rows of the tables it looks up; a table that features share shows the ids of all of them.
    """

    name: str
    rows_per_id: int
    occupancy: Occupancy


@dataclass(frozen=True, kw_only=True)
class PlanSharing:
    """What ids share under a plan.

    Attributes:
        note: what of it is a prediction, since training decides it; or None.
        total: over the cells of all features.
        occupancy: of all rows.
        features: one by one, in the order of a batch's keys.
    """

    note: str | None
    total: Sharing
    occupancy: Occupancy
    features: list[FeatureSharing]

    def to_dict(self) -> dict[str, Any]:
        """Write it as plain JSON types."""
        return dataclasses.asdict(self)


def share_rows(config: TableConfig, specs: Sequence[TableSpec], traffic: Iterable[IdTraffic]) -> PlanSharing:
    """Say who shares rows with whom, and how much of the traffic that concerns.

    Goes over the features twice, holding one at a time and two numbers a row.

    Args:
        config: the method, its sizes set.
        specs: the logical tables.
        traffic: of each; iterated twice.

    Raises:
        RecembError: the method does not take these ids.
    """
    method = create_table(config, specs)
    begins = np.cumsum([0, *(table.rows for table in method.layout.tables)])
    updates, readers = np.zeros(begins[-1], dtype=np.int64), np.zeros(begins[-1], dtype=np.int64)
    for index, one in enumerate(traffic):
        for column in _each_once(rows_read(method, index, one)):
            there = column != NO_ROW
            np.add.at(updates, column[there], one.train[there])
            np.add.at(readers, column[there], 1)
    features, tallies = [], []
    for index, (spec, one) in enumerate(zip(specs, traffic, strict=True)):
        read = rows_read(method, index, one)
        tallies.append(_tally(read, one, updates, readers))
        tables = set(method.layout.lookups[index])
        features.append(
            FeatureSharing(
                name=spec.name,
                rows_per_id=read.shape[1],
                occupancy=_occupancy(np.concatenate([readers[begins[t] : begins[t + 1]] for t in sorted(tables)])),
                **_shares(tallies[-1]),
            )
        )
    total = {name: sum(tally[name] for tally in tallies) for name in tallies[0]}
    return PlanSharing(
        note=_prediction(config, method),
        total=Sharing(**_shares(total)),
        occupancy=_occupancy(readers),
        features=features,
    )


def _prediction(config: TableConfig, method: CompressedTable) -> str | None:
    """Say what training decides otherwise."""
    if config.learns:
        return (
            "training decides which ids keep a row; shown is what the budget stands for before, the most frequent ids"
        )
    if any(tensor.is_meta for tensor in config.layout(method.specs).constants.values()):
        return "training decides which rows an id reads; shown are those that a hash draws before"
    return None


def rows_read(method: CompressedTable, index: int, traffic: IdTraffic) -> np.ndarray:
    """Say which rows each id of a logical table reads.

    Returns:
        (V, lookups) int64, the rows of all physical tables numbered one table after the other; `NO_ROW` where an id has
        none. Of raw values, the place of id 0 has none: no value is there.
    """
    layout = method.layout
    first = sum(map(len, layout.lookups[:index]))
    begins = torch.tensor([0, *(table.rows for table in layout.tables)]).cumsum(0)
    parts = []
    for ids in torch.from_numpy(traffic.values).split(_PIECE):
        if layout.alternatives:
            tables, rows = method.route(ids, torch.full_like(ids, index))
            columns = [torch.where(rows >= 0, begins[tables] + rows, NO_ROW)]
        else:
            columns = []
            for place, table in enumerate(layout.lookups[index]):
                rows = method.remap(ids, torch.full_like(ids, first + place))
                columns.append(torch.where(rows >= 0, begins[table] + rows, NO_ROW))
        parts.append(torch.stack(columns, dim=1))
    read = torch.cat(parts).numpy()
    if traffic.raw:
        read[0] = NO_ROW
    return read


def _each_once(read: np.ndarray) -> list[np.ndarray]:
    """Give the columns of (V, lookups) rows, a row that an id reads twice standing for nothing the second time."""
    columns = [read[:, 0]]
    for place in range(1, read.shape[1]):
        again = (read[:, :place] == read[:, place : place + 1]).any(axis=1)
        columns.append(np.where(again, NO_ROW, read[:, place]))
    return columns


def _tally(read: np.ndarray, traffic: IdTraffic, updates: np.ndarray, readers: np.ndarray) -> dict[str, float]:
    """Add cells up by what holds for their id."""
    train, has_row = traffic.train, (read != NO_ROW).any(axis=1)
    alone = np.stack([(column != NO_ROW) & (readers[column] == 1) for column in read.T])
    # An own row that is read by no one else may be read twice by its id.
    some, every = alone.any(axis=0), alone.all(axis=0)
    foreign = np.zeros(len(train))
    for column in read.T:
        there = column != NO_ROW
        foreign[there] += 1 - train[there] / np.maximum(updates[column[there]], 1)
    number_of_rows = np.maximum((read != NO_ROW).sum(axis=1), 1)
    own_vector = has_row & _is_unique(read)
    seen = train > 0
    seen[0] = False
    tally = {
        "cells": train.sum(),
        "with_row": train[has_row].sum(),
        "collides": train[has_row & ~every].sum(),
        "collides_everywhere": train[has_row & ~some].sum(),
        "foreign_updates": float((train * foreign / number_of_rows).sum()),
        "own_vector train": train[own_vector].sum(),
        "own_row train": train[some].sum(),
    }
    for split in HELD_OUT:
        cells = traffic.held_out[split]
        tally |= {f"cells {split}": cells.sum()}
        tally |= {f"own_vector {split}": cells[own_vector & seen].sum(), f"own_row {split}": cells[some & seen].sum()}
    return tally


def _is_unique(read: np.ndarray) -> np.ndarray:
    """Say which rows of (V, lookups) occur once, (V,) bool."""
    code = np.zeros(len(read), dtype=np.int64)
    for column in read.T:
        # Codes stay below V, so that a code and a row fit in 64 bits together.
        _, code, times = np.unique(code * (int(column.max()) + 2) + column + 1, return_inverse=True, return_counts=True)
    return times[code] == 1


def _shares(tally: dict[str, float]) -> dict[str, Any]:
    cells = {"train": tally["cells"], **{split: tally[f"cells {split}"] for split in HELD_OUT}}
    return {
        "collides": _share(tally["collides"], cells["train"]),
        "collides_everywhere": _share(tally["collides_everywhere"], cells["train"]),
        "foreign_updates": _share(tally["foreign_updates"], tally["with_row"]),
        "without_row": _share(cells["train"] - tally["with_row"], cells["train"]),
        "own_vector": {split: _share(tally[f"own_vector {split}"], count) for split, count in cells.items()},
        "own_row": {split: _share(tally[f"own_row {split}"], count) for split, count in cells.items()},
    }


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def _occupancy(readers: np.ndarray) -> Occupancy:
    used = readers[readers > 0]
    # 1, 2, 3 to 4, 5 to 8, ...: the bits of one less say which.
    powers = np.bincount(np.ceil(np.log2(used)).astype(np.int64)) if len(used) else np.zeros(0, dtype=np.int64)
    return Occupancy(
        rows=len(readers),
        unused=len(readers) - len(used),
        mean=float(used.mean()) if len(used) else 0.0,
        most=int(used.max()) if len(used) else 0,
        histogram=[{"at_most": 1 << power, "rows": int(rows)} for power, rows in enumerate(powers)],
    )
