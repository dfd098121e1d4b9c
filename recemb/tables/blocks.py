"""Tables that are cut into blocks of ids, the most frequent first, each with rows of its own width.

What `mixed_dimension` and `auto` share, and how the block that a number is in is found, also where searchsorted has no
counterpart.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from recemb.tables.base import CompressedTable, Layout, PhysicalTable, TableSpec


class Run(NamedTuple):
    """Ids `start` to `stop` - 1 of a table, with rows of one width, held in `precision`, that start with `init_std`."""

    start: int
    stop: int
    width: int
    precision: str
    init_std: float


class BlockedTable(CompressedTable):
    """Looks an id up in the block it belongs to; ids without a row read row 0 of the first block."""

    before: Tensor
    first: Tensor
    ends: Tensor

    def remap(self, ids: Tensor, lookup: Tensor) -> Tensor:
        """The row of an id is the id, where every table is one block; ids without a row read row 0."""
        return torch.where(ids < self.ends[lookup], ids, 0) if self.layout.constants else ids

    def route(self, ids: Tensor, spec: Tensor) -> tuple[Tensor, Tensor]:
        """Find the block of each id; ids without a row read row 0 of the first block."""
        if "ends" in self.layout.constants:
            ids = torch.where(ids < self.ends[spec], ids, 0)
        numbers = ids + self.before[spec]
        table = block_of(self.first, numbers)  # one block a table, in the order of the specs
        return table, numbers - self.first[table]


def blocked_layout(specs: Sequence[TableSpec], runs: Sequence[Sequence[Run]]) -> Layout:
    """Hold one table for each run of each logical table, and what it takes to find the run of an id.

    Args:
        specs: the logical tables.
        runs: of each, neighbours, the first one from id 0 on; ids past the last one have no row.
    """
    tables: list[PhysicalTable] = []
    lookups: list[list[int]] = []
    for spec, of_spec in zip(specs, runs, strict=True):
        lookups.append(list(range(len(tables), len(tables) + len(of_spec))))
        for number, run in enumerate(of_spec):
            name = spec.name if len(of_spec) == 1 else f"{spec.name}:{number}"
            table = spec.physical(run.stop - run.start, run.width, name, run.init_std)
            tables.append(table._replace(precision=run.precision))
    split = len(tables) > len(specs)
    constants: dict[str, Tensor] = {}
    if split:
        # Numbers for the ids of all tables, one table's after the other's, so that one search finds blocks.
        before = [0, *itertools.accumulate(spec.num_embeddings for spec in specs)][:-1]
        constants["before"] = torch.tensor(before)
        constants["first"] = torch.tensor(
            [start + run.start for start, of_spec in zip(before, runs, strict=True) for run in of_spec]
        )
    if any(of_spec[-1].stop < spec.num_embeddings for spec, of_spec in zip(specs, runs, strict=True)):
        constants["ends"] = torch.tensor([of_spec[-1].stop for of_spec in runs])
    return Layout(
        tables=tables,
        lookups=lookups,
        dims=[spec.embedding_dim for spec in specs],
        constants=constants,
        alternatives=split,
    )


def block_of(starts: Tensor, numbers: Tensor) -> Tensor:
    """Find the last start that is not greater.

    Args:
        starts: (n,) int64 where blocks begin, ascending, the first one not above any number.
        numbers: int64 of any shape.

    Returns:
        int64 block numbers of the same shape.
    """
    if not torch.compiler.is_exporting():
        return torch.searchsorted(starts, numbers, right=True) - 1
    # ONNX has no searchsorted: the answer is built bit by bit instead, from the highest one down.
    block = torch.zeros_like(numbers)
    last = starts.shape[0] - 1
    for bit in range(last.bit_length() - 1, -1, -1):
        ahead = block + (1 << bit)
        at = starts[ahead.clamp(max=last)]
        block = torch.where((ahead <= last) & (at <= numbers), ahead, block)
    return block
