"""How rows are stored whose width FBGEMM's kernels do not take.

They take widths in multiples of four floats. Rows of any other width are kept in wider stored ones, and picked out one
by one: narrow rows several side by side, the lanes of a stored row; wide ones each by itself, with up to three unused
floats at the end, since reading four to use one would take longer. Bytes that are served never include this padding.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from recemb.fusing import fused
from recemb.tables.base import PhysicalTable

_KERNEL_WIDTH = 4
_WIDEST_IN_LANES = 16


def lanes_of(dim: int) -> int:
    """Rows of this width that are stored side by side: narrow ones so many that their width is a multiple of four."""
    return 1 if dim > _WIDEST_IN_LANES else _KERNEL_WIDTH // math.gcd(dim, _KERNEL_WIDTH)


def of_each(numbers: Tensor, counts: Sequence[int]) -> Tensor:
    """Repeat the number (L,) of each lookup for each of its rows, (N,)."""
    if len(set(counts)) == 1:
        return numbers.repeat_interleave(counts[0])  # the usual case, for which a device is not waited for
    repeats = torch.tensor(counts, device=numbers.device)
    return numbers.repeat_interleave(repeats, output_size=sum(counts))


def stored_shape(table: PhysicalTable) -> PhysicalTable:
    """Describe a table as it is stored: in rows whose width is a multiple of four."""
    lanes = lanes_of(table.dim)
    width = _KERNEL_WIDTH * -(-table.dim * lanes // _KERNEL_WIDTH)
    return table._replace(rows=-(-table.rows // lanes), dim=width)


def plain_rows(stored: Tensor, table: PhysicalTable) -> Tensor:
    """View stored rows (n, w) from the table's first on as (rows, dim), padding left out."""
    each = stored_shape(table).dim // lanes_of(table.dim)
    return stored.view(-1, each)[: table.rows, : table.dim]


def split_lanes(rows: Tensor, lanes: Tensor) -> tuple[Tensor, Tensor]:
    """Turn row numbers (n,) of tables with so many lanes (n,) into lanes (n,) and numbers of stored rows (n,)."""
    return rows % lanes, rows // lanes


@fused
def find_stored(rows: Tensor, lanes: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """Turn row numbers into those of stored rows of tables that begin at `first`, and lanes; all shapes broadcast."""
    lane, rows = split_lanes(rows, lanes)
    return rows + first, lane


def pick_lanes(stored: Tensor, width: int, lane: Tensor | None) -> Tensor:
    """Take rows of a width out of stored ones (n, w), as `lane` (n,) says: lane 0 begins them, lane 1 is the next.

    There may be lanes because of other tables; in stored rows that hold one row each all of them are 0.
    """
    if stored.shape[1] == width:
        return stored
    if lane is None or lanes_of(width) == 1:
        return stored[:, :width]
    lanes = stored.view(len(stored), stored.shape[1] // width, width)
    return lanes.gather(1, lane.view(-1, 1, 1).expand(-1, 1, width)).squeeze(1)
