"""Physical tables as ordinary parameters; see `recemb.tables.storage`."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recemb.tables.base import PhysicalTable


class Bag(nn.Module):
    """Gives a weight the name that torchrec gives it."""

    def __init__(self, weight: Tensor, requires_grad: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=requires_grad)


class PlainTables(nn.Module):
    """Physical tables as ordinary parameters.

    Args:
        tables: the physical tables.
        lookup_tables: for each lookup the index of the table it reads.
        device: where the weights live.
    """

    def __init__(
        self, tables: Sequence[PhysicalTable], lookup_tables: Sequence[int], device: torch.device | None = None
    ) -> None:
        super().__init__()
        self.widths = [tables[index].dim for index in lookup_tables]
        self._names = [tables[index].name for index in lookup_tables]
        self.embedding_bags = nn.ModuleDict(
            {table.name: Bag(torch.empty(table.rows, table.dim, device=device), requires_grad=True) for table in tables}
        )

    def forward(self, rows: Tensor, offsets: Tensor) -> Tensor:
        """Sum the rows of every bag.

        Args:
            rows: (N,) int64 row numbers, lookup after lookup.
            offsets: (L * B + 1,) int64 where each bag begins in `rows`.

        Returns:
            (B, sum of the lookups' `widths`).
        """
        bags = (offsets.numel() - 1) // len(self._names)
        pooled = []
        for index, name in enumerate(self._names):
            part = offsets[index * bags : (index + 1) * bags + 1]
            weight = cast(Bag, self.embedding_bags[name]).weight
            values = rows[part[0] : part[-1]]
            pooled.append(F.embedding_bag(values, weight, part - part[0], mode="sum", include_last_offset=True))
        return torch.cat(pooled, dim=1)

    def values(self, rows: Tensor, counts: Sequence[int]) -> list[Tensor]:
        """Look rows up one by one.

        Args:
            rows: (N,) int64 row numbers, lookup after lookup.
            counts: how many of them each lookup has.

        Returns:
            For each lookup (n, d).
        """
        parts = zip(rows.split(list(counts)), self._names, strict=True)
        return [F.embedding(part, cast(Bag, self.embedding_bags[name]).weight) for part, name in parts]

    def read(self, name: str) -> Tensor:
        """Give the weight (rows, dim) of a table."""
        return self.get_parameter(f"embedding_bags.{name}.weight")

    def write(self, name: str, weight: Tensor) -> None:
        """Copy a weight (rows, dim) into a table."""
        self.read(name).copy_(weight)

    def stored_bytes(self) -> int:
        """Bytes the rows take in memory."""
        return sum(weight.nbytes for weight in self.parameters())

    def optimizer_bytes(self) -> int:
        """Bytes of optimizer state held beside the rows: none, whoever trains the parameters keeps it."""
        return 0
